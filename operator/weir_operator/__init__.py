"""The operator: an InferenceService becomes pods, services and the rest."""

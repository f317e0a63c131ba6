"""The sidecar: the OpenAI server in front of one engine."""

"""What answers requests: the engine beside this sidecar, or another sidecar."""

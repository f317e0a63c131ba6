"""What the sidecar tells of itself: metrics, traces, logs."""

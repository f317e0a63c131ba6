"""The time of steps on a GPU, without an engine."""

"""The engine: vLLM, launched with the right arguments."""

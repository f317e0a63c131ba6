"""What Weir's order inside vLLM gains and what it costs, on real vLLM, stock beside it."""

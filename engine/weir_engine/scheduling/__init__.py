"""What of Weir runs inside vLLM's engine core: its scheduler, and the log of its steps.

vLLM makes its scheduler through `factory.make_scheduler`. Each step then passes `log` (measured
and told to the sidecar), `ordered` (Weir's decisions, from `weir_core.step`) and vLLM's own
`schedule`. `contract` says what of vLLM all this rests on, and refuses a vLLM that lacks it.
"""

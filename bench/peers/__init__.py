"""Weir's sidecar beside other gateways under overload, all before the same modelled engine.

`python -m bench.peers` starts everything on loopback addresses, sends each of them the same
requests, and prints one table. docs/overload.md says what is compared and what came out.
"""

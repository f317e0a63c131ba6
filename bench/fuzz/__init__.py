"""Fuzzing the sidecar in process: its own code on an event loop whose time and wires are simulated.

`python -m bench.fuzz --inputs 1000000`; docs/invariants.md says what is asserted.
"""

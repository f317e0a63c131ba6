"""Scaling: how many replicas a service needs, decided from the work that its sidecars count.

Start with `types` (what goes in and out), then `autoscaler` (windows, rates, the decision).
`demand` turns reports into needed capacity, `pools` divides that among hardware pools, `shrink`
says what may go, `zero` whether all may, `explain` why.
"""

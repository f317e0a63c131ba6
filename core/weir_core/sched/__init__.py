"""The request pool and its scheduler: who enters the engine's batch next, and who is rejected.

Start with `types` (what goes in and out), then `scheduler` (the state machine). Every other
module is one idea: `pool`, `pick`, `fairness`, `order`, `gate`, `shed`, `limits`, `preempt`, and
the estimators in `estimate`, `quantiles`, `steptime` and `rates`.
"""

"""For all tests: hypothesis draws the same examples in every run, so a red gate is a real one."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine that is slow to draw examples has found nothing wrong.
settings.register_profile(
    "gate", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gate")

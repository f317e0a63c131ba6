"""For all tests: hypothesis draws the same examples in every run, so a red gate is a real one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gate", derandomize=True, deadline=None)
settings.load_profile("gate")

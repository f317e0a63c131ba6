"""Benchmarks, one per goal: each starts what it compares in the same run and reports ratios."""

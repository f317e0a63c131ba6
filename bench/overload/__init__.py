"""Twice what a real engine can do, for minutes: who is still answered in time, and who is told no?

    python -m bench.overload

One real vLLM with the tiny model, on this machine's CPU. First its capacity is measured, by
keeping it busy; then the mix of classes arrives at a fifth of that, which gives the unloaded
latencies, and then at twice of it. The same arrivals are played to plain vLLM. Every number is
a ratio within one run, and every request that was sent is accounted for.
"""

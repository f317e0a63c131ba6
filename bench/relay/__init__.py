"""What a relay costs: Weir's sidecar beside a direct connection and two Rust routers.

Goal G11: with everything on, the sidecar spends at most 0.7x the CPU of the best Rust router
per streamed chunk and at most 1.0x per request, adds at most 1 ms at the median, and stays
flat to 512 streams.

One run starts one engine (`engine.py`, a process that costs little and stamps what it sends),
one load generator (`load.py`, another process) and every target: the relays of `targets.py`.
A *cell* (`plan.py`) is one load: plain requests or streams, a body size, a number of streams
in flight. Cells and targets are measured in random order, several times, and the table shows
medians with the smallest and largest value beside them.

CPU is that of the relay's process tree, from the kernel's CPU clock of each process; the
engine and the load generator are processes of their own and not counted. Latency is the
relay's share: the engine stamps when a request reached it and when it sent a token, on the
clock that the load generator reads, so its own thinking time cancels out; what a direct
connection needs is then subtracted.

    python -m bench.relay            # all of it, some minutes
    python -m bench.relay --quick    # a first impression, under 90 seconds
"""

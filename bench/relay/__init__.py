"""What a relay costs: Weir's sidecar beside Rust routers, Envoy and a relay that decides nothing.

One run starts one engine (`engine.py`, a process that costs little and stamps what it sends),
one load generator (`load.py`, another process) and every relay of `targets.py`. Loads (`plan.py`)
and relays are measured in random order, several times, and the tables show medians.

Two kinds of load are needed. A paced one leaves the relay idle between requests; cold caches and
wake-ups decide its cost. A saturated one never lets it wait, and the work decides. Plain requests
are saturated by a closed loop: the engine answers at once. Streams are saturated by a closed loop
of chunks: the next leaves when one has been read, so that no relay looks cheap because many chunks
come in one read.

The relays:

    floor            a splice of our own: a connection to the engine for each of a client's, and
                     bytes moved as they come
    weir             the sidecar as in a pod: a tenant's API key, classes, the engine's facts and
                     its step log (100 steps a second, or one for each token of a stream)
    weir-tracing     the same; every request is sampled, spans go to a process that forgets them
    weir-forwarded   a gateway that forwards all to the one replica behind it; the cost of both
    weir-beside      the same as weir, from the folder of --beside
    sglang-router    --policy round_robin
    vllm-router      --policy random
    smg              --policy round_robin, its priority scheduler with its built-in classes and
                     4,096 slots
    envoy            one worker thread, one route, default settings

Each router has one worker and no log line per request. The sidecar and the floor reach the engine
over a Unix socket, as in a pod; the others over TCP, as in front of replicas. In a saturated plain
load the step log names a prompt after its answer, because the answer takes no step.

The columns:

    CPU us                 user and system time of the relay's processes in the window, from the
                           kernel's clock, over the requests or chunks that came through in it.
                           What a relay does besides, such as polling health, is in it
    x best router          that over the cheapest of sglang-router, vllm-router and smg
    a second of one core   the requests or chunks that a second of CPU is enough for
    added p50, p99         from sending a request until the engine has all of it, plus from the
                           engine's first token until it arrives. The engine stamps both on the
                           clock that the load generator reads, so its own time cancels out; the
                           median of a direct connection is subtracted
    added p50, chunk       the way of every later token
    failures               answers with another status than 200, streams that miss events,
                           connections that broke

Not measured: waiting in a queue (the engine says that it has room for all), several replicas, TLS,
slow clients, real vLLM, relays on more than one core.
"""

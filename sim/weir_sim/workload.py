"""Who asks for what, and when: seeded, so that the same seed gives the same requests.

A workload is arrivals (Poisson, or bursts by a gamma distribution) x lengths (log-normal, or drawn
from a trace) x a mix of classes and tenants. `sessions` are conversations of several turns whose
prompts grow by what was said before, with the prefix shared. A trace is replayed as it is, at a
chosen speed, with classes and tenants drawn from the mix.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final

from weir_sim.kv import SHARED_TOKENS

BYTES_PER_TOKEN: Final = 4
"""Of every simulated prompt; an estimator begins with the same guess."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request of a workload.

    Attributes:
        hash_ids: Content of its prompt, one id for each whole `SHARED_TOKENS` tokens.
        session: Requests of one session share a prefix.
    """

    request_id: str
    arrival_s: float
    tenant: str
    class_name: str
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    session: str = ""


@dataclass(frozen=True, slots=True)
class LengthModel:
    """Log-normal lengths, by their median and the factor from it to the 99th percentile.

    The defaults follow Azure's conversation trace of 2023 (median 1020 and p99 4142 prompt
    tokens, 129 and 601 output tokens).
    """

    prompt_median: float = 1020.0
    prompt_p99: float = 4142.0
    output_median: float = 129.0
    output_p99: float = 601.0
    most_prompt_tokens: int = 120_000
    most_output_tokens: int = 8_192

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Return prompt and output tokens."""
        prompt = _log_normal(rng, self.prompt_median, self.prompt_p99)
        output = _log_normal(rng, self.output_median, self.output_p99)
        return min(prompt, self.most_prompt_tokens), min(output, self.most_output_tokens)


LONG_PROMPTS = LengthModel(prompt_median=60_000, prompt_p99=110_000)
"""Whole books, as an adversary or a nightly batch sends them."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One tenant's requests of one class.

    Attributes:
        share: Part of all requests, relative to the other streams' shares.
        lengths: Of its requests; None takes the workload's.
    """

    class_name: str
    tenant: str
    share: float
    lengths: LengthModel | None = None


def mix(**shares: float) -> tuple[Stream, ...]:
    """Return one stream per class, each of a tenant of its own."""
    return tuple(Stream(name, f"tenant-{name}", share) for name, share in shares.items())


STANDARD_MIX = mix(interactive=0.2, standard=0.5, batch=0.3)

ADVERSARIAL_MIX = (
    Stream("interactive", "chat", 0.2),
    Stream("standard", "greedy", 0.4),
    Stream("standard", "small-1", 0.05),
    Stream("standard", "small-2", 0.05),
    Stream("batch", "nightly", 0.296),
    Stream("batch", "books", 0.004, LONG_PROMPTS),
)
"""The same classes, with a tenant that sends eight times its neighbours, and whole books."""


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """A synthetic workload.

    Attributes:
        rate: Requests per second, over all streams.
        duration_s: Arrivals end then.
        burstiness: Coefficient of variation of the time between arrivals; 1 is Poisson.
        turns: Turns of a conversation; 1 is unrelated requests.
        think_s: Mean pause between an expected answer and the next turn.
    """

    rate: float
    duration_s: float
    streams: tuple[Stream, ...] = STANDARD_MIX
    lengths: LengthModel = field(default_factory=LengthModel)
    burstiness: float = 1.0
    turns: int = 1
    think_s: float = 20.0


def generate(spec: WorkloadSpec, seed: int) -> list[SimRequest]:
    """Return the requests of `spec`, in order of arrival."""
    rng = random.Random(f"workload-{seed}")
    bounds = list(accumulate(stream.share for stream in spec.streams))
    shape = 1.0 / spec.burstiness**2
    requests: list[SimRequest] = []
    starts = spec.rate / spec.turns
    instant = rng.gammavariate(shape, 1.0 / (shape * starts))
    while instant < spec.duration_s:
        stream = spec.streams[_pick(bounds, rng)]
        requests += _conversation(spec, stream, instant, len(requests), rng)
        instant += rng.gammavariate(shape, 1.0 / (shape * starts))
    requests.sort(key=lambda request: (request.arrival_s, request.request_id))
    return requests


def _conversation(
    spec: WorkloadSpec, stream: Stream, instant: float, first: int, rng: random.Random
) -> list[SimRequest]:
    lengths = stream.lengths or spec.lengths
    turns: list[SimRequest] = []
    said = 0
    session = f"s{first}"
    for turn in range(spec.turns):
        prompt, output = lengths.draw(rng)
        said += prompt
        hash_ids: tuple[int, ...] = ()
        if spec.turns > 1:
            # Ids of this session's content; the first is unique to it, the chain is stable.
            hash_ids = tuple(first * 100_000 + block for block in range(said // SHARED_TOKENS))
        turns.append(
            SimRequest(
                request_id=f"r{first + turn}",
                arrival_s=instant,
                tenant=stream.tenant,
                class_name=stream.class_name,
                prompt_tokens=said,
                output_tokens=output,
                hash_ids=hash_ids,
                session=session if spec.turns > 1 else "",
            )
        )
        said += output
        instant += output * 0.03 + rng.expovariate(1.0 / spec.think_s)
    return [turn for turn in turns if turn.arrival_s < spec.duration_s]


def replay(
    trace: Sequence[SimRequest],
    streams: Sequence[Stream],
    seed: int,
    speed: float = 1.0,
    duration_s: float = math.inf,
) -> list[SimRequest]:
    """Return a trace's requests at `speed` times its pace.

    Classes and tenants come from `streams`; without any, they stay the trace's own.
    """
    rng = random.Random(f"replay-{seed}")
    bounds = list(accumulate(stream.share for stream in streams))
    requests: list[SimRequest] = []
    for request in trace:
        instant = request.arrival_s / speed
        if instant >= duration_s:
            break
        tenant, class_name = request.tenant, request.class_name
        if streams:
            stream = streams[_pick(bounds, rng)]
            tenant, class_name = stream.tenant, stream.class_name
        requests.append(replace(request, arrival_s=instant, tenant=tenant, class_name=class_name))
    return requests


def _pick(bounds: Sequence[float], rng: random.Random) -> int:
    point = rng.random() * bounds[-1]
    return next(index for index, bound in enumerate(bounds) if point < bound)


def _log_normal(rng: random.Random, median: float, p99: float) -> int:
    sigma = math.log(p99 / median) / 2.3263478740408408
    return max(1, round(rng.lognormvariate(math.log(median), sigma)))

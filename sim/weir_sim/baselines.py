"""What Weir is compared with: other ways to stand before an engine, and to choose a replica.

Each is a model of one behaviour, in the same simulator and against the same engine, and cites
what it models. None is a claim about a whole product: an implementation has latencies, bugs and
features that a model leaves out.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from weir_core.sched.types import (
    Action,
    ClassPolicy,
    Dispatch,
    EngineFacts,
    Reason,
    Reject,
    Request,
    StepRecord,
)
from weir_sim.workload import SimRequest


class Front(Protocol):
    """What stands before one engine: told events, answers with actions, like the scheduler."""

    def on_arrival(self, request: Request, now: float) -> list[Action]:
        """Take in a request."""
        ...

    def on_first_token(self, request_id: str, now: float) -> list[Action]:
        """Note a first token."""
        ...

    def on_tokens(self, request_id: str, count: int, now: float) -> list[Action]:
        """Note more tokens."""
        ...

    def on_finish(self, request_id: str, now: float) -> list[Action]:
        """Note the end of an answer."""
        ...

    def on_step(self, record: StepRecord, now: float) -> list[Action]:
        """Note an engine step."""
        ...

    def on_tick(self, now: float) -> list[Action]:
        """Let time pass."""
        ...

    def next_tick(self, now: float) -> float | None:
        """Return when `on_tick` is due, or None."""
        ...

    def backlog(self) -> int:
        """Return how many requests wait here."""
        ...


class PassThrough:
    """Sends everything to the engine at once, with its rank.

    Models a plain reverse proxy, vLLM's production-stack router, sglang-router and vllm-router in
    their default configuration: the engine's own queue is the only queue.
    """

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self._ranks = ranks

    def on_arrival(self, request: Request, now: float) -> list[Action]:
        """Dispatch."""
        rank = self._ranks.get(request.class_name, 0)
        return [Dispatch(request.request_id, rank, now - request.arrival_s)]

    def on_first_token(self, request_id: str, now: float) -> list[Action]:  # noqa: ARG002
        """Nothing to do."""
        return []

    def on_tokens(self, request_id: str, count: int, now: float) -> list[Action]:  # noqa: ARG002
        """Nothing to do."""
        return []

    def on_finish(self, request_id: str, now: float) -> list[Action]:  # noqa: ARG002
        """Nothing to do."""
        return []

    def on_step(self, record: StepRecord, now: float) -> list[Action]:  # noqa: ARG002
        """Nothing to do."""
        return []

    def on_tick(self, now: float) -> list[Action]:  # noqa: ARG002
        """Nothing to do."""
        return []

    def next_tick(self, now: float) -> float | None:  # noqa: ARG002
        """Never."""
        return None

    def backlog(self) -> int:
        """Nothing waits here."""
        return 0


class ClassSlots(PassThrough):
    """A fixed number of concurrent requests per class, each with a queue that times out.

    Models the priority admission of SMG (the SGLang model gateway) 1.13: reserved slots per
    class, a bounded FIFO queue behind each, and a refusal when the queue is full or too slow.
    Slots that a class does not use are not lent.
    """

    def __init__(
        self,
        classes: Sequence[ClassPolicy],
        engine: EngineFacts,
        shares: Mapping[str, float],
        queue_length: int = 1000,
        timeout_s: float = 60.0,
    ) -> None:
        super().__init__({policy.name: policy.rank for policy in classes})
        total = sum(shares.values())
        self._free = {
            name: max(1, int(engine.max_num_seqs * share / total)) for name, share in shares.items()
        }
        self._queue_length = queue_length
        self._timeout_s = timeout_s
        self._queues: dict[str, deque[Request]] = {name: deque() for name in shares}
        self._class_of: dict[str, str] = {}

    def on_arrival(self, request: Request, now: float) -> list[Action]:
        """Dispatch into a free slot of the class, else queue."""
        queue = self._queues[request.class_name]
        if len(queue) >= self._queue_length:
            return [Reject(request.request_id, Reason.QUEUE_FULL, 1.0)]
        queue.append(request)
        return self._pump(now)

    def on_finish(self, request_id: str, now: float) -> list[Action]:
        """Give the slot to the next of its class."""
        self._free[self._class_of.pop(request_id)] += 1
        return self._pump(now)

    def on_tick(self, now: float) -> list[Action]:
        """Refuse what timed out."""
        return self._pump(now)

    def next_tick(self, now: float) -> float | None:  # noqa: ARG002
        """Return when the next head times out."""
        heads = [queue[0].arrival_s for queue in self._queues.values() if queue]
        return min(heads) + self._timeout_s if heads else None

    def backlog(self) -> int:
        """Return all that is queued."""
        return sum(len(queue) for queue in self._queues.values())

    def _pump(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, queue in self._queues.items():
            while queue and now >= queue[0].arrival_s + self._timeout_s:
                actions.append(Reject(queue.popleft().request_id, Reason.TTL_EXPIRED, 1.0))
            while queue and self._free[name] > 0:
                request = queue.popleft()
                self._free[name] -= 1
                self._class_of[request.request_id] = name
                actions += super().on_arrival(request, now)
        return actions


@dataclass(slots=True)
class ReplicaView:
    """What a router may know of a replica.

    Attributes:
        outstanding: Requests sent to it and not ended, exact.
        prompt_tokens: Prompt tokens sent to it that it has to compute, exact.
        scraped_queue: Engine queue length at the last scrape.
        scraped_kv_ratio: KV cache usage at the last scrape, 0 to 1.
    """

    outstanding: int = 0
    prompt_tokens: int = 0
    scraped_queue: int = 0
    scraped_kv_ratio: float = 0.0


class Router(Protocol):
    """Chooses the replica of a request."""

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the index of a replica."""
        ...


class RandomRouter:
    """Uniformly random: a Kubernetes Service."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:  # noqa: ARG002
        """Return any replica."""
        return self._rng.randrange(len(replicas))


class RoundRobin:
    """One after the other: the default of most reverse proxies."""

    def __init__(self, rng: random.Random) -> None:  # noqa: ARG002 - all routers are made alike
        self._next = -1

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:  # noqa: ARG002
        """Return the next replica."""
        self._next = (self._next + 1) % len(replicas)
        return self._next


class LeastRequest:
    """Fewest outstanding requests, exactly known, ties at random: of all replicas."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:  # noqa: ARG002
        """Return one of the least loaded replicas."""
        least = min(view.outstanding for view in replicas)
        tied = [index for index, view in enumerate(replicas) if view.outstanding == least]
        return tied[0] if len(tied) == 1 else self._rng.choice(tied)


class PowerOfTwo:
    """The one with fewer outstanding requests of two drawn at random.

    Models Envoy's LEAST_REQUEST with its default of two choices, and the policy `power_of_two` of
    sglang-router, by exact counts.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:  # noqa: ARG002
        """Return the less loaded of two."""
        one, other = self._rng.randrange(len(replicas)), self._rng.randrange(len(replicas))
        return one if replicas[one].outstanding <= replicas[other].outstanding else other


class WeightedScores:
    """Queue depth, KV usage and prefix affinity, weighted 2 : 2 : 3, from scraped metrics.

    Models the default scorers of llm-d's endpoint picker (queue-scorer, kv-cache-utilization-
    scorer, prefix-cache-scorer, max-score picker). It remembers which prefixes it sent where;
    queue and KV usage are as old as the last scrape.
    """

    def __init__(self, rng: random.Random, remembered: int = 200_000) -> None:
        self._rng = rng
        self._remembered = remembered
        self._sent: list[OrderedDict[int, None]] = []

    def choose(self, request: SimRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the replica with the highest score."""
        while len(self._sent) < len(replicas):
            self._sent.append(OrderedDict())
        queues = [view.scraped_queue for view in replicas]
        low, high = min(queues), max(queues)
        best: list[int] = []
        best_score = -1.0
        for index, view in enumerate(replicas):
            queue = 1.0 if high == low else (high - view.scraped_queue) / (high - low)
            prefix = self._hit_ratio(request, index)
            score = 2 * queue + 2 * (1 - view.scraped_kv_ratio) + 3 * prefix
            if score > best_score + 1e-9:
                best, best_score = [index], score
            elif score > best_score - 1e-9:
                best.append(index)
        chosen = best[0] if len(best) == 1 else self._rng.choice(best)
        self._remember(request, chosen)
        return chosen

    def _hit_ratio(self, request: SimRequest, index: int) -> float:
        found = 0
        for block in request.hash_ids:
            if block not in self._sent[index]:
                break
            found += 1
        return found / len(request.hash_ids) if request.hash_ids else 0.0

    def _remember(self, request: SimRequest, index: int) -> None:
        sent = self._sent[index]
        for block in request.hash_ids:
            sent[block] = None
            sent.move_to_end(block)
        while len(sent) > self._remembered:
            sent.popitem(last=False)

"""What sidecars are told of classes, tenants, modes, limits and names: one document a service.

The operator, or `weir up`, makes it of the resources users write and puts it where every sidecar
of the service reads it as a file. A change of it reaches running sidecars; no pod is replaced
for it. The scheduler knows no resource types and the resource types no scheduler; this is the
one place that knows both.

Sidecars may be older than whoever wrote the document: fields they do not know are ignored, and
every field but a name has a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from weir_core.api.engine import Scheduling
from weir_core.api.priorityclass import InferencePriorityClass
from weir_core.api.tenant import InferenceTenant
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, TenantPolicy
from weir_core.step.mode import BUILT_IN_TPOT_S, Mode
from weir_core.units import parse_duration

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MAX_RANK: Final = 1_000_000
"""The engine's priority fits 64 bits up to it."""
_ROUNDING: Final = 1e-9


class EngineMode(msgspec.Struct, frozen=True):
    """How the engine divides its steps; `spec.engine.scheduling`.

    Attributes:
        mode: `latency`, `throughput` or `custom`.
        class_shares: With `custom`: class name to its share of each step, 0 to 1.
        tpot_floor_s: Never plan steps shorter than this, in seconds.
        class_tpot_s: Rank to the TPOT target its decodes are held to, in seconds; none stands
            for those of the built-in classes.
        class_ranks: Class name to rank, for `class_shares`: engines know ranks only.
    """

    mode: str = "latency"
    class_shares: dict[str, float] = {}
    tpot_floor_s: float | None = None
    class_tpot_s: dict[int, float] = {}
    class_ranks: dict[str, int] = {}

    def for_steps(self) -> Mode:
        """Return what the engine's planner divides by; a mode it does not know is `latency`."""
        kind: Literal["latency", "throughput", "custom"] = "latency"
        if self.mode in {"throughput", "custom"}:
            kind = self.mode  # type: ignore[assignment]
        return Mode(
            kind=kind,
            tpot_s=self.class_tpot_s or BUILT_IN_TPOT_S,
            shares={
                self.class_ranks[name]: share
                for name, share in self.class_shares.items()
                if name in self.class_ranks
            },
            tpot_floor_s=self.tpot_floor_s or 0.0,
        )


class TenantEntry(msgspec.Struct, frozen=True):
    """A tenant: its policy, and how it is known.

    Attributes:
        policy: Its name, share and bounds, for the scheduler.
        default_class: Class of its requests that name none.
        max_class: Highest class it may ask for.
        delegates: It may name another tenant to be accounted for, as a gateway does.
        key_hashes: SHA-256 of its API keys, in lower-case hex.
        key_names: What the Secret calls each of these; empty in documents of earlier versions.
    """

    policy: TenantPolicy
    default_class: str
    max_class: str
    delegates: bool = False
    key_hashes: tuple[str, ...] = ()
    key_names: tuple[str, ...] = ()


class PeerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica's sidecar.

    Attributes:
        name: Of the pod.
        address: Where its peer port is reached, HOST:PORT.
        serves: It has an engine; a gateway has none.
    """

    name: str
    address: str
    serves: bool = True


class AdapterEntry(msgspec.Struct, frozen=True):
    """A LoRA adapter that engines are to serve.

    Attributes:
        name: That clients ask for.
        uri: Where its weights come from.
    """

    name: str
    uri: str


class PolicyDocument(msgspec.Struct, frozen=True):
    """All that the sidecars of one InferenceService are told.

    Attributes:
        classes: The cluster's priority classes; none stands for the built-in ones.
        tenants: The tenants of the service's namespace.
        default_class: Class of requests that name none and whose tenant has none.
        accepted_classes: Classes this service accepts; none stands for all.
        anonymous_class: Class of requests without an API key, from anywhere, and the highest
            they may ask for. None refuses them; under `weir up` this machine is served while
            there are no tenants.
        engine: How the engine divides its steps.
        keep_alive_s: Wait after which a stream gets its head, and the time between its comments,
            in seconds; None sends nothing before the answer.
        peers: The sidecars of the service that have an address, this one among them.
        peer_keys: Secrets by which its sidecars know each other, 64 lower-case hex digits each,
            the newest first. The first is shown, all are accepted. None stands for no peers.
        max_queued: Requests that wait in one replica at most; None leaves it to the sidecar.
        max_body_bytes: Largest request body; None leaves it to the sidecar.
        aliases: Further names of the model.
        adapters: The adapters beside it.
    """

    classes: tuple[ClassPolicy, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    default_class: str = "standard"
    accepted_classes: tuple[str, ...] = ()
    anonymous_class: str | None = None
    engine: EngineMode = EngineMode()
    keep_alive_s: float | None = None
    peers: tuple[PeerEntry, ...] = ()
    peer_keys: tuple[str, ...] = ()
    max_queued: int | None = None
    max_body_bytes: int | None = None
    aliases: tuple[str, ...] = ()
    adapters: tuple[AdapterEntry, ...] = ()

    def __repr__(self) -> str:
        """Return the fields but for the keys, which are secret."""
        shown = (name for name in self.__struct_fields__ if name != "peer_keys")
        return f"PolicyDocument({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def encode(self) -> bytes:
        """Return the document as JSON; equal documents give equal bytes."""
        return msgspec.json.encode(self, order="deterministic")

    def mode_message(self) -> bytes:
        """Return what an engine is sent: its mode, with the ranks and targets of the classes."""
        classes = self.classes or BUILT_IN_CLASSES
        mode = msgspec.structs.replace(
            self.engine,
            class_ranks={one.name: one.rank for one in classes},
            class_tpot_s={
                one.rank: one.tpot_target_s for one in classes if one.tpot_target_s is not None
            },
        )
        return msgspec.json.encode(mode)

    @classmethod
    def decode(cls, data: bytes) -> PolicyDocument:
        """Read a document.

        Raises:
            ValueError: It is not one, or not one that a sidecar can work with; the message says
                where.
        """
        document = msgspec.json.decode(data, type=cls)
        fault = next(document.faults(), None)
        if fault is not None:
            raise ValueError(fault)
        return document

    def faults(self) -> Iterator[str]:
        """Yield what makes the document one that a sidecar cannot work with, as sentences."""
        classes = self.classes or BUILT_IN_CLASSES
        yield from _class_faults(classes)
        names = {one.name for one in classes}
        named = [("default_class", self.default_class)]
        named += [(f"accepted_classes[{at}]", one) for at, one in enumerate(self.accepted_classes)]
        named += [("anonymous_class", self.anonymous_class)] if self.anonymous_class else []
        for entry in self.tenants:
            of = f"tenant {entry.policy.name}: "
            named += [(f"{of}default_class", entry.default_class)]
            named += [(f"{of}max_class", entry.max_class)]
        for field, name in named:
            if name not in names:
                yield f"{field}: there is no class {name}"
        yield from _tenant_faults(self.tenants)
        if not all(_HASH.fullmatch(key) for key in self.peer_keys):
            yield "peer_keys: a key is not 64 lower-case hex digits"
        yield from self._other_faults()

    def _other_faults(self) -> Iterator[str]:
        bounds = {"max_queued": self.max_queued, "max_body_bytes": self.max_body_bytes}
        for field, bound in bounds.items():
            if bound is not None and bound < 1:
                yield f"{field} {bound} is not above 0"
        repeated = _repeated([*self.aliases, *(each.name for each in self.adapters)])
        if repeated is not None:
            yield f"{repeated} names two of the aliases and adapters"


def _class_faults(classes: Sequence[ClassPolicy]) -> Iterator[str]:
    """Yield what no scheduler can work with."""
    repeated = _repeated(one.name for one in classes)
    if repeated is not None:
        yield f"class {repeated} is there twice"
    for one in classes:
        of = f"class {one.name}: "
        if abs(one.rank) > _MAX_RANK:
            yield f"{of}rank {one.rank} is beyond {_MAX_RANK}"
        if not 0 <= one.min_share <= 1:
            yield f"{of}min_share {one.min_share:g} is not between 0 and 1"
        targets = (one.ttft_target_s, one.tpot_target_s)
        if not one.weight > 0 or any(each is not None and each <= 0 for each in targets):
            yield f"{of}its weight or a target is not above 0"
        if one.max_queue_wait_s < 0:
            yield f"{of}max_queue_wait_s {one.max_queue_wait_s:g} is below 0"
    total = sum(one.min_share for one in classes)
    if total > 1 + _ROUNDING:
        yield f"the min_shares of the classes add up to {total:g}, which is more than 1"


def _tenant_faults(tenants: Sequence[TenantEntry]) -> Iterator[str]:
    """Yield what no tenant can be known or bounded by; no message quotes a hash."""
    repeated = _repeated(entry.policy.name for entry in tenants)
    if repeated is not None:
        yield f"tenant {repeated} is there twice"
    owners: dict[str, str] = {}
    for entry in tenants:
        name, policy = entry.policy.name, entry.policy
        limits = (policy.max_requests, policy.tokens_per_minute)
        if not policy.weight > 0 or any(each is not None and each < 1 for each in limits):
            yield f"tenant {name}: its weight or a limit is not above 0"
        for digest in entry.key_hashes:
            if not _HASH.fullmatch(digest):
                yield f"tenant {name}: a key hash is not 64 lower-case hex digits"
            owner = owners.setdefault(digest, name)
            if owner != name:
                yield f"tenants {owner} and {name} have one key"


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def class_policy(resource: InferencePriorityClass) -> ClassPolicy:
    """Return the scheduling policy of a priority class, under the resource's name."""
    spec = resource.spec
    return ClassPolicy(
        name=resource.metadata.name,
        rank=spec.rank,
        weight=spec.weight,
        min_share=spec.min_share,
        preemptible=spec.preemptible,
        ttft_target_s=_seconds(spec.ttft_target_ms),
        tpot_target_s=_seconds(spec.tpot_target_ms),
        max_queue_wait_s=parse_duration(spec.max_queue_wait),
        shed=spec.shed,
    )


def tenant_policy(resource: InferenceTenant) -> TenantPolicy:
    """Return the scheduling policy of a tenant, under the resource's name."""
    limits = resource.spec.limits
    return TenantPolicy(
        name=resource.metadata.name,
        weight=resource.spec.weight,
        max_requests=limits.max_requests,
        tokens_per_minute=limits.tokens_per_minute,
    )


def engine_mode(scheduling: Scheduling) -> EngineMode:
    """Return what a spec says of the engine's steps."""
    return EngineMode(
        mode=scheduling.mode,
        class_shares=dict(scheduling.class_shares),
        tpot_floor_s=_seconds(scheduling.tpot_floor_ms),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0

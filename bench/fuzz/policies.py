"""What sidecars of the fuzz are set to and told: settings, policy documents, engine facts."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.fuzz import requests
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, TenantPolicy
from weir_core.wire.cors import Cors
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_core.wire.steps import Facts
from weir_sidecar.settings import (
    Addresses,
    Draining,
    Health,
    Identity,
    Limits,
    Peering,
    Policies,
    Settings,
    Timeouts,
    Tokenizing,
)

API_PORT: Final = 8000
ADMIN_PORT: Final = 8001
PEER_PORT: Final = 8002
_LIMITS: Final = Limits(
    max_body_bytes=256 << 10,
    max_headers=200,
    max_header_bytes=16 << 10,
    max_requests=12,
    idle_connections=8,
    unscheduled=6,
    unscheduled_per_tenant=3,
)
_TIMEOUTS: Final = Timeouts(
    first_byte_s=8.0, progress_s=5.0, upload_s=4.0, slow_client_s=4.0, client_idle_s=6.0, head_s=3.0
)
_DRAINING: Final = Draining(grace_period_s=6.0, lame_duck_s=1.0, margin_s=1.0)
_GOLD: Final = ClassPolicy(
    "gold", rank=7, preemptible=True, min_share=0.3, ttft_target_s=0.5, max_queue_wait_s=3.0
)
_CLASSES: Final = ((), (), (*BUILT_IN_CLASSES, _GOLD), (BUILT_IN_CLASSES[1], _GOLD))
_BROKEN_DOCUMENTS: Final = (
    b"", b"{", b'{"classes":[{"name":"a"}]}', b'{"default_class":"none"}', b"\xff", b"[]",
)  # fmt: skip
_VERSIONS: Final = itertools.count(1)
"""Times of change of the documents: those of the file system are too coarse to differ."""


def settings(rng: random.Random, name: str, host: str, folder: Path) -> Settings:
    """Return what the environment of a sidecar says."""
    folder.mkdir(exist_ok=True)
    return Settings(
        identity=Identity(pod=name),
        addresses=Addresses(host, API_PORT, ADMIN_PORT, folder, PEER_PORT),
        limits=replace(_LIMITS, max_held_bytes=rng.choice((64 << 10, 1 << 20))),
        timeouts=_TIMEOUTS,
        health=Health(poll_s=1.0, timeout_s=1.0, stall_s=rng.choice((4.0, 60.0))),
        draining=_DRAINING,
        tokenizing=Tokenizing(min_bytes=2048, timeout_s=0.5, at_once=2),
        policies=Policies(folder / "policies", poll_s=0.5),
        peering=Peering(idle_s=4.0),
        cors=Cors(origins=rng.choice(((), ("*",), ("https://page",)))),
    )


def document(rng: random.Random) -> PolicyDocument:
    """Return classes, tenants and switches that a sidecar can work with."""
    classes = rng.choice(_CLASSES)
    names = [each.name for each in classes or BUILT_IN_CLASSES]
    tenants = []
    for name in requests.KEYS:
        if rng.random() < 0.95:
            policy = TenantPolicy(
                name,
                weight=rng.choice((1.0, 5.0)),
                max_requests=rng.choice((None, None, None, None, 1, 4)),
                tokens_per_minute=rng.choice((None, None, None, None, None, 2000)),
            )
            default, most = rng.choice(names), rng.choice(names)
            digest = requests.HASHES[name]
            tenants.append(TenantEntry(policy, default, most, name == "gate", (digest,)))
    return PolicyDocument(
        classes=classes,
        tenants=() if rng.random() < 0.1 else tuple(tenants),
        default_class=rng.choice(names),
        accepted_classes=() if rng.random() < 0.85 else (rng.choice(names),),
        anonymous_class=rng.choice((None, rng.choice(names))),
        keep_alive_s=rng.choice((None, None, 0.3)),
    )


def broken_document(rng: random.Random) -> bytes:
    """Return one that cannot be used."""
    return rng.choice(_BROKEN_DOCUMENTS)


def write(told: Settings, written: bytes) -> None:
    """Put a document where a sidecar looks for it."""
    folder = told.policies.directory
    folder.mkdir(exist_ok=True)
    new = folder / "new"
    new.write_bytes(written)
    version = next(_VERSIONS)
    os.utime(new, ns=(version, version))
    new.rename(told.policies.file)


def write_facts(rng: random.Random, told: Settings) -> None:
    """Let the engine say what it is, or nothing, or nonsense."""
    path = told.addresses.facts_file
    chance = rng.random()
    if chance < 0.1:
        path.unlink(missing_ok=True)
        return
    facts = Facts(
        rng.choice(("weir", "priority", "fcfs")),
        rng.choice((1, 2, 4, 16)),
        rng.choice((64, 2048)),
        rng.choice((0, 300, 5000, 100_000)),
    )
    path.write_bytes(b"{broken" if chance < 0.15 else facts.encode())

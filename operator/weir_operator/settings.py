"""What the operator is told from outside, by topic; all of it comes from the environment.

| variable | default | meaning |
|---|---|---|
| WEIR_SIDECAR_IMAGE | weir:latest | image of the sidecar container |
| WEIR_ENGINE_IMAGE | weir-engine:latest | image of engine and model containers |
| WEIR_ENGINE_CPU_IMAGE | weir-engine-cpu:latest | the same in pools without accelerators |
| WEIR_USER_IDS | fixed | `assigned` where the platform gives pods their user ids (OpenShift) |
| WEIR_ALLOW_FROM, WEIR_SCRAPE_FROM | (any) | where spec.network leaves them out, as JSON |
| WEIR_NAMESPACES | (all) | namespaces to watch, comma-separated |
| WEIR_WORKERS | 4 | passes that may run at once |
| WEIR_RESYNC_S | 300 | seconds between passes nobody asked for |
| WEIR_SCALING_S | 5 | seconds between two looks at what a service that scales has to do |
| WEIR_SCALER_PORT | (none) | port of the scaler for KEDA |
| WEIR_SECRET_GRACE_S | 300 | seconds for which a tenant's keys are taken once its Secret is gone |
| WEIR_LEASE_NAME | weir-operator | Lease that only one operator holds |
| WEIR_LEASE_S | 15 | seconds after which a silent holder is replaced |
| WEIR_LOG_LEVEL | INFO | least severe level to log |
| POD_NAME, POD_NAMESPACE | host name, default | who this operator is |
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from weir_core.api.labels import METRICS_PORT
from weir_core.api.network import NetworkSpec
from weir_core.api.reading import read
from weir_core.errors import InvalidSpec
from weir_core.units import Seconds
from weir_operator.parts.policies import SECRET_GRACE
from weir_operator.render import Access, Images


@dataclass(frozen=True)
class Watching:
    """What is watched, and how eagerly."""

    namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""

    workers: int = 4
    """Passes at once. Each waits for the API server most of its time; more only hurry it."""

    resync: Seconds = Seconds(300.0)
    """In seconds. Watches tell of changes at once; this catches what a watch could not see."""

    scaling: Seconds = Seconds(5.0)
    """In seconds, between two looks at the work of a service that scales."""

    secret_grace: Seconds = SECRET_GRACE
    """In seconds, for which a tenant's keys are taken once its Secret is gone."""


@dataclass(frozen=True)
class Leadership:
    """The Lease that keeps two operators from fighting."""

    name: str = "weir-operator"
    namespace: str = "default"
    identity: str = "weir-operator"

    duration: Seconds = Seconds(15.0)
    """In seconds. A standby takes over when the holder was silent for this long; a holder that
    could not renew stops before that."""

    @property
    def renew_interval(self) -> Seconds:
        """Seconds between renewals; three may fail before the Lease is lost."""
        return Seconds(self.duration / 5)


@dataclass(frozen=True)
class Settings:
    """All of it."""

    images: Images
    access: Access
    watching: Watching
    leadership: Leadership
    log_level: str = "INFO"
    port: int = METRICS_PORT
    """Metrics and probes."""

    scaler_port: int = 0
    """Of the scaler for KEDA; 0: there is none."""


def from_environment(env: Mapping[str, str]) -> Settings:
    """Return the settings in `env`.

    Raises:
        InvalidSpec: A variable is not of its kind; the error names it.
    """
    defaults = Watching()
    return Settings(
        images=Images(
            sidecar=env.get("WEIR_SIDECAR_IMAGE") or Images.sidecar,
            engine=env.get("WEIR_ENGINE_IMAGE") or Images.engine,
            engine_cpu=env.get("WEIR_ENGINE_CPU_IMAGE") or Images.engine_cpu,
            assigned_users=_assigned_users(env),
        ),
        access=_access(env),
        watching=Watching(
            namespaces=tuple(
                name.strip() for name in env.get("WEIR_NAMESPACES", "").split(",") if name.strip()
            ),
            workers=math.ceil(_number(env, "WEIR_WORKERS", defaults.workers)),
            resync=Seconds(_number(env, "WEIR_RESYNC_S", defaults.resync)),
            scaling=Seconds(_number(env, "WEIR_SCALING_S", defaults.scaling)),
            secret_grace=Seconds(_number(env, "WEIR_SECRET_GRACE_S", defaults.secret_grace)),
        ),
        leadership=Leadership(
            name=env.get("WEIR_LEASE_NAME") or Leadership.name,
            namespace=env.get("POD_NAMESPACE") or Leadership.namespace,
            identity=env.get("POD_NAME") or socket.gethostname(),
            duration=Seconds(_number(env, "WEIR_LEASE_S", Leadership.duration)),
        ),
        scaler_port=math.ceil(_number(env, "WEIR_SCALER_PORT", Settings.scaler_port)),
        log_level=(env.get("WEIR_LOG_LEVEL") or "INFO").upper(),
    )


def _assigned_users(env: Mapping[str, str]) -> bool:
    word = env.get("WEIR_USER_IDS") or "fixed"
    if word not in {"fixed", "assigned"}:
        raise InvalidSpec("WEIR_USER_IDS", f"{word!r} is neither `fixed` nor `assigned`")
    return word == "assigned"


def _access(env: Mapping[str, str]) -> Access:
    written = {}
    for field, name in (("allowFrom", "WEIR_ALLOW_FROM"), ("scrapeFrom", "WEIR_SCRAPE_FROM")):
        if env.get(name):
            try:
                written[field] = json.loads(env[name])
            except ValueError as error:
                raise InvalidSpec(name, f"is not JSON: {error}") from error
    default = read(NetworkSpec, written, "networkPolicy")
    return Access(default, env.get("POD_NAMESPACE") or Leadership.namespace)


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:  # nor is nan
        raise InvalidSpec(name, f"{text!r} is not a number above 0")
    return value

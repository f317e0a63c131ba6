"""What the sidecar is told by its environment, in frozen pieces by topic.

Names that other parts set live in `weir_core.api.labels`; the rest are knobs an operator of a
cluster may turn. Every duration is in seconds and every size in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from weir_core.api import labels
from weir_core.errors import InvalidSpec
from weir_core.wire.addresses import host_and_port
from weir_core.wire.cors import Cors

ANY_ADDRESS: Final = "::"
"""Every address of both families (`listening`)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this replica is; only for metrics, logs and spans."""

    service: str = "weir"
    namespace: str = "default"
    pool: str = "default"
    pod: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the sidecar listens and where it finds its engine."""

    host: str = ANY_ADDRESS
    """Every address of both families by default; 0.0.0.0 for those of IPv4 alone."""
    api_port: int = labels.API_PORT
    """0 lets the kernel choose, for tests."""
    admin_port: int = labels.ADMIN_PORT
    run_dir: Path = Path(labels.RUN_DIR)
    peer_port: int = labels.PEER_PORT
    """Where other sidecars of the service connect; open only where the document has a key."""
    peer_address: str = ""
    """Where they reach that port, HOST:PORT; empty stands for `pod_ip` or `host`, and the port."""
    pod_ip: str = ""

    def advertised(self, port: int) -> str:
        """Return where other sidecars reach this one, which listens for them at `port`.

        Empty where that is not known: then only sidecars that the document tells of it connect.
        """
        if self.peer_address:
            return self.peer_address
        host = self.pod_ip or ("" if self.host in ("0.0.0.0", ANY_ADDRESS) else self.host)
        return host_and_port(host, port) if host else ""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the sidecar, as under `weir up`.

        A pod listens on all of its addresses: there a connection from the loopback may be anyone's
        that a service mesh's proxy passes on.
        """
        return self.host.startswith("127.") or self.host in ("::1", "localhost")

    @property
    def engine_socket(self) -> Path:
        """The engine's only socket."""
        return self.run_dir / labels.ENGINE_SOCKET

    @property
    def adapters_file(self) -> Path:
        """What was fetched of adapters."""
        return self.run_dir / labels.ADAPTERS_FILE

    @property
    def facts_file(self) -> Path:
        """What the engine says of itself."""
        return self.run_dir / labels.FACTS_FILE

    @property
    def steps_socket(self) -> Path:
        """Where the engine tells of its steps."""
        return self.run_dir / labels.STEPS_SOCKET

    @property
    def mode_socket(self) -> Path:
        """Where the engine is told how to divide them."""
        return self.run_dir / labels.MODE_SOCKET

    @property
    def admin_socket(self) -> Path:
        """Where the engine's preStop hook asks for a drain."""
        return self.run_dir / labels.ADMIN_SOCKET


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one replica holds at a time."""

    max_body_bytes: int = 64 << 20
    """Larger requests are 413. 64 MiB carries a few images in base64."""
    max_headers: int = 256
    """Headers of one request; more are 431. vLLM's own bound, as the next."""
    max_header_bytes: int = 4 << 20
    """Request line and headers of one request together; more are 431."""
    max_requests: int = 1024
    """Requests that wait for the engine at once; more are 429, the lowest class first."""
    max_held_bytes: int = 1 << 30
    """Request bodies held at once, together; more are 503. Those that wait may take half."""

    @property
    def max_held(self) -> int:
        """Requests in any state; those being uploaded, waiting and running. More are 429."""
        return 2 * self.max_requests + 1024

    idle_connections: int = 256
    """Engine connections kept for the next request."""
    unscheduled: int = 128
    """Requests at the engine at once that compute nothing there (models, tokenizing); more are
    429."""
    unscheduled_per_tenant: int = 32
    """Of one tenant."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the sidecar waits before it gives up on somebody."""

    connect_s: float = 5.0
    """Opening an engine connection; a local socket answers in microseconds."""
    first_byte_s: float = 1800.0
    """Dispatch to the first byte. A plain answer's first byte is its last, so this bounds the
    whole generation of requests that do not stream."""
    progress_s: float = 300.0
    """Between two bytes of an answer that has begun."""
    upload_s: float = 120.0
    """A client's time to send its body; then 408."""
    slow_client_s: float = 60.0
    """A client's time to take what waits for it; then both sides are aborted."""
    engine_idle_s: float = 4.0
    """An idle engine connection older than this is not used: uvicorn closes them after 5 s."""
    client_idle_s: float = 75.0
    """A client's idle keep-alive connection is closed after this. Longer than what is in front
    keeps its connections, or it sends requests into one that is being closed."""
    head_s: float = 10.0
    """A client's time to send a request's headers, a new connection's silence included; then 408,
    or the end of a connection that sent nothing."""


@dataclass(frozen=True, slots=True)
class Health:
    """When the engine counts as ready, stalled or down."""

    poll_s: float = 1.0
    timeout_s: float = 2.0
    """One answer of the engine's /health. A busy engine may miss some."""
    stall_s: float = 120.0
    """Requests are running, no byte comes and no counter of the engine moves: stalled."""
    retry_after_s: int = 5
    """What refused clients are told while the engine is away."""


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """Which prompts the engine is asked to count before they are queued."""

    min_bytes: int = 64 << 10
    """Smaller bodies are estimated by what their tenant's bytes were worth so far."""
    timeout_s: float = 2.0
    """After this the estimate has to do."""
    at_once: int = 4
    """The engine's API server has other work; more large bodies than this are estimated."""


@dataclass(frozen=True, slots=True)
class Policies:
    """Where classes and tenants come from."""

    directory: Path = Path(labels.POLICIES_DIR)
    poll_s: float = 1.0

    @property
    def file(self) -> Path:
        """The document; there may be none."""
        return self.directory / labels.POLICIES_FILE


@dataclass(frozen=True, slots=True)
class Peering:
    """How sidecars of one service follow each other."""

    min_period_s: float = 0.2
    max_period_s: float = 1.0
    """Between two heartbeats of a pair; few replicas hear of each other more often than many."""
    min_silence_s: float = 1.0
    max_silence_s: float = 5.0
    """Nothing heard for five periods, within these bounds, is silence."""
    forget_s: float = 60.0
    """A silent sidecar that the document does not name is forgotten after this."""
    connect_s: float = 1.0
    """Opening a connection and showing the key."""
    idle_s: float = 60.0
    """An idle connection older than this is not used; less than what `client_idle_s` grants."""
    idle_connections: int = 32
    """Kept for each sidecar."""
    most: int = 1024
    """Sidecars that are known; more are not heard."""

    def period_s(self, peers: int) -> float:
        """Return the time between two heartbeats of a pair, where so many peers are known."""
        return min(self.max_period_s, max(self.min_period_s, peers / 256))

    def silence_s(self, period_s: float) -> float:
        """Return after how long without a word a peer is silent."""
        return max(self.min_silence_s, min(self.max_silence_s, 5.0 * period_s))


@dataclass(frozen=True, slots=True)
class Draining:
    """How the sidecar leaves."""

    grace_period_s: float = 60.0
    """From the first signal to exit; requests still running then are cut."""
    lame_duck_s: float = 5.0
    """Not ready but still accepting, until every endpoint list forgot this replica."""
    margin_s: float = 3.0
    """Kept from the grace period for saying goodbye: flushing buffers, spans, logs."""

    @property
    def deadline_s(self) -> float:
        """Time from the start of a drain until what still runs is cut."""
        return max(self.grace_period_s - self.margin_s, self.grace_period_s / 2)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it."""

    identity: Identity = field(default_factory=Identity)
    addresses: Addresses = field(default_factory=Addresses)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    health: Health = field(default_factory=Health)
    draining: Draining = field(default_factory=Draining)
    tokenizing: Tokenizing = field(default_factory=Tokenizing)
    policies: Policies = field(default_factory=Policies)
    peering: Peering = field(default_factory=Peering)
    cors: Cors = field(default_factory=Cors)
    """Which web pages the engine lets call it."""
    adapter_slots: int = 0
    """Adapters that the engine has room for."""
    log_level: str = "INFO"
    follow_prefixes: bool = False
    """Prefixes of prompts are followed without peers, too: for their metrics."""
    step_file: Path | None = None
    """Where the engine's steps are kept, as JSON lines, for `weir simulate calibrate`; None keeps
    none."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the environment; a value that is not a number is refused by name."""
        read = _Reader(env)
        limits, timeouts, draining, peering = Limits(), Timeouts(), Draining(), Peering()
        return cls(
            identity=Identity(
                service=env.get(labels.ENV_SERVICE, "weir"),
                namespace=env.get(labels.ENV_NAMESPACE, "default"),
                pool=env.get(labels.ENV_POOL, "default"),
                pod=env.get(labels.ENV_POD_NAME, ""),
                model=env.get(labels.ENV_MODEL_NAME, ""),
            ),
            addresses=Addresses(
                host=env.get(labels.ENV_HOST, ANY_ADDRESS),
                api_port=int(read.number("WEIR_API_PORT", labels.API_PORT)),
                admin_port=int(read.number("WEIR_ADMIN_PORT", labels.ADMIN_PORT)),
                run_dir=Path(env.get(labels.ENV_RUN_DIR, labels.RUN_DIR)),
                peer_port=int(read.number("WEIR_PEER_PORT", labels.PEER_PORT)),
                peer_address=env.get("WEIR_PEER_ADDRESS", ""),
                pod_ip=env.get(labels.ENV_POD_IP, ""),
            ),
            limits=Limits(
                max_body_bytes=int(read.number(labels.ENV_MAX_BODY_BYTES, limits.max_body_bytes)),
                max_headers=int(read.number("WEIR_MAX_HEADERS", limits.max_headers)),
                max_header_bytes=int(read.number("WEIR_MAX_HEADER_BYTES", limits.max_header_bytes)),
                max_requests=int(read.number(labels.ENV_MAX_REQUESTS, limits.max_requests)),
                max_held_bytes=int(read.number("WEIR_MAX_HELD_BYTES", limits.max_held_bytes)),
                unscheduled=int(read.number("WEIR_MAX_UNSCHEDULED", limits.unscheduled)),
                unscheduled_per_tenant=int(
                    read.number("WEIR_MAX_UNSCHEDULED_PER_TENANT", limits.unscheduled_per_tenant)
                ),
            ),
            timeouts=Timeouts(
                first_byte_s=read.number("WEIR_FIRST_BYTE_TIMEOUT_S", timeouts.first_byte_s),
                progress_s=read.number("WEIR_PROGRESS_TIMEOUT_S", timeouts.progress_s),
                upload_s=read.number("WEIR_UPLOAD_TIMEOUT_S", timeouts.upload_s),
                client_idle_s=read.number("WEIR_CLIENT_IDLE_S", timeouts.client_idle_s),
                head_s=read.number("WEIR_HEADERS_TIMEOUT_S", timeouts.head_s),
                slow_client_s=read.number("WEIR_SLOW_CLIENT_TIMEOUT_S", timeouts.slow_client_s),
            ),
            health=Health(stall_s=read.number("WEIR_STALL_TIMEOUT_S", Health().stall_s)),
            draining=Draining(
                grace_period_s=read.number(labels.ENV_GRACE_PERIOD_S, draining.grace_period_s),
                lame_duck_s=read.number(labels.ENV_LAME_DUCK_S, draining.lame_duck_s),
            ),
            policies=Policies(
                directory=Path(env.get(labels.ENV_POLICIES_DIR, labels.POLICIES_DIR))
            ),
            peering=Peering(
                min_period_s=read.number("WEIR_HEARTBEAT_MIN_S", peering.min_period_s),
                max_period_s=read.number("WEIR_HEARTBEAT_MAX_S", peering.max_period_s),
            ),
            adapter_slots=int(read.number(labels.ENV_ADAPTER_SLOTS, 0)),
            cors=_cors(env.get(labels.ENV_CORS, "{}")),
            follow_prefixes=read.number("WEIR_FOLLOW_PREFIXES", 0) > 0,
            step_file=Path(env["WEIR_STEP_FILE"]) if env.get("WEIR_STEP_FILE") else None,
            log_level=env.get("WEIR_LOG_LEVEL", "INFO").upper(),
        )


def _cors(text: str) -> Cors:
    try:
        return Cors.decode(text)
    except ValueError as error:
        raise InvalidSpec(labels.ENV_CORS, str(error)) from error


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads numbers from the environment."""

    env: Mapping[str, str]

    def number(self, name: str, default: float) -> float:
        """Return the number in variable `name`, which may not be negative."""
        text = self.env.get(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            raise InvalidSpec(name, f"{text!r} is not a number") from None
        if not 0 <= value < float("inf"):
            raise InvalidSpec(name, f"{text!r} must be a finite number of at least 0")
        return value

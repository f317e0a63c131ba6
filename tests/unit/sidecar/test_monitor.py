"""A loaded engine is not a dead one: what makes it ready, stalled or down, in literal time."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.sidecar.fakes import Buffer, http_request, make_driver
from weir_core.errors import EngineUnavailable
from weir_sidecar.inflight import Handler, InFlightRequest
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Health, Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Reply
from weir_sidecar.upstreams.monitor import EngineState, Monitor
from weir_sidecar.upstreams.splice import Exchange

STALL_S = 120.0


async def nothing() -> None:
    """Happen."""


class Engine:
    """What the engine answers; stands for the pool of connections to it."""

    def __init__(self) -> None:
        self.health: int | None = 200
        """None: it does not answer in time; 0: it refuses the connection."""
        self.error: OSError | None = None
        """What keeps the sidecar from asking."""
        self.tokens = 0
        self.meanwhile: Callable[[], Awaitable[object]] = nothing
        """What happens while its counters are read."""

    async def get(self, path: str, **_bounds: float) -> Reply:
        if self.error is not None:
            raise EngineUnavailable("not asked") from self.error
        if self.health is None:
            raise EngineUnavailable("late") from TimeoutError()
        if self.health == 0:
            raise EngineUnavailable("refused") from ConnectionRefusedError()
        if path == "/metrics":
            await self.meanwhile()
            return Reply(200, b'vllm:generation_tokens_total{engine="0"} %d\n' % self.tokens)
        return Reply(self.health, b"")


class Scene:
    """An engine, a registry, a monitor, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.engine = Engine()
        metrics = Metrics(CollectorRegistry())
        self.registry = Registry(metrics, lambda: self.now, Settings().limits)
        self.handler = Handler(
            self.registry,
            Settings(),
            make_driver(self.registry, lambda: self.now),
            lambda: self.now,
        )
        pool = self.engine
        self.monitor = Monitor(
            pool,  # type: ignore[arg-type]
            self.registry,
            metrics,
            Health(stall_s=STALL_S),
            lambda: self.now,
        )

    def request(self) -> Exchange:
        exchange = self.begin().exchange
        assert exchange is not None
        exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        return exchange

    def begin(self) -> InFlightRequest:
        request = InFlightRequest(http_request(), self.handler)
        self.registry.add(request)
        request.exchange = Exchange(Buffer(), lambda: self.now)
        return request

    async def pass_time(self, seconds: float) -> EngineState:
        for _ in range(int(seconds)):
            self.now += 1
            await self.monitor.check()
        return self.monitor.state


@pytest.fixture
async def scene() -> Scene:
    made = Scene()
    assert await made.pass_time(1) is EngineState.READY
    return made


@pytest.mark.parametrize("health", [0, 503, None])
async def test_an_engine_that_never_answered_is_starting(health: int | None) -> None:
    made = Scene()
    made.engine.health = health
    assert await made.pass_time(600) is EngineState.STARTING
    assert not made.monitor.up


@pytest.mark.parametrize("health", [0, 503])
async def test_a_refusal_or_a_503_is_down_at_once(scene: Scene, health: int) -> None:
    scene.engine.health = health
    assert await scene.pass_time(1) is EngineState.DOWN
    scene.engine.health = 200
    assert await scene.pass_time(1) is EngineState.READY


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(errno.EMFILE, id="no file descriptor left"),
        pytest.param(errno.ENFILE, id="none in the whole system"),
        pytest.param(errno.ENOMEM, id="no memory"),
        pytest.param(errno.EAGAIN, id="the engine's backlog is full"),
    ],
)
async def test_what_keeps_the_sidecar_from_asking_says_nothing_of_the_engine(
    scene: Scene, number: int
) -> None:
    scene.engine.error = OSError(number, "short")
    assert await scene.pass_time(STALL_S / 2) is EngineState.READY


async def test_an_engine_that_cannot_be_met_is_met_later() -> None:
    made = Scene()

    def unreadable() -> None:
        raise OSError(errno.EMFILE, "no file descriptor left")

    made.monitor.on_ready = unreadable
    assert await made.pass_time(5) is EngineState.STARTING
    made.monitor.on_ready = lambda: None
    assert await made.pass_time(1) is EngineState.READY


async def test_an_engine_found_gone_while_its_counters_are_read_is_met_again(scene: Scene) -> None:
    states: list[EngineState] = []
    met: list[float] = []
    scene.monitor.on_change = states.append
    scene.monitor.on_ready = lambda: met.append(scene.now)

    async def dies() -> None:
        scene.engine.health = 0
        await scene.monitor.check()
        scene.engine.health = 200

    scene.request()
    scene.engine.meanwhile = dies
    while not states:
        await scene.pass_time(1)
    assert states == [EngineState.DOWN]
    assert await scene.pass_time(1) is EngineState.READY
    assert met == [scene.now]


async def test_an_idle_engine_stays_ready(scene: Scene) -> None:
    assert await scene.pass_time(10 * STALL_S) is EngineState.READY


async def test_late_answers_alone_mean_nothing_while_bytes_come(scene: Scene) -> None:
    exchange = scene.request()
    scene.engine.health = None
    for _ in range(10):
        exchange.feed(b"x")
        assert await scene.pass_time(STALL_S / 2) is EngineState.READY


async def test_no_bytes_mean_nothing_while_a_counter_moves(scene: Scene) -> None:
    scene.request()
    for _ in range(10):
        scene.engine.tokens += 1
        assert await scene.pass_time(STALL_S / 2) is EngineState.READY


async def test_neither_bytes_nor_counters_for_long_is_stalled_until_one_moves(
    scene: Scene,
) -> None:
    scene.request()
    assert await scene.pass_time(2 * STALL_S) is EngineState.STALLED
    assert scene.monitor.up  # it still gets requests: it may recover
    scene.engine.tokens += 1
    assert await scene.pass_time(1) is EngineState.READY


async def test_steps_are_progress(scene: Scene) -> None:
    scene.request()
    for _ in range(10):
        scene.monitor.steps += 1
        assert await scene.pass_time(STALL_S / 2) is EngineState.READY


async def test_a_silent_engine_is_stalled_when_the_time_is_over_and_no_later(scene: Scene) -> None:
    scene.engine.tokens = 7  # moved before this request: nothing to do with it
    scene.request()
    assert await scene.pass_time(STALL_S) is EngineState.READY
    assert await scene.pass_time(1) is EngineState.STALLED


async def test_requests_that_leave_without_an_answer_are_no_progress(scene: Scene) -> None:
    seen = set()
    for _ in range(3):
        request = scene.begin()
        seen.add(await scene.pass_time(STALL_S / 2))
        request._count()
        seen.add(await scene.pass_time(5))
    assert scene.monitor.state is EngineState.STALLED
    assert seen == {EngineState.READY, EngineState.STALLED}


async def test_one_that_gave_up_soon_does_not_make_an_idle_engine_stalled(scene: Scene) -> None:
    request = scene.begin()
    await scene.pass_time(2)
    request._count()
    assert await scene.pass_time(10 * STALL_S) is EngineState.READY


async def test_an_answer_after_unanswered_ones_is_progress(scene: Scene) -> None:
    for exchange in (scene.request(), scene.request()):
        assert await scene.pass_time(STALL_S * 0.9) is EngineState.READY
        exchange.feed(b"x")
        assert await scene.pass_time(1) is EngineState.READY


async def test_an_idle_engine_that_answers_again_is_ready_again(scene: Scene) -> None:
    scene.engine.health = None
    assert await scene.pass_time(STALL_S + 1) is EngineState.STALLED
    scene.engine.health = 200
    assert await scene.pass_time(1) is EngineState.READY


async def test_an_idle_engine_that_never_answers_again_is_stalled(scene: Scene) -> None:
    scene.engine.health = None
    assert await scene.pass_time(STALL_S + 1) is EngineState.STALLED


async def test_an_engine_that_goes_before_it_is_ready_is_heard_of() -> None:
    scene, gone = Scene(), []
    scene.monitor.is_fit = lambda: False
    scene.monitor.on_gone = lambda: gone.append(scene.now)
    await scene.pass_time(1)
    assert gone == []
    scene.engine.health = None
    await scene.pass_time(1)
    assert gone == [], "it is late"
    scene.engine.health = 0
    assert await scene.pass_time(1) is EngineState.STARTING
    assert gone == [3.0]

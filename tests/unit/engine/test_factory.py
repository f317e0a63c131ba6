"""Which scheduler vLLM gets, and what the sidecar is told of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.engine.vllm_outline import Output, Scheduler, request
from weir_core.api.engine import Parallelism
from weir_core.api.model import Source
from weir_core.wire.engine import EngineConfig
from weir_core.wire.policies import EngineMode
from weir_core.wire.steps import Facts
from weir_engine.scheduling import factory
from weir_engine.scheduling.log import StepLog, tokens_in
from weir_engine.scheduling.ordered import StepOrder


class Known(Scheduler):
    """The outline, made as vLLM makes its scheduler."""

    def __init__(self, vllm_config: Any) -> None:
        super().__init__()
        self.vllm_config = vllm_config
        self.scheduler_config, self.cache_config = vllm_config.scheduler_config, vllm_config.cache


class Aligned(Known):
    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self.need_mamba_block_aligned_split = True


class HoldsBack(Known):
    """vLLM 0.33 with `--prefill-schedule-interval 4`."""

    local_prefill_interval = 4


class WithoutHook(Known):
    _preempt_request = None  # type: ignore[assignment]


class WithoutAttribute(Known):
    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        del self.requires_kv_delivery


class WithoutPrefills(Known):
    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self.renamed = self._inflight_prefills
        del self._inflight_prefills

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self._inflight_prefills = self.renamed
        try:
            return super().schedule(throttle_prefills)
        finally:
            del self._inflight_prefills


class WithoutBlocks(Known):
    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        del self.kv_cache_manager.coordinator.group_block_sizes


class WithoutLogHooks(Known):
    def update_from_output(self, output: Any) -> None:  # type: ignore[override]
        """Take other parameters than the ones we know."""


def config(
    policy: str = "priority", runner: str = "generate", chunked: bool = True, rank: int = 0
) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(
            policy=policy, enable_chunked_prefill=chunked, max_num_seqs=8,
            max_num_batched_tokens=1000, disable_chunked_mm_input=False,
        ),
        model_config=SimpleNamespace(runner_type=runner, is_diffusion=False),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, data_parallel_size=1, data_parallel_index=rank
        ),
        cache=SimpleNamespace(num_gpu_blocks=101, enable_prefix_caching=True),
    )  # fmt: skip


def samples() -> tuple[Any, Any]:
    """Return a request and a step of the outline."""
    output = Output({}, [], SimpleNamespace(resumed_req_ids=set()), set(), set())
    return request("sample", 0, 1), output


Make = Callable[[type, Any, str], tuple[Any, Facts]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """Make the scheduler for a vLLM, and read its facts."""
    made = []

    monkeypatch.setattr(factory, "_samples", samples)

    def one(stock: type, settings: Any, version: str) -> tuple[Any, Facts]:
        monkeypatch.setattr(factory, "stock_scheduler", lambda _: stock)
        monkeypatch.setattr(factory, "_vllm_version", lambda: version)
        monkeypatch.setenv("WEIR_RUN_DIR", str(tmp_path))
        made.append(factory.make_scheduler(vllm_config=settings))
        return made[-1], Facts.decode((tmp_path / "engine.json").read_bytes())

    yield one
    for scheduler in made:
        for end in (getattr(scheduler, "sender", None), getattr(scheduler, "modes", None)):
            if end is not None:
                end.close()


@pytest.mark.parametrize(
    ("stock", "settings", "version", "kind", "why"),
    [
        pytest.param(Known, config(), "0.32.0", "weir", "", id="a known vLLM"),
        pytest.param(Known, config("fcfs"), "0.32.0", "fcfs", "", id="first come by wish"),
        pytest.param(Known, config(), "0.33.0", "weir", "", id="the vLLM of the GPU image"),
        pytest.param(Known, config(), "0.34.0", "priority", "0.34.0", id="a newer vLLM"),
        pytest.param(WithoutHook, config(), "0.32.9", "priority", "_preempt_request", id="a hook"),
        pytest.param(
            WithoutAttribute, config(), "0.32.9", "priority", "requires_kv_delivery", id="no value"
        ),
        pytest.param(
            WithoutPrefills, config(), "0.32.9", "priority", "_inflight_prefills", id="no prefills"
        ),
        pytest.param(WithoutLogHooks, config(), "0.32.9", "priority", "update_from", id="no log"),
        pytest.param(HoldsBack, config(), "0.33.0", "priority", "-interval", id="held back"),
        pytest.param(Aligned, config(), "0.32.0", "priority", "fixed places", id="aligned"),
        pytest.param(
            Known, config(runner="pooling"), "0.32.0", "priority", "", id="embeddings pass through"
        ),
        pytest.param(
            Known, config(chunked=False), "0.32.0", "priority", "chunked", id="whole prompts"
        ),
    ],
)
def test_what_it_became_is_written_down(
    make: Make, stock: type, settings: Any, version: str, kind: str, why: str
) -> None:
    scheduler, facts = make(stock, settings, version)
    assert (facts.kind, bool(facts.fallback)) == (kind, bool(why))
    assert why in facts.fallback
    assert (facts.max_num_seqs, facts.kv_capacity_tokens) == (8, 1600)
    assert (facts.block_tokens, facts.prefix_caching) == (16, True)
    assert (isinstance(scheduler, StepOrder) and scheduler.orders) == (kind == "weir")
    assert isinstance(scheduler, StepLog) == (stock is not WithoutLogHooks)
    assert facts.tells_ends == (isinstance(scheduler, StepLog) and not scheduler.missing)


@pytest.mark.parametrize(
    ("gone", "kind", "logs"),
    [
        pytest.param("num_output_placeholders", "priority", True, id="what order reads"),
        pytest.param("is_prefill_chunk", "priority", False, id="what the step log reads too"),
    ],
)
def test_a_request_without_what_is_read_of_it_is_left_to_vllm(
    make: Make, monkeypatch: pytest.MonkeyPatch, gone: str, kind: str, logs: bool
) -> None:
    sample, output = factory._samples()
    known = {name: getattr(sample, name) for name in dir(sample) if name != gone}
    monkeypatch.setattr(factory, "_samples", lambda: (SimpleNamespace(**known), output))
    scheduler, facts = make(Known, config(), "0.32.9")
    assert (facts.kind, isinstance(scheduler, StepLog)) == (kind, logs)
    assert not isinstance(scheduler, StepOrder)
    assert f"has no {gone} as Weir" in facts.fallback


@pytest.mark.parametrize("version", ["0.32.9", "0.34.0"])
def test_an_engine_without_what_the_log_reads_serves_by_vllm_alone(
    make: Make, tmp_path: Path, version: str
) -> None:
    steps = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    steps.bind(str(tmp_path / "steps.sock"))
    steps.setblocking(False)
    scheduler, facts = make(WithoutPrefills, config(), version)
    assert facts.fallback
    scheduler.add_request(request("one", 0, 2500))
    while scheduler.requests:
        scheduler.update_from_output(scheduler.schedule(), None)
    with steps, pytest.raises(BlockingIOError):
        steps.recv(1)


def test_an_engine_of_which_nothing_can_be_told_does_not_start(make: Make) -> None:
    with pytest.raises(
        RuntimeError, match=r"has no .*group_block_sizes.* install vLLM >=0.32,<0.34"
    ):
        make(WithoutBlocks, config(), "0.32.9")


def test_ranks_that_vllm_tells_nothing_of_each_other_are_told_as_one_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wishes = EngineConfig(
        name="m", source=Source(uri="tiny://"), parallelism=Parallelism(data=2)
    )  # fmt: skip
    monkeypatch.setenv("WEIR_ENGINE_CONFIG", wishes.model_dump_json(by_alias=True))
    first, facts = make(Known, config(), "0.32.0")
    second, same = make(Known, config(rank=1), "0.32.0")
    assert facts == same
    assert (facts.max_num_seqs, facts.kv_capacity_tokens) == (16, 3200)
    assert (first.engine_index, second.engine_index) == (0, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.sendto(b'{"mode": "throughput"}', str(tmp_path / "mode.sock"))
    assert first.modes.newest() == second.modes.newest() == EngineMode("throughput")


@pytest.mark.parametrize(
    ("sizes", "blocks", "tokens"),
    [
        pytest.param((16,), 100, 1600, id="one group"),
        pytest.param((16, 16), 100, 800, id="windows beside full attention"),
        pytest.param((528, 32768), 4999, 2_597_615, id="a state beside attention"),
        pytest.param((), 100, 1600, id="no cache"),
    ],
)
def test_kv_blocks_hold_what_each_group_of_layers_puts_into_its_own(
    sizes: tuple[int, ...], blocks: int, tokens: int
) -> None:
    scheduler = Known(config())
    scheduler.kv_cache_manager.coordinator.group_block_sizes = sizes
    assert tokens_in(scheduler, blocks) == tokens


def test_without_a_run_directory_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_samples", samples)
    monkeypatch.setattr(factory, "stock_scheduler", lambda _: Known)
    monkeypatch.setattr(factory, "_vllm_version", lambda: "0.32.0")
    monkeypatch.delenv("WEIR_RUN_DIR", raising=False)
    scheduler = factory.make_scheduler(vllm_config=config())
    assert scheduler.sender is None
    assert scheduler.modes is None

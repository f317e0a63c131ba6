"""What vLLM can do besides plain answers, under Weir's order: the same answers as stock.

Each feature's requests come in mixed classes, long prompts among them, to an engine whose decodes
have targets so tight that most steps cut some prompt, whatever the machine, because a clock of the
scene's own says how long they take: what is compared has been cut in pieces, passed by, and
sometimes preempted. The model computes in 32 bits: in 16, stock too answers
otherwise where it happens to cut a prompt elsewhere.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from bench.engine.adapters import write_adapter
from bench.engine.engines import Answer, Engine, Kind, StepClock, model_path
from bench.engine.proofs import RANKS
from weir_core.step.mode import Mode
from weir_core.wire.priority import engine_priority

TIGHT: Final = Mode(tpot_s={100: 0.02, 0: 0.03, -100: 0.05})
KINDS: Final[tuple[Kind, ...]] = ("stock", "weir")
REQUESTS: Final = 18
NEAR: Final = 1e-3
"""Log-probabilities may differ so much: a prompt cut elsewhere is added up in another order."""
NGRAM: Final = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
}
SCHEMA: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass
class Compared:
    """One feature, stock beside Weir.

    Attributes:
        different: Requests to which the two gave other answers.
        cut_steps: Steps of Weir's that left a begun prompt unfinished with room to spare.
        used: What shows that the feature was in use: hits, drafts, changed answers.
    """

    requests: int = 0
    different: list[str] = field(default_factory=list)
    cut_steps: int = 0
    preempted: int = 0
    used: int = 0


Wishes = Callable[[int], dict[str, Any]]
Used = Callable[[Engine], int]


def run_features(size: str) -> dict[str, Compared]:
    """Compare every feature."""
    results: dict[str, Compared] = {}
    with _pair(size, speculative_config=NGRAM) as pair:
        results["speculation"] = _compare(pair, lambda _: {}, _drafted)
    results["embeddings"] = _embeddings(size)
    with (
        tempfile.TemporaryDirectory(prefix="weir-adapters-") as directory,
        # Fewer places than adapters, so that some have to wait for one.
        _pair(size, enable_lora=True, max_loras=1, max_cpu_loras=2, max_lora_rank=8) as pair,
    ):
        paths = [write_adapter(Path(directory), name, size) for name in ("verse", "prose")]
        adapters = [adapter(number, path) for number, path in enumerate(paths, start=1)]
        results["adapters"] = _compare(
            pair, lambda n: {"lora": adapters[n % 2]}, _adapted, same_prompts=2
        )
        adapted = dict(pair[1].answers)
        # On their own: vLLM's CPU build adds an adapter also to what has none in the same step.
        results["their model"] = _compare(
            pair,
            lambda _: {},
            lambda weir: sum(one.tokens != adapted[n].tokens for n, one in weir.answers.items()),
            same_prompts=2,
        )
    with _pair(size, enable_prefix_caching=True) as pair:
        results["prefix caching"] = _compare(pair, lambda _: {}, _cached, shared=300)
        results["logprobs"] = _compare(
            pair, lambda n: {"logprobs": 3, "prompt_logprobs": 1 + n % 2}, _log_probabilities
        )
        results["n > 1, with a seed"] = _compare(
            pair, lambda n: {"n": 3, "temperature": 1.0, "seed": n}, _several
        )
        results["structured output"] = _compare(pair, _structured, _closed, longest=120)
    return results


def _embeddings(size: str) -> Compared:
    """Compare vectors; Weir leaves such an engine to vLLM's order, and tells of its steps."""
    from vllm.pooling_params import PoolingParams

    vectors: list[dict[str, Any]] = []
    for kind in KINDS:
        engine = Engine(kind, model_path(size), runner="pooling", convert="embed", dtype="float32")
        choose = random.Random(11)
        for index in range(REQUESTS):
            tokens = [choose.randrange(10, 4000) for _ in range(choose.choice((8, 60, 300, 3000)))]
            engine.llm.add_request(
                f"r{index}", {"prompt_token_ids": tokens}, PoolingParams(task="embed"),
                priority=engine_priority(choose.choice(RANKS)),
            )  # fmt: skip
        found: dict[str, Any] = {}
        while engine.llm.has_unfinished_requests():
            found |= {one.request_id: one.outputs.data for one in engine.llm.step()}
        vectors.append(found)
        told = getattr(engine.scheduler, "_seq", 0)
        engine.close()
    stock, weir = vectors
    different = [n for n, one in stock.items() if not one.allclose(weir[n], atol=NEAR)]
    return Compared(REQUESTS, different, used=told)


def adapter(number: int, path: Path) -> Any:
    """Return vLLM's name of an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(path.name, number, str(path))


@contextmanager
def _pair(size: str, **arguments: Any) -> Iterator[tuple[Engine, Engine]]:
    model = model_path(size)
    arguments["dtype"] = "float32"
    stock, weir = (Engine(kind, model, StepClock(), **arguments) for kind in KINDS)
    try:
        weir.warm_up(prompts=8)
        weir.set_mode(TIGHT)
        yield stock, weir
    finally:
        stock.close()
        weir.close()


def _compare(
    pair: tuple[Engine, Engine], wishes: Wishes, used: Used, shared: int = 0,
    same_prompts: int = 1, longest: int = 40,
) -> Compared:  # fmt: skip
    for engine in pair:
        engine.clear()
        choose = random.Random(11)
        start = [choose.randrange(10, 4000) for _ in range(shared)]
        for index in range(REQUESTS):
            if index % same_prompts == 0:
                length = choose.choice((8, 60, 300, 1000))
                prompt = start + [choose.randrange(10, 4000) for _ in range(length)]
            engine.add(
                f"r{index}",
                prompt,
                choose.randrange(longest // 2, longest),
                choose.choice(RANKS),
                **wishes(index),
            )
            engine.run_steps(choose.randrange(3))
        engine.run()
    stock, weir = pair
    return Compared(
        requests=REQUESTS,
        different=[n for n, one in stock.answers.items() if not _alike(one, weir.answers[n])],
        cut_steps=_cut_steps(weir),
        preempted=weir.preempted(),
        used=used(weir),
    )


def _alike(one: Answer, other: Answer) -> bool:
    return (
        bool(one.tokens)
        and one.each == other.each
        and one.outcome == other.outcome
        and len(one.logprobs) == len(other.logprobs)
        and all(abs(a - b) < NEAR for a, b in zip(one.logprobs, other.logprobs, strict=True))
    )


def _cut_steps(engine: Engine) -> int:
    full = engine.scheduler.max_num_scheduled_tokens
    return sum(
        bool(formed.prompts & after.prompts) and sum(formed.chunks.values()) < full
        for formed, after in pairwise(engine.formed)
    )


def _structured(_: int) -> dict[str, Any]:
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(json=SCHEMA), "ignore_eos": False}


def _cached(engine: Engine) -> int:
    return sum(answer.cached > 0 for answer in engine.answers.values())


def _log_probabilities(engine: Engine) -> int:
    return sum(len(answer.logprobs) > len(answer.tokens) for answer in engine.answers.values())


def _several(engine: Engine) -> int:
    return sum(len(answer.each) == 3 for answer in engine.answers.values())


def _closed(engine: Engine) -> int:
    return sum(answer.outcome == "stop" for answer in engine.answers.values())


def _drafted(engine: Engine) -> int:
    """Return the requests that got two tokens or more in one step."""
    return sum(len(set(answer.times_s)) < len(answer.times_s) for answer in engine.answers.values())


def _adapted(engine: Engine) -> int:
    """Return the prompts to which two adapters gave different answers."""
    answers = engine.answers
    pairs = [(answers[f"r{n}"], answers[f"r{n + 1}"]) for n in range(0, REQUESTS, 2)]
    return sum(one.tokens[:10] != other.tokens[:10] for one, other in pairs)

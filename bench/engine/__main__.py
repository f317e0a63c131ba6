"""The command line: `python -m bench.engine`, with parts and sizes to choose from.

Both engines live in this process and are measured in turn, run by run, so that what else the
machine does meets both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.engine import effects, features, modes, overhead, proofs
from bench.engine.engines import Engine, StepClock, model_path
from weir_core.step.mode import Mode

SCENES: Final[dict[str, Callable[[Engine], Any]]] = {
    "inversion": effects.inversion,
    "slot": effects.slot,
    "gap": effects.gap,
    "light": effects.light,
}
RATES: Final = ("gap", "light")
"""Scenes in which the engines' rates are compared, pair by pair."""
FUZZ_KV_BLOCKS: Final = 130
FUZZ_SLOTS: Final = 6


def main() -> None:
    options = _options()
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "effects": _effects,
        "modes": _modes,
        "overhead": _overhead,
        "same": _same,
        "fuzz": _fuzz,
        "features": _features,
        "session": _session,
    }
    results = {name: parts[name](options) for name in options.parts or parts}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.engine", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help="effects modes overhead same fuzz features session; all by default"
    )
    parser.add_argument("--model", default="", help="size of the generated model: '' or 5m")
    parser.add_argument("--runs", type=int, default=3, help="runs of each scene; medians count")
    parser.add_argument(
        "--scenes", nargs="+", choices=SCENES, default=list(SCENES), help="of `effects`"
    )
    parser.add_argument(
        "--set-steps", action="store_true",
        help="of `effects`: steps compute nothing, and take a set time for each token",
    )  # fmt: skip
    parser.add_argument(
        "--tpot-floor-ms", type=float, default=0.0, help="of `effects`: tpotFloorMs for Weir"
    )
    parser.add_argument("--prompts", type=int, default=200, help="of `same`")
    parser.add_argument("--schedules", type=int, default=1000, help="of `fuzz`, without a model")
    parser.add_argument("--real-schedules", type=int, default=20, help="of `fuzz`, with the model")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    return parser.parse_args()


def _pair(
    options: argparse.Namespace, *, set_steps: bool = False, **arguments: Any
) -> tuple[Engine, Engine]:
    model = model_path(options.model)
    stock, weir = (
        Engine(kind, model, StepClock() if set_steps else None, **arguments)
        for kind in features.KINDS
    )
    return stock, weir


def _effects(options: argparse.Namespace) -> dict[str, Any]:
    pair = _pair(options, set_steps=options.set_steps)
    for engine in pair:
        if options.set_steps:
            engine.without_model()
        engine.warm_up(8 if options.set_steps else 20)
        engine.set_mode(Mode(tpot_floor_s=options.tpot_floor_ms / 1e3))
    runs: dict[str, list[dict[str, float]]] = {}
    for run in range(options.runs):
        for name in options.scenes:
            # Who goes first changes, so that a machine that tires or cools favours neither.
            kinds = list(zip(("stock", "weir"), pair, strict=True))[:: 1 if run % 2 else -1]
            for kind, engine in kinds:
                runs.setdefault(f"{name} {kind}", []).append(asdict(SCENES[name](engine)))
    results = {name: _medians(runs[name]) for name in sorted(runs)}
    for name in RATES:
        if name in options.scenes:
            ratios = _ratios(runs[f"{name} weir"], runs[f"{name} stock"])
            results[f"{name} weir / stock, of pairs"] = ratios
    _print("effects", results)
    _close(pair)
    return results


def _modes(options: argparse.Namespace) -> dict[str, Any]:
    pair = _pair(options)
    for engine in pair:
        engine.warm_up()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.runs):
        for name in ("stock", *modes.MODES):
            engine = pair[0] if name == "stock" else pair[1]
            result = modes.run_mode(engine, "latency" if name == "stock" else name)
            flat = {"p99_itl_s": result.p99_itl_s, "tokens_per_s": result.tokens_per_s}
            flat |= {f"share of {rank}": part for rank, part in result.shares.items()}
            runs.setdefault(name, []).append(flat)
    results = {name: _medians(of_mode) for name, of_mode in runs.items()}
    _print("modes", results)
    _close(pair)
    return results


def _overhead(options: argparse.Namespace) -> dict[str, Any]:
    sizes: dict[str, Any] = {"max_num_seqs": 512, "max_num_batched_tokens": 8192 + 512}
    pair = _pair(options, **sizes, kv_cache_memory_bytes=256 << 20)
    shares = _costs(pair, lambda cost: {"share": cost.share, "steps": cost.steps})
    _print("scheduling, as a part of the step", shares)
    for engine in pair:
        engine.without_model()
    costs = _costs(pair, lambda cost: {"p50_us": cost.p50_s * 1e6, "p99_us": cost.p99_s * 1e6})
    _print("scheduling a step", costs)
    _close(pair)
    return {"with the model": shares, "without": costs}


def _costs(
    pair: tuple[Engine, Engine], wanted: Callable[[overhead.Cost], dict[str, float]]
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for sequences in overhead.SEQUENCES:
        for chunk in overhead.CHUNKS:
            row: dict[str, float] = {}
            for kind, engine in zip(("stock", "weir"), pair, strict=True):
                cost = wanted(overhead.measure(engine, sequences, chunk))
                row |= {f"{kind} {name}": value for name, value in cost.items()}
            results[f"{sequences} sequences, chunk {chunk}"] = row
    return results


def _same(options: argparse.Namespace) -> dict[str, Any]:
    pair = _pair(options, set_steps=True)
    different = proofs.same_words(*pair, options.prompts)
    results = {
        "prompts": options.prompts,
        "different": different,
        "preempted": sum(engine.preempted() for engine in pair),
    }
    _print("same words", {"stock and weir": {**results, "different": len(different)}})
    _close(pair)
    return results


def _features(options: argparse.Namespace) -> dict[str, Any]:
    results = {name: asdict(one) for name, one in features.run_features(options.model).items()}
    rows = {name: {**one, "different": len(one["different"])} for name, one in results.items()}
    _print("features", rows)
    return results


def _session(options: argparse.Namespace) -> dict[str, Any]:
    engine = Engine("weir", model_path(options.model), StepClock(), max_num_seqs=FUZZ_SLOTS)
    engine.without_model()  # vLLM's model runner for CPUs answers only a session's first turn
    result = asdict(proofs.session(engine))
    _print("session", {"weir": result})
    engine.close()
    return result


def _fuzz(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        ", steps overlapping": {"scheduler_cls": "bench.engine.engines.make_asynchronous"},
        ", in a pipeline": {"scheduler_cls": "bench.engine.engines.make_pipelined"},
        ", speculating": {"speculative_config": features.NGRAM},
        ", speculating, steps overlapping": {
            "speculative_config": features.NGRAM,
            "scheduler_cls": "bench.engine.engines.make_asynchronous",
        },
        ", with adapters, in a pipeline": {
            "enable_lora": True, "max_loras": 2, "max_cpu_loras": 4, "max_lora_rank": 8,
            "scheduler_cls": "bench.engine.engines.make_pipelined",
        },
    }  # fmt: skip
    # Without a model nobody reads them.
    wanted = [features.adapter(number, Path(f"/{number}")) for number in (1, 2, 3)]
    for seed, (kind, arguments) in enumerate(kinds.items()):
        engine = _fuzz_engine(options, **arguments)
        if "scheduler_cls" not in arguments:
            found = proofs.fuzz(engine, options.real_schedules, seed=10 + seed)
            results[f"with the model{kind}"] = asdict(found)
        engine.without_model()
        if "scheduler_cls" in arguments:
            engine.run_ahead()
        adapters = (None, *wanted) if "enable_lora" in arguments else (None,)
        found = proofs.fuzz(engine, options.schedules, seed, adapters)
        results[f"without{kind}"] = asdict(found)
        engine.close()
    _print("fuzz", results)
    return results


def _fuzz_engine(options: argparse.Namespace, **arguments: Any) -> Engine:
    return Engine(
        "weir",
        model_path(options.model),
        StepClock(),  # the same schedules again everywhere
        num_gpu_blocks_override=FUZZ_KV_BLOCKS,
        max_num_seqs=FUZZ_SLOTS,
        enable_prefix_caching=True,
        **arguments,
    )


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _ratios(runs: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each value's ratio in the runs that were made one after the other."""
    pairs = list(zip(runs, others, strict=True))
    return {
        key: statistics.median(one[key] / other[key] for one, other in pairs) for key in runs[0]
    }


def _print(title: str, rows: dict[str, dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(title=title)
    for column in ("", *columns):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        cells = (row.get(column, "") for column in columns)
        table.add_row(name, *(f"{x:.4g}" if isinstance(x, float) else str(x) for x in cells))
    Console(width=150).print(table)


def _close(engines: tuple[Engine, ...]) -> None:
    for engine in engines:
        engine.close()


if __name__ == "__main__":
    main()

"""Traces as files: one request per line, in CSV (`.csv`, with a header) or JSON lines (`.jsonl`).

Which column or field holds what is a value, `Columns`. Without one it is that of the well-known
traces, told apart by the file's name:

- `.csv`, Azure's LLM inference traces: `TIMESTAMP` (a date and time, or seconds),
  `ContextTokens`, `GeneratedTokens`.
- `.jsonl`, the Mooncake traces: `timestamp` (milliseconds), `input_length`, `output_length`, and
  optionally `hash_ids` (one id for each 512 prompt tokens, equal ids for equal prefixes),
  `class` and `tenant`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weir_sim.kv import SHARED_TOKENS
from weir_sim.workload import SimRequest


class BadTrace(ValueError):
    """A trace file cannot be read; the message says which line, and why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a line has what; the last three may be missing from it.

    Attributes:
        arrival: A date and time, or a number of `unit_s`.
        prompt: Prompt tokens.
        output: Output tokens.
        klass: Priority class.
        tenant: Tenant.
        hash_ids: Content of the prompt, as a list, or separated by spaces.
        unit_s: Seconds in one unit of `arrival`, where it is a number.
    """

    arrival: str
    prompt: str
    output: str
    klass: str = "class"
    tenant: str = "tenant"
    hash_ids: str = "hash_ids"
    unit_s: float = 1.0


AZURE = Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE = Columns("timestamp", "input_length", "output_length", unit_s=1e-3)
_KNOWN: Mapping[str, Columns] = {".csv": AZURE, ".jsonl": MOONCAKE}
_UNITS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def columns_from(text: str, base: Columns) -> Columns:
    """Return `base` with names replaced, from text such as `arrival=ts,unit=ms,prompt=in`.

    Raises:
        ValueError: A part of it is not a known name, or a unit is none of s, ms, us.
    """
    known = {field.name for field in fields(Columns)} - {"unit_s"}
    chosen: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        name = "klass" if name == "class" else name
        if name == "unit" and column in _UNITS:
            chosen["unit_s"] = _UNITS[column]
        elif equals and column and name in known:
            chosen[name] = column
        else:
            names = ", ".join(sorted(known - {"klass"} | {"class"}))
            raise ValueError(f"{part!r}: write NAME=COLUMN with a name of {names}, or unit=s|ms|us")
    return replace(base, **chosen)


def known_columns(path: Path) -> Columns:
    """Return the columns that a file's name stands for.

    Raises:
        BadTrace: It ends neither in .csv nor in .jsonl.
    """
    columns = _KNOWN.get(path.suffix)
    if columns is None:
        raise BadTrace(f"{path}: name it .csv or .jsonl, as its format is")
    return columns


def read_trace(path: Path, columns: Columns | None = None) -> list[SimRequest]:
    """Return the requests of a trace in order of arrival, the first one at 0.

    Raises:
        BadTrace: The file's name or a line of it does not follow its format.
    """
    columns = columns or known_columns(path)
    lines = _csv_lines(path) if path.suffix == ".csv" else _json_lines(path)
    requests: list[SimRequest] = []
    for number, line in lines:
        try:
            requests.append(_request(number, line, columns))
        except (KeyError, TypeError, ValueError) as error:
            raise BadTrace(f"{path}:{number}: {_why(error)}") from error
    if not requests:
        raise BadTrace(f"{path}: holds no requests")
    requests.sort(key=lambda request: request.arrival_s)
    start_s = requests[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - start_s) for request in requests]


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="") as lines:
        yield from enumerate(csv.DictReader(lines), 2)


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise BadTrace(f"{path}:{number}: {error}") from error


def _request(number: int, line: Mapping[str, Any], columns: Columns) -> SimRequest:
    prompt_tokens = max(1, int(line[columns.prompt]))
    hash_ids = line.get(columns.hash_ids) or ()
    blocks = hash_ids.split() if isinstance(hash_ids, str) else hash_ids
    return SimRequest(
        request_id=f"t{number}",
        arrival_s=_seconds(line[columns.arrival], columns.unit_s),
        tenant=str(line.get(columns.tenant) or "trace"),
        class_name=str(line.get(columns.klass) or "standard"),
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, int(line[columns.output])),
        hash_ids=tuple(int(block) for block in blocks[: prompt_tokens // SHARED_TOKENS]),
    )


def _seconds(value: object, unit_s: float) -> float:
    text = str(value).strip()
    try:
        return float(text) * unit_s
    except ValueError:
        # Seven digits of a second are one too many for the parser.
        return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC).timestamp()


def _why(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)

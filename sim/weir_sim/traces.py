"""Traces as files. Two formats are read, told apart by the file's name.

CSV (`.csv`), the format of Azure's LLM inference traces: a header line and the columns
`TIMESTAMP` (a date and time, or seconds), `ContextTokens`, `GeneratedTokens`.

JSON lines (`.jsonl`), the format of the Mooncake traces: one object per line with `timestamp`
(milliseconds), `input_length`, `output_length`, and optionally `hash_ids` (one id for each 512
prompt tokens, equal ids for equal prefixes), `class` and `tenant`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weir_sim.kv import SHARED_TOKENS
from weir_sim.workload import SimRequest


class BadTrace(ValueError):
    """A trace file cannot be read; the message says which line, and why."""


def read_trace(path: Path) -> list[SimRequest]:
    """Return the requests of a trace in order of arrival, the first one at 0.

    Raises:
        BadTrace: The file's name or a line of it does not follow a known format.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix)
    if reader is None:
        raise BadTrace(f"{path}: name it .csv or .jsonl, as its format is")
    requests = sorted(reader(path), key=lambda request: request.arrival_s)
    if not requests:
        raise BadTrace(f"{path}: holds no requests")
    start_s = requests[0].arrival_s
    return [_at(request, request.arrival_s - start_s) for request in requests]


def _read_csv(path: Path) -> Iterator[SimRequest]:
    with path.open(newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            try:
                yield _request(
                    number,
                    _seconds(row["TIMESTAMP"]),
                    {"input_length": row["ContextTokens"], "output_length": row["GeneratedTokens"]},
                )
            except (KeyError, TypeError, ValueError) as error:
                raise BadTrace(f"{path}:{number}: {_why(error)}") from error


def _read_jsonl(path: Path) -> Iterator[SimRequest]:
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                yield _request(number, float(fields["timestamp"]) / 1000.0, fields)
            except (KeyError, TypeError, ValueError) as error:
                raise BadTrace(f"{path}:{number}: {_why(error)}") from error


def _request(number: int, arrival_s: float, fields: dict[str, Any]) -> SimRequest:
    prompt_tokens = max(1, int(fields["input_length"]))
    whole_blocks = prompt_tokens // SHARED_TOKENS
    return SimRequest(
        request_id=f"t{number}",
        arrival_s=arrival_s,
        tenant=str(fields.get("tenant", "trace")),
        class_name=str(fields.get("class", "standard")),
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, int(fields["output_length"])),
        hash_ids=tuple(int(block) for block in fields.get("hash_ids", ())[:whole_blocks]),
    )


def _at(request: SimRequest, arrival_s: float) -> SimRequest:
    return SimRequest(
        request_id=request.request_id,
        arrival_s=arrival_s,
        tenant=request.tenant,
        class_name=request.class_name,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        hash_ids=request.hash_ids,
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Seven digits of a second are one too many for the parser.
        return datetime.fromisoformat(text.strip()[:26]).replace(tzinfo=UTC).timestamp()


def _why(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)

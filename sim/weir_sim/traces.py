"""Traces as files: one request per line, in CSV with a header or as JSON lines, plain or gzipped.

What a file is shows in its content, whatever its name. Which column or field holds what is a value,
`Columns`. Without one it is that of the well-known traces, told apart by their columns: Azure's LLM
inference traces, the Mooncake traces (and others of their shape, such as Qwen's), and BurstGPT.

What no line says, the unit of the arrivals and how many tokens a hash id stands for, is told or
recognised (`weir_sim.trace_scales`), and `Trace.words` says which. A row that is no request that
was answered (failed, cut off, without tokens) is left out and counted; nothing is made up for it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from weir_sim.trace_scales import UNITS, Chains, block_of, unit_of
from weir_sim.workload import SimRequest


class BadTrace(ValueError):
    """A trace file cannot be read; the message says which line, and why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a line has what; class, tenant and hash ids may be missing from it.

    Attributes:
        arrival: A date and time, or a number of `unit`.
        prompt: Prompt tokens.
        output: Output tokens.
        klass: Priority class.
        tenant: Tenant.
        hash_ids: Content of the prompt, as a list, or separated by spaces.
        unit: Of `arrival`, where it is a number; None recognises it.
        block: Prompt tokens that one hash id stands for; None recognises it.
    """

    arrival: str
    prompt: str
    output: str
    klass: str = "class"
    tenant: str = "tenant"
    hash_ids: str = "hash_ids"
    unit: str | None = None
    block: int | None = None

    @property
    def needed(self) -> tuple[str, str, str]:
        """Return the columns without which nothing is a request."""
        return self.arrival, self.prompt, self.output


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that no request comes of, for one reason."""

    reason: str
    rows: int
    first: int
    """Line of the first."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace and what was taken for granted of it.

    Attributes:
        requests: In order of arrival, the first one at 0.
        unit: Of its arrivals; None where they are dates.
        block: Prompt tokens that one of its hash ids stands for; None where it has none.
        columns: What was told of both.
        left_out: What is missing, by reason.
    """

    requests: list[SimRequest]
    unit: str | None
    block: int | None
    columns: Columns
    left_out: Sequence[LeftOut]

    def words(self) -> str:
        """Return what it is, in a line."""
        span_s = self.requests[-1].arrival_s
        times = "arrivals are dates"
        if self.unit is not None:
            times = f"arrivals are in {self.unit}{_how(self.columns.unit, f'unit={self.unit}')}"
        parts = [f"{len(self.requests)} requests in {span_s:g} s", times]
        if self.block is not None:
            how = _how(self.columns.block, f"block={self.block}")
            parts.append(f"a hash id stands for {self.block} tokens{how}")
        parts += [
            f"left out: {each.rows} rows, {each.reason} (first in line {each.first})"
            for each in self.left_out
        ]
        return "; ".join(parts)


AZURE = Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE = Columns("timestamp", "input_length", "output_length")
BURST_GPT = Columns("Timestamp", "Request tokens", "Response tokens", unit="s")
_KNOWN = (AZURE, MOONCAKE, BURST_GPT)

_Line = tuple[int, Mapping[str, Any]]
_NOT_JSON: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class _Row:
    """One request as its line has it.

    Attributes:
        arrival: A number of the trace's unit, or of seconds since 1970 where it was a date.
        kind: Of the arrival: a `date`, a number in `text`, a `whole` one of JSON, or a `fraction`.
    """

    number: int
    arrival: float
    kind: str
    tenant: str
    class_name: str
    prompt_tokens: int
    output_tokens: int
    hash_ids: Sequence[int]


class _Blemish(ValueError):
    """Why no request comes of a row, without the row's own values: equal reasons are counted."""


def columns_from(text: str, base: Columns) -> Columns:
    """Return `base` with names replaced, from text such as `arrival=ts,unit=ms,prompt=in`.

    Raises:
        ValueError: A part of it is not a known name, or its value is not possible.
    """
    known = {field.name for field in fields(Columns)} - {"unit", "block"}
    chosen: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        name = "klass" if name == "class" else name
        if name == "unit" and column in UNITS:
            chosen["unit"] = column
        elif name == "block" and column.isdecimal() and int(column) > 0:
            chosen["block"] = int(column)
        elif equals and column and name in known:
            chosen[name] = column
        else:
            names = ", ".join(sorted(known - {"klass"} | {"class"}))
            raise ValueError(
                f"{part!r}: write NAME=COLUMN with a name of {names}, "
                f"unit={'|'.join(UNITS)}, or block=TOKENS"
            )
    return replace(base, **chosen)


def known_columns(path: Path) -> Columns:
    """Return the well-known columns that a file has most of.

    Raises:
        BadTrace: It is not a trace.
    """
    with _text(path) as text:
        first = next((line for _, line in _lines(path, text) if line), _NOT_JSON)
    return max(_KNOWN, key=lambda each: len({*each.needed} & first.keys()))


def read_trace(path: Path, columns: Columns | None = None) -> list[SimRequest]:
    """Return the requests of a trace in order of arrival, the first one at 0.

    Raises:
        BadTrace: The file, or each line of it, does not follow its format.
    """
    return read(path, columns).requests


def read(path: Path, columns: Columns | None = None) -> Trace:
    """Return the requests of a trace, with what was recognised and what was left out.

    Raises:
        BadTrace: The file, or each line of it, does not follow its format.
    """
    columns = columns or known_columns(path)
    rows, left_out = _rows(path, columns)
    unit = _unit(rows, columns)
    block = _block(path, rows, columns)
    chains = Chains(block or 1)
    scale_s = 1.0 if unit is None else UNITS[unit]
    rows.sort(key=lambda row: row.arrival)
    requests = [
        SimRequest(
            request_id=f"t{row.number}",
            arrival_s=(row.arrival - rows[0].arrival) * scale_s,
            tenant=row.tenant,
            class_name=row.class_name,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            hash_ids=chains.of(row.hash_ids, row.prompt_tokens),
        )
        for row in rows
    ]
    return Trace(requests, unit, block, columns, left_out)


def _rows(path: Path, columns: Columns) -> tuple[list[_Row], list[LeftOut]]:
    """Return the rows that are requests, at least one, and what was left out beside them."""
    rows: list[_Row] = []
    blemishes: dict[str, LeftOut] = {}
    with _text(path) as text:
        for number, line in _lines(path, text):
            try:
                row = _row(number, line, columns)
                if rows and (row.kind == "date") != (rows[0].kind == "date"):
                    raise _Blemish(f"{columns.arrival} is now a date, now a number")
            except _Blemish as error:
                seen = blemishes.get(str(error), LeftOut(str(error), 0, number))
                blemishes[str(error)] = replace(seen, rows=seen.rows + 1)
            else:
                rows.append(row)
    if not rows and blemishes:
        first = min(blemishes.values(), key=lambda each: each.first)
        hint = "; name its columns with --columns" if first.reason.startswith("no field") else ""
        raise BadTrace(f"{path}:{first.first}: {first.reason}, nor is any other line usable{hint}")
    if not rows:
        raise BadTrace(f"{path}: holds no requests")
    return rows, list(blemishes.values())


def _unit(rows: Sequence[_Row], columns: Columns) -> str | None:
    """Return the unit of the arrivals, or None where they are dates."""
    kinds = {row.kind for row in rows}
    if "date" in kinds or columns.unit is not None:
        return None if "date" in kinds else columns.unit
    # As Azure's in CSV, and Mooncake's in JSON.
    likely = {"text": "s", "whole": "ms"}.get(kinds.pop() if len(kinds) == 1 else "")
    return unit_of([row.arrival for row in rows], likely)


def _block(path: Path, rows: Sequence[_Row], columns: Columns) -> int | None:
    """Return how many tokens a hash id stands for, or None where there is none."""
    lengths = [(row.prompt_tokens, len(row.hash_ids)) for row in rows if row.hash_ids]
    if not lengths:
        return None
    block = columns.block or block_of(lengths)
    if block is None:
        raise BadTrace(
            f"{path}: {columns.hash_ids} fit no number of tokens to an id; say it: "
            "--columns block=TOKENS"
        )
    return block


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Open a file, gzipped or not, as text in the encoding that its first bytes show.

    Raises:
        BadTrace: What is read of it ends in the middle, or is not CSV.
    """
    with path.open("rb") as file:
        found = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
        try:
            wide = found.peek(2)[:2] in {b"\xff\xfe", b"\xfe\xff"}
            encoding = "utf-16" if wide else "utf-8-sig"
            with io.TextIOWrapper(found, encoding, errors="replace", newline="") as text:
                yield text
        except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            raise BadTrace(f"{path}: {error}") from error


def _lines(path: Path, text: TextIO) -> Iterator[_Line]:
    """Return each line that is not blank with its number; one that is not JSON is empty."""
    numbered = ((number, line) for number, line in enumerate(text, 1) if line.strip())
    first, line = next(numbered, (0, ""))
    if line.lstrip().startswith("["):
        raise BadTrace(f"{path}:{first}: is one JSON array; write an object on each line")
    if line.lstrip().startswith("{"):
        for number, each in chain([(first, line)], numbered):
            yield number, _json(each)
        return
    table = csv.DictReader(chain([line], text))
    for row in table:
        yield first - 1 + table.line_num, row


def _json(line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return _NOT_JSON
    return found if isinstance(found, dict) else _NOT_JSON


def _row(number: int, line: Mapping[str, Any], columns: Columns) -> _Row:
    """Return what a line holds.

    Raises:
        _Blemish: It is not a request that was answered.
    """
    if line is _NOT_JSON:
        raise _Blemish("is not a JSON object")
    for name in columns.needed:
        if name not in line:
            raise _Blemish(f"no field {name!r}")
    arrival, kind = _arrival(line[columns.arrival], columns.arrival)
    return _Row(
        number=number,
        arrival=arrival,
        kind=kind,
        tenant=str(line.get(columns.tenant) or "trace"),
        class_name=str(line.get(columns.klass) or "standard"),
        prompt_tokens=_tokens(line[columns.prompt], columns.prompt),
        output_tokens=_tokens(line[columns.output], columns.output),
        hash_ids=_hash_ids(line.get(columns.hash_ids) or (), columns.hash_ids),
    )


def _arrival(value: object, name: str) -> tuple[float, str]:
    """Return an instant, and its kind."""
    text = "" if value is None else str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return _date(text, name), "date"
    if not abs(number) < float("inf"):
        raise _Blemish(f"{name} is no time")
    if isinstance(value, str):
        return number, "text"
    return number, "whole" if isinstance(value, int) else "fraction"


def _date(text: str, name: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise _Blemish(f"{name} is no time" if text else f"{name} is empty") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _tokens(value: object, name: str) -> int:
    """Return a number of tokens, which some write as `374.0`."""
    text = "" if value is None else str(value).strip()
    try:
        number = float(text)
    except ValueError:
        raise _Blemish(f"{name} is no number" if text else f"{name} is empty") from None
    if not number.is_integer():
        raise _Blemish(f"{name} is no whole number")
    if number <= 0:
        raise _Blemish(f"{name} is not above 0")
    return int(number)


def _hash_ids(value: object, name: str) -> Sequence[int]:
    try:
        found = value.strip("[] ").replace(",", " ").split() if isinstance(value, str) else value
        return [int(each) for each in found]  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        raise _Blemish(f"{name} are no whole numbers") from None


def _how(told: object, option: str) -> str:
    return "" if told is not None else f" (recognised; --columns {option} says so)"

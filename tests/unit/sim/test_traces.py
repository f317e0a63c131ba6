"""Traces: what is read of a file, what is recognised and said, and what is left out and counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from weir_sim.trace_scales import Chains, block_of, unit_of
from weir_sim.traces import AZURE, MOONCAKE, BadTrace, LeftOut, columns_from, read, read_trace

TRACES: Final = Path(__file__).parent / "traces"
HEAD: Final = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST: Final = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a trace; its name says nothing of what is in it."""

    def write(text: str) -> Path:
        path = tmp_path / "trace.txt"
        path.write_text(text)
        return path

    return write


def sizes(path: Path) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, request.output_tokens) for request in read_trace(path)]


def test_an_azure_trace_is_read() -> None:
    trace = read_trace(TRACES / "azure2023_conv_excerpt.csv")
    assert len(trace) == 150
    assert (trace[0].arrival_s, trace[0].prompt_tokens, trace[0].output_tokens) == (0.0, 374, 44)
    assert trace[1].arrival_s == pytest.approx(4.314, abs=0.001)


def test_a_mooncake_trace_is_read_with_its_prefixes() -> None:
    trace = read_trace(TRACES / "mooncake_conversation_excerpt.jsonl")
    assert len(trace) == 60
    assert trace[0].prompt_tokens == 6758
    assert trace[0].hash_ids == tuple(range(13))


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        pytest.param("t.csv", "TIMESTAMP,ContextTokens\n1,2\n", "t.csv:2: no field", id="column"),
        pytest.param(
            "t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "t.csv:2", id="time"
        ),
        pytest.param("t.jsonl", '{"timestamp": 1}\n', "t.jsonl:1: no field", id="field"),
        pytest.param("t.jsonl", "{\n", "t.jsonl:1", id="not JSON"),
        pytest.param("t.jsonl", "", "holds no requests", id="empty"),
        pytest.param("t.json", '[\n{"timestamp": 1}\n]\n', "is one JSON array", id="an array"),
    ],
)
def test_a_bad_trace_says_where_it_is_bad(tmp_path: Path, name: str, text: str, want: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadTrace, match=want):
        read_trace(path)


def test_a_trace_may_call_its_columns_anything(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("ts,in,out,who,tier\n5000,700,9,acme,batch\n2000,10,3,,\n")
    columns = columns_from("arrival=ts,unit=ms,prompt=in,output=out,tenant=who,class=tier", AZURE)
    first, second = read_trace(path, columns)
    assert (first.arrival_s, first.prompt_tokens, first.tenant) == (0.0, 10, "trace")
    assert (second.arrival_s, second.output_tokens) == (3.0, 9)
    assert (second.tenant, second.class_name) == ("acme", "batch")


@pytest.mark.parametrize(
    "text", ["nonsense=x", "arrival", "unit=fortnight", "block=0", "block=few"]
)
def test_an_unknown_column_name_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match="write NAME=COLUMN"):
        columns_from(text, AZURE)


# ---- rows


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param(HEAD + "0,374,44\n\n1,6,2\n\n", [(374, 44), (6, 2)], id="blank lines"),
        pytest.param("\n\n" + HEAD + "0,374,44\n", [(374, 44)], id="blank lines before the head"),
        pytest.param("\ufeff" + HEAD + "0,374,44\n", [(374, 44)], id="a byte order mark"),
        pytest.param(HEAD.replace("\n", "\r\n") + "0,6,2\r\n", [(6, 2)], id="lines of Windows"),
        pytest.param(HEAD + "0.0,374.0, 44 \n", [(374, 44)], id="whole numbers with a point"),
        pytest.param(
            '\n{"timestamp": 0, "input_length": 6.0, "output_length": 2}\n\n', [(6, 2)], id="JSON"
        ),
        pytest.param(BURST + "5,ChatGPT,472,18,490,Conversation log\n", [(472, 18)], id="BurstGPT"),
    ],
)
def test_reads(write: Write, text: str, want: list[tuple[int, int]]) -> None:
    path = write(text)
    assert sizes(path) == want
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert sizes(path) == want


def test_reads_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(HEAD + "0,374,44\n", encoding="utf-16")
    assert sizes(path) == [(374, 44)]


@pytest.mark.parametrize(
    ("first", "second", "gap_s"),
    [
        pytest.param("2023-11-16 18:15:46.5", "2023-11-16 18:15:47.25", 0.75, id="1 and 2 digits"),
        pytest.param("2023-11-16T18:15:46.123456789Z", "2023-11-16T18:15:47Z", 0.876544, id="9"),
        pytest.param("2023-11-16 18:00:00+01:00", "2023-11-16 18:00:00", 3600, id="an offset"),
        pytest.param("2023-11-16 18:15", "2023-11-16 18:16", 60, id="no seconds"),
        pytest.param("1700000000", "1700000001.5", 1.5, id="seconds since 1970"),
        pytest.param("1700000000000", "1700000001500", 1.5, id="milliseconds since 1970"),
    ],
)
def test_reads_an_arrival(write: Write, first: str, second: str, gap_s: float) -> None:
    requests = read_trace(write(f"{HEAD}{second},1,1\n{first},2,2\n"))
    assert [request.prompt_tokens for request in requests] == [2, 1]
    assert [request.arrival_s for request in requests] == pytest.approx([0, gap_s], abs=1e-5)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param("1,1087,0", "GeneratedTokens is not above 0", id="a failed request"),
        pytest.param("1,1087,", "GeneratedTokens is empty", id="an empty field"),
        pytest.param("1,1087", "GeneratedTokens is empty", id="a row that is cut off"),
        pytest.param("1,0,5", "ContextTokens is not above 0", id="no prompt"),
        pytest.param("1,-7,5", "ContextTokens is not above 0", id="less than no prompt"),
        pytest.param("1,374.5,5", "ContextTokens is no whole number", id="half a token"),
        pytest.param("1,nan,5", "ContextTokens is no whole number", id="no number"),
        pytest.param("1,many,5", "ContextTokens is no number", id="a word"),
        pytest.param("noon,5,5", "TIMESTAMP is no time", id="no time"),
        pytest.param(",5,5", "TIMESTAMP is empty", id="an empty time"),
        pytest.param("inf,5,5", "TIMESTAMP is no time", id="never"),
        pytest.param(
            "2023-11-16 18:15,5,5", "TIMESTAMP is now a date, now a number", id="a date for once"
        ),
    ],
)
def test_a_row_that_is_no_request_is_left_out_and_counted(
    write: Write, row: str, reason: str
) -> None:
    trace = read(write(f"{HEAD}0,374,44\n{row}\n{row}\n9,6,2\n"))
    assert [(each.prompt_tokens, each.output_tokens) for each in trace.requests] == [
        (374, 44),
        (6, 2),
    ]
    assert trace.left_out == [LeftOut(reason, 2, 3)]
    assert f"left out: 2 rows, {reason} (first in line 3)" in trace.words()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param('{"timestamp": 1, "input_len', "is not a JSON object", id="cut off"),
        pytest.param("[1, 2]", "is not a JSON object", id="a list"),
        pytest.param('{"timestamp": 1, "input_length": 3}', "no field 'output_length'", id="less"),
        pytest.param(
            '{"timestamp": 1, "input_length": true, "output_length": 1}',
            "input_length is no number",
            id="true is no number of tokens",
        ),
        pytest.param(
            '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": ["x"]}',
            "hash_ids are no whole numbers",
            id="hash ids",
        ),
    ],
)
def test_a_json_line_that_is_no_request_is_left_out_and_counted(
    write: Write, line: str, reason: str
) -> None:
    good = '{"timestamp": 0, "input_length": 6, "output_length": 2}'
    assert read(write(f"{good}\n{line}\n")).left_out == [LeftOut(reason, 1, 2)]


def test_a_gzipped_trace_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress((HEAD + "0,374,44\n" * 1000).encode())[:-20])
    with pytest.raises(BadTrace, match="end-of-stream"):
        read_trace(path)


# ---- units


@pytest.mark.parametrize(
    ("arrivals", "likely", "want"),
    [
        pytest.param([0, 30], "s", "s", id="as likely as not"),
        pytest.param([1.7e9, 1.7e9 + 9], "ms", "s", id="since 1970"),
        pytest.param([1.7e12, 1.7e12 + 9], "s", "ms", id="since 1970 in milliseconds"),
        pytest.param([1.7e15, 1.7e15 + 9], "s", "us", id="since 1970 in microseconds"),
        pytest.param([1.7e18, 1.7e18 + 9], "s", "ns", id="since 1970 in nanoseconds"),
        pytest.param([n * 1.0 for n in range(31)], "ms", "s", id="1,000 a second is too many"),
        pytest.param([n * 0.2 for n in range(31)], None, "s", id="5 a second"),
        pytest.param([n * 200.0 for n in range(31)], None, "ms", id="5 a second in milliseconds"),
        pytest.param([n * 300.0 for n in range(31)], "s", "ms", id="many of one in five minutes"),
        pytest.param([0, 300, 600], "s", "s", id="few of one in five minutes"),
        pytest.param([n * 2e5 for n in range(31)], "ms", "ms", id="few in milliseconds"),
        pytest.param([n * 2e5 for n in range(31)], "s", "us", id="5 a second in microseconds"),
        pytest.param([7.0], None, "s", id="a single request"),
    ],
)
def test_the_unit_of_arrivals_is_recognised(
    arrivals: list[float], likely: str | None, want: str
) -> None:
    assert unit_of(arrivals, likely) == want


def json_lines(stamps: Sequence[float], **more: object) -> str:
    return "".join(
        json.dumps({"timestamp": stamp, "input_length": 1024, "output_length": 20, **more}) + "\n"
        for stamp in stamps
    )


@pytest.mark.parametrize(
    ("columns", "want"),
    [
        pytest.param(None, "arrivals are in s (recognised; --columns unit=s says so)", id="not"),
        pytest.param("unit=ms", "31 requests in 0.03 s; arrivals are in ms", id="told"),
    ],
)
def test_a_trace_says_which_unit_it_was_taken_in(
    write: Write, columns: str | None, want: str
) -> None:
    named = columns_from(columns, MOONCAKE) if columns else None
    assert want in read(write(json_lines(range(31))), named).words()


# ---- hash ids


def test_blocks_of_16_tokens_share_what_they_share(write: Write) -> None:
    shared = list(range(32))
    text = json_lines([0.0], hash_ids=[*shared, *range(100, 132)])
    text += json_lines([1.0], hash_ids=[*shared, *range(200, 232)])
    trace = read(write(text))
    first, second = (request.hash_ids for request in trace.requests)
    assert (len(first), len(second)) == (2, 2)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert "a hash id stands for 16 tokens (recognised; --columns block=16 says so)" in (
        trace.words()
    )


@pytest.mark.parametrize("block", [16, 48, 500, 512, 1000, 2048])
def test_ids_are_equal_where_whole_prefixes_are(block: int) -> None:
    chains = Chains(block)
    tokens = 6000
    ids = list(range(-(-tokens // block)))
    fork = len(ids) // 2
    first, same = chains.of(ids, tokens), chains.of(ids, tokens)
    other = chains.of([*ids[:fork], *(each + 10_000 for each in ids[fork:])], tokens)
    assert len(first) == tokens // 512
    assert first == same
    assert sum(a == b for a, b in zip(first, other, strict=True)) == fork * block // 512
    assert [a == b for a, b in zip(first, other, strict=True)] == sorted(
        (a == b for a, b in zip(first, other, strict=True)), reverse=True
    )


def test_an_id_that_comes_again_elsewhere_is_no_shared_prefix() -> None:
    chains = Chains(256)
    first, second = chains.of([1, 2, 3, 4], 1024), chains.of([9, 9, 3, 4], 1024)
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("lengths", "want"),
    [
        pytest.param([(1024, 64), (1000, 63)], 16, id="a last block of its own"),
        pytest.param([(1024, 64), (1000, 62)], 16, id="a last block without an id"),
        pytest.param([(6758, 14)], 512, id="Mooncake's"),
        pytest.param([(6, 1)], 512, id="too short to tell"),
        pytest.param([(1000, 7), (900, 3)], None, id="none"),
    ],
)
def test_the_size_of_a_hash_block_is_recognised(
    lengths: list[tuple[int, int]], want: int | None
) -> None:
    assert block_of(lengths) == want


def test_hash_ids_that_fit_no_block_size_have_to_be_told(write: Write) -> None:
    path = write(json_lines([0.0], hash_ids=[1, 2, 3, 4, 5]))
    with pytest.raises(BadTrace, match="--columns block=TOKENS"):
        read(path)
    assert read(path, columns_from("block=205", MOONCAKE)).block == 205

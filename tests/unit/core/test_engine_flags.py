"""Which engine flags are reserved, in every spelling vLLM's parser accepts."""

from __future__ import annotations

import pytest

from weir_core.api.engine_flags import TWO_WORDS_SAYS, forbidden_flag, wrong_arguments


@pytest.mark.parametrize(
    ("args", "want"),
    [
        pytest.param([], None, id="no arguments"),
        pytest.param(["--max-model-len", "8192"], None, id="harmless"),
        pytest.param(["--model-impl", "auto"], None, id="longer than a reserved flag"),
        pytest.param(["--port", "1"], "--port", id="flag and value"),
        pytest.param(["--port=1"], "--port", id="flag=value"),
        pytest.param(["--api_key", "x"], "--api-key", id="underscores"),
        pytest.param(["--served-model", "x"], "--served-model-name", id="abbreviation"),
        pytest.param(["--ud", "/x"], "--uds", id="shortest abbreviation"),
        pytest.param(["-n2"], "-n", id="value glued to a one-letter flag"),
        pytest.param(["-t", "2"], "-tp", id="abbreviated short form"),
        pytest.param(["--no-enable-ssl-refresh"], "--enable-ssl-refresh", id="negated"),
        pytest.param(["--max-model-len", "-1"], None, id="a negative number is no flag"),
        pytest.param(["-O3", "-ep", "-q", "fp8", "-pcp", "2"], None, id="harmless short forms"),
        pytest.param(["--seed", "1", "-tp", "2"], "-tp", id="short form, later"),
        pytest.param(["--seed", "--port"], "--port", id="a value that looks like a flag is one"),
        pytest.param(["--port 9000"], "--port", id="two words in one"),
        pytest.param(["--api-key\nx"], "--api-key", id="two lines in one"),
        pytest.param(["-"], None, id="a bare dash abbreviates nothing"),
    ],
)
def test_finds_the_first_reserved_flag(args: list[str], want: str | None) -> None:
    found = forbidden_flag(args)
    assert (found and found[1]) == want


@pytest.mark.parametrize(
    ("args", "want"),
    [
        pytest.param([], [], id="no arguments"),
        pytest.param(
            ["--max-model-len", "4096", "--seed=1", "-O3"], [], id="one word in each item"
        ),
        pytest.param(
            ['--override-generation-config={"a": 1}', "--chat-template", "{{ a }} -b c"],
            [],
            id="spaces in values",
        ),
        pytest.param(["--max-model-len", "-1"], [], id="a negative value"),
        pytest.param(["--stop", "- a"], [], id="a value that begins with a dash and a space"),
        pytest.param(
            ["--max-model-len 4096"],
            [(0, f"'--max-model-len 4096' {TWO_WORDS_SAYS}, or --max-model-len=4096")],
            id="two words",
        ),
        pytest.param(
            ["--seed=1", "-q fp8"],
            [(1, f"'-q fp8' {TWO_WORDS_SAYS}, or -q=fp8")],
            id="two words of a short form",
        ),
        pytest.param(
            ["--enforce-eager\n"],
            [(0, f"'--enforce-eager\\n' {TWO_WORDS_SAYS}")],
            id="a line's end",
        ),
        pytest.param(["--seed=1", "-"], [(1, "'-' is no flag")], id="a bare dash"),
        pytest.param(["--seed=1", "--"], [(1, "'--' is no flag")], id="two bare dashes"),
        pytest.param(["serve", "m"], [(0, "'serve' is no flag: begin with one")], id="a command"),
        pytest.param(
            ["x", "--port=1", "-"],
            [(0, "'x' is no flag"), (1, "--port is reserved for Weir: "), (2, "'-' is no flag")],
            id="all at once",
        ),
    ],
)
def test_says_what_is_wrong_with_each_argument(
    args: list[str], want: list[tuple[int, str]]
) -> None:
    found = list(wrong_arguments(args))
    assert [index for index, _ in found] == [index for index, _ in want]
    assert all(said.startswith(start) for (_, said), (_, start) in zip(found, want, strict=True))

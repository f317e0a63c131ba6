"""Which engine flags are reserved, in every spelling vLLM's parser accepts."""

from __future__ import annotations

import pytest

from weir_core.api.engine_flags import forbidden_flag


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
    ],
)
def test_finds_the_first_reserved_flag(args: list[str], want: str | None) -> None:
    found = forbidden_flag(args)
    assert (found and found[1]) == want

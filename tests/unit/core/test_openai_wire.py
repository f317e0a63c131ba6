"""Token counts are picked out of the last bytes of answers."""

from __future__ import annotations

import pytest

from weir_core.wire.fields import Usage
from weir_core.wire.openai import usage_in


@pytest.mark.parametrize(
    ("tail", "want"),
    [
        pytest.param(
            b'x],"usage":{"prompt_tokens":11,"total_tokens":20,"completion_tokens":9}}',
            Usage(11, 9),
            id="chat",
        ),
        pytest.param(
            b'"usage": {"input_tokens": 4, "output_tokens": 2}', Usage(4, 2), id="responses"
        ),
        pytest.param(b'"usage":{"prompt_tokens":5,"total_tokens":5}', Usage(5, 0), id="embeddings"),
        pytest.param(
            b'"usage":{"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":1},'
            b'"prompt_tokens":3,"completion_tokens_details":null}',
            Usage(3, 9),
            id="details and any order",
        ),
        pytest.param(b'"usage":null}', None, id="null"),
        pytest.param(b'"usage":{"prompt_tokens":5', None, id="cut off"),
        pytest.param(b'"content":"\\"usage\\":{\\"prompt_tokens\\":1}"', None, id="generated text"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_usage_is_picked_out_of_the_tail(tail: bytes, want: Usage | None) -> None:
    assert usage_in(tail) == want


def test_the_last_usage_counts() -> None:
    first, last = b'"usage":{"prompt_tokens":1}', b'"usage":{"prompt_tokens":2}'
    assert usage_in(first + last) == Usage(2, 0)

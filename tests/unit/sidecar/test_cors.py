"""Browsers are told by the sidecar what vLLM's own middleware would tell them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse

from tests.unit.sidecar.fakes import http_request
from weir_core.errors import InvalidSpec
from weir_core.wire.cors import Cors, cors_of
from weir_sidecar.frontend.cors import CrossOrigin

Said = tuple[int, str, dict[str, str]]
"""Status, body and headers of an answer."""

ORIGINS = ["*", "http://app.example", "http://other.example"]
HEADERS = ["*", "authorization", "X-Weir-Class", "content-type"]
RULES = st.builds(
    Cors,
    origins=st.lists(st.sampled_from(ORIGINS), max_size=2).map(tuple),
    methods=st.lists(st.sampled_from(["*", "GET", "POST"]), max_size=2).map(tuple),
    headers=st.lists(st.sampled_from(HEADERS), max_size=2).map(tuple),
    credentials=st.booleans(),
)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "Origin": st.sampled_from([*ORIGINS[1:], "null"]),
        "Access-Control-Request-Method": st.sampled_from(["GET", "POST", "BREW"]),
        "Access-Control-Request-Headers": st.sampled_from(
            ["authorization", "Authorization, Content-Type", "x-weir-class,accept", ""]
        ),
        "Access-Control-Request-Private-Network": st.just("true"),
    },
)


def vllm(rules: Cors, method: str, headers: dict[str, str]) -> Said:
    """What vLLM's middleware does, configured as vLLM does."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = CORSMiddleware(
        PlainTextResponse("from inside", status_code=401),
        allow_origins=list(rules.origins),
        allow_credentials=rules.credentials,
        allow_methods=list(rules.methods),
        allow_headers=list(rules.headers),
    )
    asyncio.run(middleware(scope, receive, send))
    return (
        sent[0]["status"],
        sent[1]["body"].decode(),
        _cors_headers({key.decode(): value.decode() for key, value in sent[0]["headers"]}),
    )


def weir(rules: Cors, method: str, headers: dict[str, str]) -> Said:
    """What the sidecar does with the same, where the answer inside is a refusal of its own."""
    cross_origin = CrossOrigin(rules)
    head = http_request(method, "/", headers.items()).head
    answer = cross_origin.preflight(head) if method == "OPTIONS" else None
    if answer is None:
        return 401, "from inside", _cors_headers(cross_origin.headers(headers.get("Origin")))
    return answer.status, answer.body.decode(), _cors_headers(dict(answer.headers))


def _cors_headers(headers: dict[str, str]) -> dict[str, str]:
    lower = {name.lower(): value for name, value in headers.items()}
    return {name: lower[name] for name in lower if name == "vary" or name.startswith("access-")}


@given(rules=RULES, method=st.sampled_from(["OPTIONS", "POST"]), asked=ASKED)
def test_the_sidecar_says_what_vllm_would_say(
    rules: Cors, method: str, asked: dict[str, str]
) -> None:
    assert weir(rules, method, asked) == vllm(rules, method, asked)


@pytest.mark.parametrize(
    ("args", "want"),
    [
        pytest.param([], Cors(), id="nothing said"),
        pytest.param(["--allowed-origins", '["*"]'], Cors(("*",)), id="two words"),
        pytest.param(['--allowed_origins=["a", "b"]'], Cors(("a", "b")), id="one word, underscore"),
        pytest.param(
            ["--allowed-origins", '["a"]', "--allowed-origins", '["b"]'],
            Cors(("b",)),
            id="the last one counts",
        ),
        pytest.param(
            ["--allow-credentials", '--allowed-methods=["GET"]', '--allowed-headers=["x"]'],
            Cors(methods=("GET",), headers=("x",), credentials=True),
            id="all the others",
        ),
        pytest.param(["--allow-credentials", "--no-allow-credentials"], Cors(), id="taken back"),
    ],
)
def test_the_rules_are_those_of_the_engines_arguments(args: list[str], want: Cors) -> None:
    assert cors_of(args) == want
    assert Cors.decode(want.encode()) == want


@pytest.mark.parametrize("written", ["*", '"*"', "[1]", ""])
def test_a_list_that_is_none_is_refused_by_its_place(written: str) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.engine\.args\[1\]"):
        cors_of(["--enforce-eager", "--allowed-origins", written])

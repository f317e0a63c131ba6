"""`weir explain NAME --request ID`: where a request is, of what the sidecars say."""

from __future__ import annotations

import pytest

from weir_cli.explain_facts import Health
from weir_cli.explain_request import explain_request
from weir_core.route.types import Candidate
from weir_core.wire.request_state import EndedState, RequestReport, RequestState, Runs, Waits


def state(**more: object) -> RequestState:
    return RequestState("batch", "app", 4.0, **more)  # type: ignore[arg-type]


COMPARED = (
    Candidate("chat-1", 900.0, 880.0, 0.0, 20.0, 0.0, 0.0, False, 0.0),
    Candidate("chat-2", 12.0, 10.0, 0.0, 0.0, 0.0, 2.0, True, 0.0),
)
WAITS = Waits(
    4.0, 3, {"interactive": 1, "batch": 1}, "slot", first_token_in_s=2.5, given_up_in_s=56.0
)


@pytest.mark.parametrize(
    ("found", "verdict", "line"),
    [
        pytest.param(
            state(waits=WAITS),
            "waits in chat-1, at place 3; its first token is predicted in 2.5 s",
            "chat-1: it has waited 4.0 s; ahead of it: interactive 1, batch 1",
            id="it waits",
        ),
        pytest.param(
            state(waits=WAITS),
            "waits in chat-1, at place 3; its first token is predicted in 2.5 s",
            "chat-1: the engine has no free slot for it",
            id="it waits for a slot",
        ),
        pytest.param(
            state(runs=Runs(1.5, -100, first_token_in_s=-0.5), requeues=1),
            "is in the engine of chat-1: its first token is 0.5 s later than predicted",
            "chat-1: it lost its place and waited again; times: 1",
            id="its first token is late",
        ),
        pytest.param(
            state(runs=Runs(1.5, -100, True, True, output_tokens=57)),
            "is in the engine of chat-1: it has begun; output tokens so far: 57",
            "chat-1: it waited 1.5 s for its place, before a higher class by its minimum share",
            id="it has begun",
        ),
        pytest.param(
            state(forwarded_to="chat-2", tried=("chat-3",)),
            "was forwarded by chat-1 to chat-2",
            "chat-1: it came back from chat-3",
            id="it was forwarded, and the other replica says nothing",
        ),
        pytest.param(
            state(forwarded_to="chat-2", routed="best", candidates=COMPARED),
            "was forwarded by chat-1 to chat-2",
            "chat-1: chose chat-2 (best) by the scores chat-2 12 ms, chat-1 900 ms (late)",
            id="replicas were compared",
        ),
    ],
)
def test_says_where_a_request_is(found: RequestState, verdict: str, line: str) -> None:
    reports = [RequestReport("chat-0"), RequestReport("chat-1", (found,))]
    said = explain_request("r1", "chat", "namespace ai", reports, (), ())
    assert said.verdict == f"request r1 {verdict}"
    assert line in said.remarks
    assert said.health is Health.HEALTHY


def test_the_replica_that_executes_it_says_the_most() -> None:
    reports = [
        RequestReport("chat-0", (state(forwarded_to="chat-1"),)),
        RequestReport("chat-1", (state(was_forwarded=True, waits=WAITS),)),
    ]
    said = explain_request("r1", "chat", "namespace ai", reports, (), ())
    assert said.verdict.startswith("request r1 waits in chat-1")
    assert "chat-0: forwarded it to chat-1" in said.remarks


def test_says_how_a_request_ended_as_its_clients_sidecar_knows_it() -> None:
    executed = EndedState("batch", "app", "client_gone", 2.9, 3.5, 0.5, was_forwarded=True)
    asked = EndedState("batch", "app", "client_gone", 3.0, 4.0, 0.6, forwarded_to="chat-1")
    reports = [RequestReport("chat-1", (), (executed,)), RequestReport("chat-0", (), (asked,))]
    said = explain_request("r1", "chat", "namespace ai", reports, (), ())
    assert said.verdict == "request r1 ended at chat-0 3.0 s ago: client gone"
    assert said.remarks == (
        "chat-0: forwarded to chat-1, class batch, tenant app, ended 3.0 s ago after 4.0 s, first "
        "token after 0.6 s: client gone",
        "chat-1: another sidecar forwarded it here, class batch, tenant app, ended 2.9 s ago after "
        "3.5 s, first token after 0.5 s: client gone",
    )
    assert said.health.exit_code == 0


def test_one_in_flight_goes_before_one_of_the_same_id_that_ended() -> None:
    ended = EndedState("batch", "app", "rejected_saturated", 3.0, 0.0)
    reports = [RequestReport("chat-0", (state(waits=WAITS),), (ended,))]
    said = explain_request("r1", "chat", "namespace ai", reports, (), ())
    assert said.verdict.startswith("request r1 waits in chat-0")
    assert said.remarks[-1].endswith("no first token: rejected saturated")


def test_one_that_ended_earlier_is_to_be_found_in_the_log() -> None:
    said = explain_request("r1", "chat", "namespace ai", [RequestReport("c")], (), ("grep r1 LOG",))
    assert said.verdict == (
        "no request r1 is in flight in chat, or among the last that ended: it ended earlier, or "
        "never came here"
    )
    assert said.findings[0].commands == ("grep r1 LOG",)
    assert said.health.exit_code == 2

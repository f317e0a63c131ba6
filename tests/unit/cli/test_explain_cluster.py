"""`weir explain` reads a cluster by kubectl, and says what it could not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from weir_cli.explain import Where, of_request, of_service
from weir_cli.explain_cluster import Answer, Ask, kubectl
from weir_cli.explain_facts import Health
from weir_core.api import labels
from weir_core.wire.request_state import RequestReport, RequestState, Waits

FORBIDDEN = 'Error from server (Forbidden): pods "chat-a" is forbidden'
NOT_FOUND = 'Error from server (NotFound): inferenceservices.serving.weir.dev "chat" not found'
NO_KIND = 'error: the server doesn\'t have a resource type "inferenceservices"'
SERVICE = {
    "metadata": {"name": "chat", "generation": 1},
    "spec": {"admission": {"anonymousClass": "standard"}},
    "status": {
        "observedGeneration": 1,
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "1 of 1"}
        ],
    },
}
POD: dict[str, Any] = {
    "metadata": {"name": "chat-a"},
    "spec": {"containers": [{"name": "engine", "image": "engine:1"}]},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "initContainerStatuses": [{"name": "sidecar", "state": {"running": {}}}],
        "containerStatuses": [{"name": "engine", "started": True, "state": {"running": {}}}],
    },
}
GATEWAY = {
    "metadata": {"name": "chat-gate", "labels": {"app.kubernetes.io/component": "gateway"}},
    "spec": {"containers": [{"name": "sidecar", "image": "weir:1"}]},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "sidecar", "started": True, "state": {"running": {}}}],
    },
}
LEASE = {"spec": {"holderIdentity": "weir-0", "leaseDurationSeconds": 10**9}}
WAITS = Waits(1.0, 1, {})
METRICS = 'weir_requests_total{class="batch",outcome="rejected_saturated"} 2\n'


def told(answers: Mapping[str, object]) -> Ask:
    """Return a kubectl that answers by the first of these words that a command has."""

    def ask(*arguments: str) -> Answer:
        line = " ".join(arguments)
        for words, answer in answers.items():
            if words in line:
                if isinstance(answer, Answer):
                    return answer
                return Answer(0, answer if isinstance(answer, str) else json.dumps(answer))
        return Answer(1, "", FORBIDDEN)

    return ask


WHOLE: dict[str, object] = {
    "get inferenceservices.serving.weir.dev chat": SERVICE,
    "get lease weir-operator --namespace=weir-system": LEASE,
    "get inferencetenants": {"items": []},
    "get events": {"items": []},
    "get pods": {"items": [POD]},
    "exec chat-a --namespace=ai --container=sidecar -- weir-sidecar state": {"phase": "serving"},
    "get --raw /api/v1/namespaces/ai/pods/chat-a:8001/proxy/metrics": METRICS,
}


def explained(answers: Mapping[str, object], tmp_path: Path) -> Any:
    return of_service("chat", Where(namespace="ai"), tmp_path, told(answers), between_s=0.0)


def test_reads_all_of_a_healthy_service(tmp_path: Path) -> None:
    said = explained(WHOLE, tmp_path)
    assert (said.verdict, said.health) == ("chat is healthy: 1 of 1", Health.HEALTHY)
    assert said.unseen == ()
    assert said.remarks == (
        "class batch: 2 of 2 requests were rejected since the replicas started: saturated 2",
    )


def test_an_engine_that_ended_a_moment_ago_and_often_is_told(tmp_path: Path) -> None:
    ended = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    last = {"exitCode": 1, "message": "ValueError: no such token", "finishedAt": ended}
    engine = {
        "name": "engine", "restartCount": 4, "state": {"running": {}},
        "lastState": {"terminated": last},
    }  # fmt: skip
    pod = POD | {"status": {**POD["status"], "containerStatuses": [engine]}}
    said = explained(WHOLE | {"get pods": {"items": [pod]}}, tmp_path)
    assert said.verdict == "chat serves (1 of 1), but the engine ended: ValueError: no such token"


def test_a_gateway_is_not_asked_for_what_only_a_replica_knows(tmp_path: Path) -> None:
    gateway = POD | {
        "metadata": {"name": "chat-gateway-a", "labels": {labels.COMPONENT: labels.GATEWAY}},
        "status": {"containerStatuses": [{"name": "sidecar", "state": {"running": {}}}]},
    }
    page = {"get --raw /api/v1/namespaces/ai/pods/chat-gateway-a:8001/proxy/metrics": METRICS}
    answers = WHOLE | page | {"get pods": {"items": [gateway]}}

    assert explained(answers, tmp_path).unseen == ()
    report = RequestReport("chat-gateway-a", (RequestState("batch", "app", 1.0, waits=WAITS),))
    answers |= {"exec chat-gateway-a --namespace=ai --container=sidecar": report.encode().decode()}
    said = of_request("r1", "chat", Where(namespace="ai"), tmp_path, told(answers))
    assert said.verdict.startswith("request r1 waits in chat-gateway-a, at place 1")


def test_says_what_it_could_not_read_and_goes_on(tmp_path: Path) -> None:
    said = explained(dict(list(WHOLE.items())[:1]) | {"get pods": {"items": [POD]}}, tmp_path)
    assert said.verdict == "chat is healthy: 1 of 1"
    assert {each.what for each in said.unseen} == {
        "the operators' Lease",
        "tenants",
        "events",
        "the sidecar's state of chat-a",
        "the metrics of chat-a",
    }
    assert {each.why for each in said.unseen} == {FORBIDDEN}


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("{", id="no JSON"),
        pytest.param("[" * 10_000 + "]" * 10_000, id="JSON that is nested deeply"),
    ],
)
def test_a_page_of_state_that_is_no_json_is_told_and_ends_nothing(
    state: str, tmp_path: Path
) -> None:
    asked = "exec chat-a --namespace=ai --container=sidecar -- weir-sidecar state"
    said = explained(WHOLE | {asked: state}, tmp_path)
    assert said.verdict == "chat is healthy: 1 of 1"
    assert [(each.what, each.why) for each in said.unseen] == [
        ("the sidecar's state of chat-a", "it is no JSON")
    ]


@pytest.mark.parametrize(
    ("refused", "verdict"),
    [
        pytest.param(
            NOT_FOUND, "there is no service chat in namespace ai; did you mean chat2?", id="a name"
        ),
        pytest.param(
            NO_KIND,
            "namespace ai knows no InferenceServices: Weir's definitions are not installed",
            id="the definitions",
        ),
        pytest.param(FORBIDDEN, "you may not read InferenceServices in namespace ai", id="a right"),
        pytest.param(
            "The connection to the server localhost:8080 was refused",
            "cannot tell how chat is: no cluster answers",
            id="a cluster",
        ),
    ],
)
def test_says_what_is_missing(refused: str, verdict: str, tmp_path: Path) -> None:
    others = {"items": [{"metadata": {"name": "chat2"}}]}
    said = explained(
        {
            "get inferenceservices.serving.weir.dev chat": Answer(1, "", f"noise\n{refused}\n"),
            "get inferenceservices.serving.weir.dev": others,
        },
        tmp_path,
    )
    assert (said.verdict, said.health) == (verdict, Health.UNKNOWN)


def test_a_warning_about_another_service_is_none_about_this_one(tmp_path: Path) -> None:
    unready = json.loads(json.dumps(SERVICE))
    unready["status"]["conditions"][0] |= {"status": "False", "reason": "Loading"}
    events = [
        {"involvedObject": {"kind": kind, "name": name}, "reason": "Failed", "message": name}
        for kind, name in (("Pod", "other-a"), ("Pod", "chat-a"), ("ReplicaSet", "chat-default-1"))
    ]
    changed = {
        "get inferenceservices.serving.weir.dev chat": unready,
        "get events": {"items": events},
    }
    evidence = explained(WHOLE | changed, tmp_path).findings[0].evidence
    assert [each for each in evidence if each.startswith("event")] == [
        "event Failed of chat-a: chat-a",
        "event Failed of chat-default-1: chat-default-1",
    ]


def test_a_request_is_looked_for_in_every_replica(tmp_path: Path) -> None:
    here = RequestReport("chat-a", (RequestState("batch", "app", 3.0, waits=Waits(3.0, 1)),))
    asked = "exec chat-a --namespace=ai --container=sidecar -- weir-sidecar request -- r1"
    ask = told({"get pods": {"items": [POD]}, asked: here.encode().decode()})
    said = of_request("r1", "chat", Where(namespace="ai"), tmp_path, ask)
    assert said.verdict == (
        "request r1 waits in chat-a, at place 1; its first token cannot be predicted yet"
    )
    gone = of_request("r2", "chat", Where(namespace="ai"), tmp_path, told(WHOLE))
    assert gone.health is Health.UNKNOWN
    assert gone.unseen[0].why == FORBIDDEN


@pytest.mark.parametrize(
    ("program", "why"),
    [
        pytest.param("", "kubectl is not installed, or not on the PATH", id="no kubectl"),
        pytest.param("#!/bin/sh\necho one; echo two >&2; exit 3\n", "two", id="one that fails"),
    ],
)
def test_kubectl_is_run_as_a_user_would(
    program: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program:
        (tmp_path / "kubectl").write_text(program)
        (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = kubectl("there")("get", "pods")
    assert answer.code != 0
    assert answer.why == why

"""`weir explain`: from what was read of a service to its verdict, by name of the case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from weir_cli.explain import as_json, lines_of
from weir_cli.explain_causes import no_node
from weir_cli.explain_facts import Event, Facts, Health, Lease, Refusal, Replica, Unseen
from weir_cli.explain_findings import explain
from weir_cli.explain_load import READ
from weir_cli.last_words import error_line
from weir_cli.top_figures import Page, read_page
from weir_core.api import labels
from weir_operator.views import Pod, view

LEADS = Lease("weir-0", age_s=2.0, duration_s=15.0)
SHORT = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available"
)
READY = ("Ready", "True", "Serving", "2 of 2 replicas take requests")
ASLEEP = ("Ready", "True", "Asleep", "no replica runs")
PULL = "pod llama-a, container engine: Back-off of engine"
NO_ADAPTER = "sql: ready on 1 of 2 replicas; llama-a: no such file"


def service(*conditions: tuple[str, str, str, str], generation: int = 1, **spec: Any) -> Any:
    names = ("type", "status", "reason", "message")
    told = [dict(zip(names, each, strict=True)) for each in conditions]
    status = {"observedGeneration": 1, "conditions": told} if conditions else {}
    return {
        "metadata": {"name": "llama", "generation": generation},
        "spec": {"admission": {"anonymousClass": "standard"}} | spec,
        "status": status,
    }


def facts(*conditions: tuple[str, str, str, str], **more: Any) -> Facts:
    given = {"body": service(*conditions), "lease": LEADS, "tenants": 0} | more
    return Facts("llama", "namespace ai", namespace="ai", operator_namespace="weir-system", **given)


def pod(*containers: dict[str, Any], gpus: str = "2", **status: Any) -> Pod:
    engine = {"name": "engine", "resources": {"requests": {"nvidia.com/gpu": gpus}}}
    return view(
        Pod,
        {
            "metadata": {"name": "llama-a"},
            "spec": {"containers": [engine]},
            "status": {"containerStatuses": list(containers), **status},
        },
    )


def gateway() -> Pod:
    meta = {"name": "llama-gateway-a", "labels": {labels.COMPONENT: labels.GATEWAY}}
    return view(Pod, {"metadata": meta})


def waiting(name: str, why: str, **ended: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": why, "message": f"Back-off of {name}"}}
    last = {"terminated": ended} if ended else {}
    return {"name": name, "restartCount": 3, "state": state, "lastState": last}


def broken(condition: str, reason: str, message: str, **more: Any) -> Facts:
    not_ready = ("Ready", "False", reason, message)
    return facts(not_ready, (condition, "False", reason, message), **more)


def replica(found: Pod, **more: Any) -> Replica:
    return Replica("llama-a", pod=found, **more)


def unscheduled() -> Facts:
    found = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": SHORT
    }  # fmt: skip
    return broken(
        "WorkloadsReady",
        "Unschedulable",
        f"pod llama-a: {SHORT}",
        replicas=(replica(pod(conditions=[found])),),
    )


def image() -> Facts:
    return broken(
        "WorkloadsReady",
        "ImagePullBackOff",
        PULL,
        replicas=(
            replica(pod(waiting("engine", "ImagePullBackOff")), images={"engine": "reg/eng:1"}),
        ),
        events=(
            Event("llama", "ImagePullBackOff", f"Ready is False: {PULL}"),
            Event("llama-a", "Failed", "manifest for reg/eng:1 not found"),
        ),
    )


def crashed(reason: str, *lines: str) -> Facts:
    ended = {"exitCode": 1, "reason": reason, "message": ""}
    words = f"{reason}, exit code 1"
    where = "pod llama-a, container engine"
    return facts(
        ("Ready", "False", "CrashLoopBackOff", f"{where}: {words}"),
        ("WorkloadsReady", "False", "CrashLoopBackOff", f"{where}: {words}"),
        ("ModelReady", "False", "EngineFailed", f"pod llama-a: {words}"),
        replicas=(
            replica(
                pod(waiting("engine", "CrashLoopBackOff", **ended)), last_lines={"engine": lines}
            ),
        ),
    )


def not_fetched(words: str) -> Facts:
    ended = {"exitCode": 1, "reason": "Error", "message": words}
    return broken(
        "ModelReady",
        "FetchFailed",
        f"pod llama-a: {words}",
        replicas=(replica(pod(waiting("model", "CrashLoopBackOff", **ended))),),
    )


def page(**numbers: int) -> Page:
    lines = [
        f'weir_requests_total{{class="batch",outcome="{outcome}"}} {number}'
        for outcome, number in numbers.items()
    ]
    return read_page("\n".join(lines))


def flooded(first: Page, later: Page) -> Facts:
    return facts(READY, replicas=(Replica("llama-a", first=first, later=later),), between_s=2.0)


def late(before: int, after: int, of: str = "chat", **waiting: int) -> Facts:
    """Return the facts of a class of which so many requests missed their target.

    Args:
        before: How many, by the first reading.
        after: By the second one.
        of: The class whose requests wait.
        waiting: How many, by tenant.
    """
    texts = (
        f'weir_attainment_requests_total{{class="chat",result="missed"}} {missed}\n'
        'weir_attainment_requests_total{class="chat",result="met"} 90\n'
        + "".join(
            f'weir_queue_requests{{class="{of}",tenant="{n}"}} {v}\n' for n, v in waiting.items()
        )
        for missed in (before, after)
    )
    return flooded(*map(read_page, texts))


def peers(**pages: dict[str, int]) -> Facts:
    """Return the facts of replicas, all ready, whose sidecars know so many peers by state."""
    ready = pod(conditions=[{"type": "Ready", "status": "True"}])
    found = []
    for name, states in pages.items():
        text = "".join(f'weir_peers{{state="{each}"}} {n}\n' for each, n in states.items())
        found.append(Replica(f"llama-{name}", pod=ready, first=read_page(text, READ)))
    return facts(READY, replicas=tuple(found))


def one_of_two_leaves() -> Facts:
    """Return the facts of two ready replicas, one of which drains and is of no use to the other."""
    found = peers(a={"usable": 0, "draining": 1}, b={"usable": 1})
    draining = {**(found.replicas[1].first or {}), **read_page("weir_draining 1\n", READ)}
    return replace(found, replicas=(found.replicas[0], replace(found.replicas[1], first=draining)))


def killed(message: str = "", reason: str = "Error", restarts: int = 1) -> Pod:
    """Return a pod whose engine runs again after it was killed."""
    ended = {"exitCode": 137, "reason": reason, "message": message}
    engine = {
        "name": "engine", "restartCount": restarts, "state": {"running": {}},
        "lastState": {"terminated": ended},
    }  # fmt: skip
    return pod(engine)


def leaving() -> Pod:
    """Return a pod on its way out, whose engine ended before."""
    found = killed("ValueError: no such argument")
    meta = {"name": "llama-a", "deletionTimestamp": "2026-11-30T12:00:00Z"}
    return view(Pod, {"metadata": meta, "status": msgspec.to_builtins(found.status)})


def killed_often(restarts: int = 3, ago_s: float = 90.0) -> Facts:
    found = replica(killed(reason="OOMKilled", restarts=restarts), engine_ended_s=ago_s)
    return facts(READY, replicas=(found,))


NO_GPU = "llama is not ready: no node has 2 free nvidia.com/gpu"
SERVES = "llama serves (2 of 2 replicas take requests)"
QUOTA = 'pods "llama-" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=2'
DENIED = 'admission webhook "policy.example" denied the request: no tag latest'


@pytest.mark.parametrize(
    ("found", "reason", "verdict", "command"),
    [
        pytest.param(
            unscheduled(), "Unschedulable", NO_GPU, "describe pod -n ai llama-a", id="unschedulable"
        ),
        pytest.param(
            image(),
            "ImagePull",
            "llama is not ready: the image reg/eng:1 of container engine cannot be pulled",
            "describe pod -n ai llama-a",
            id="an image that cannot be pulled",
        ),
        pytest.param(
            crashed("OOMKilled"),
            "OOMKilled",
            "llama is not ready: container engine of pod llama-a was killed for its memory",
            "describe pod",
            id="an engine that was OOMKilled",
        ),
        pytest.param(
            crashed(
                "Error",
                "(EngineCore pid=7) ERROR 11-30 06:00:01 [core.py:842] ValueError: bad rope",
                "RuntimeError: Engine core initialization failed. See root cause above.",
            ),
            "EngineFailed",
            "llama is not ready: the engine ended: ValueError: bad rope",
            "logs -n ai llama-a -c engine --previous",
            id="an engine that crashed, by vLLM's last error",
        ),
        pytest.param(
            crashed("Error", "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"),
            "GpuMemory",
            "llama is not ready: the engine ended: "
            "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
            "edit infs -n ai llama",
            id="no GPU memory",
        ),
        pytest.param(
            not_fetched("hf://no/such: no such model, or it is private; check the name"),
            "FetchFailed",
            "llama is not ready: its model was not fetched: "
            "hf://no/such: no such model, or it is private; check the name",
            "-c model --previous",
            id="a model that is not found",
        ),
        pytest.param(
            not_fetched("hf://a/b: the hub refuses HF_TOKEN; check the Secret's token"),
            "FetchFailed",
            "llama is not ready: its model was not fetched: "
            "hf://a/b: the hub refuses HF_TOKEN; check the Secret's token",
            "-c model --previous",
            id="a token that is refused",
        ),
        pytest.param(
            broken("WorkloadsReady", "FailedCreate", f"pool default: {QUOTA}"),
            "Quota",
            f"llama is not ready: pool default: {QUOTA}",
            "describe quota -n ai",
            id="a quota",
        ),
        pytest.param(
            broken("WorkloadsReady", "Refused", DENIED),
            "Admission",
            f"llama is not ready: {DENIED}",
            "edit infs",
            id="an admission webhook",
        ),
        pytest.param(
            broken("SpecValid", "InvalidSpec", "spec.pools[0].name: must be a name; write a-z"),
            "InvalidSpec",
            "llama is not ready: spec.pools[0].name: must be a name",
            "edit infs -n ai llama",
            id="a spec that is invalid",
        ),
        pytest.param(
            facts(
                READY,
                (
                    "WorkloadsReady",
                    "False",
                    "ProgressDeadlineExceeded",
                    "pool default: no progress",
                ),
            ),
            "StuckRollout",
            "llama serves (2 of 2 replicas take requests), but its rollout is stuck: "
            "pool default: no progress",
            "get pods -n ai",
            id="a rollout that is stuck",
        ),
        pytest.param(
            broken("ModelReady", "Loading", "the engine is loading the model: about 40 s left"),
            "Loading",
            "llama is not ready: the engine is loading the model: about 40 s left",
            "-c engine -f",
            id="loading, with the time left",
        ),
        pytest.param(
            broken(
                "RouterReady",
                "NoReadyReplica",
                "no replica takes requests",
                replicas=(replica(pod(), state={"engine": "stalled", "running": 4}),),
            ),
            "Stalled",
            "llama is not ready: the engine of llama-a is stalled: "
            "it holds requests and makes no progress",
            "logs -n ai llama-a -c engine",
            id="a stalled engine",
        ),
        pytest.param(
            facts(READY, body=service(READY, admission={})),
            "NoKeys",
            "llama serves (2 of 2 replicas take requests), but it serves no client: "
            "there is no key, and no class for requests without one",
            "edit infs",
            id="no keys",
        ),
        pytest.param(
            flooded(
                page(ok=90, rejected_queue_full=10),
                page(ok=96, rejected_queue_full=14),
            ),
            "Overload",
            "llama serves (2 of 2 replicas take requests), but it is overloaded: "
            "4 of 10 requests of class batch were rejected in the last 2 s",
            "scale infs llama",
            id="overload, by class",
        ),
        pytest.param(
            facts(lease=Lease(), body=service()),
            "NoOperator",
            "llama is not ready: no operator has looked at its spec",
            "get lease,pods -n weir-system",
            id="no operator was ever there",
        ),
        pytest.param(
            facts(("Ready", "Unknown", "Pending", "no operator has looked at it yet")),
            "NoOperator",
            "llama is not ready: no operator has looked at it yet",
            "get lease,pods -n weir-system",
            id="an operator that leads and does not watch the namespace",
        ),
        pytest.param(
            facts(
                ("Ready", "False", "Loading", "the engine is loading the model"),
                ("PoliciesReady", "False", "SecretMissing", "InferenceTenant/app: gone"),
            ),
            "Loading",
            "llama is not ready: the engine is loading the model",
            "-c engine -f",
            id="loading, whatever else is wrong",
        ),
        pytest.param(
            facts(("Ready", "Unknown", "Waiting", "nothing is known of its pods yet")),
            "UnderWay",
            "llama is not ready: nothing is known of its pods yet",
            "get pods -n ai",
            id="an operator that has just begun",
        ),
        pytest.param(
            broken("ModelReady", "FetchFailed", "pod llama-a: hf://no/such: no such model"),
            "FetchFailed",
            "llama is not ready: pod llama-a: hf://no/such: no such model",
            "logs -n ai llama-a",
            id="a model that is not found, and pods that may not be read",
        ),
        pytest.param(
            facts(READY, lease=Lease("weir-0", age_s=600.0, duration_s=15.0)),
            "NoOperator",
            "llama serves (2 of 2 replicas take requests), but no operator leads",
            "logs -n weir-system deployment/weir",
            id="the operator is gone",
        ),
        pytest.param(
            facts(READY, lease=Lease("", age_s=60.0, duration_s=15.0)),
            "NoOperator",
            "llama serves (2 of 2 replicas take requests), but no operator leads",
            "logs -n weir-system deployment/weir",
            id="the operator has ended as it should, and none follows",
        ),
        pytest.param(
            facts(READY, ("PoliciesReady", "False", "SecretMissing", "InferenceTenant/app: gone")),
            "PoliciesReady",
            "llama serves (2 of 2 replicas take requests), but InferenceTenant/app: gone",
            "get itn -n ai",
            id="a tenant's Secret that is missing",
        ),
        pytest.param(
            facts(
                READY,
                ("AdaptersReady", "False", "AdapterFailed", NO_ADAPTER),
                replicas=(replica(pod()),),
            ),
            "AdaptersReady",
            f"llama serves (2 of 2 replicas take requests), but adapter {NO_ADAPTER}",
            "logs -n ai llama-a -c adapters",
            id="an adapter that cannot be fetched",
        ),
        pytest.param(
            facts(ASLEEP, body=service(ASLEEP, admission={})),
            "NoKeys",
            "llama is asleep on purpose (no replica runs), but it serves no client: "
            "there is no key, and no class for requests without one",
            "edit infs",
            id="asleep, and nothing may wake it",
        ),
        pytest.param(
            broken(
                "ModelReady",
                "Loading",
                "the engine is loading the model",
                replicas=(Replica("llama-gateway-a", pod=gateway()), replica(pod())),
            ),
            "Loading",
            "llama is not ready: the engine is loading the model",
            "logs -n ai llama-a -c engine",
            id="loading, and a gateway that is not ready either",
        ),
        pytest.param(
            broken(
                "ModelReady",
                "Loading",
                "the engine is loading the model",
                replicas=(replica(killed("ValueError: no such argument")),),
            ),
            "EngineFailed",
            "llama is not ready: the engine ended: ValueError: no such argument",
            "logs -n ai llama-a -c engine --previous",
            id="loading again, after it ended",
        ),
        pytest.param(
            broken(
                "ModelReady",
                "Loading",
                "the engine is loading the model",
                replicas=(replica(killed("ValueError: no such"), engine_ended_s=7200.0),),
            ),
            "Loading",
            "llama is not ready: the engine is loading the model",
            "logs -n ai llama-a -c engine",
            id="loading, by an engine that ended long ago",
        ),
        pytest.param(
            broken(
                "ModelReady",
                "Loading",
                "the engine is loading the model",
                replicas=(replica(leaving()), Replica("llama-b", pod=pod())),
            ),
            "Loading",
            "llama is not ready: the engine is loading the model",
            "logs -n ai llama-b -c engine",
            id="loading, beside one that ended and leaves",
        ),
        pytest.param(
            late(3, 7, app=2),
            "LateByQueue",
            f"{SERVES}, but it is late: 4 of 4 requests of class chat missed their time to first "
            "token in the last 2 s",
            "scale infs llama",
            id="a class that is late, and waits",
        ),
        pytest.param(
            late(3, 7),
            "LateByEngine",
            f"{SERVES}, but it is late: 4 of 4 requests of class chat missed their time to first "
            "token in the last 2 s",
            "get pods -n ai",
            id="a class that is late, and does not wait",
        ),
        pytest.param(
            late(3, 7, of="batch", nightly=40),
            "LateByEngine",
            f"{SERVES}, but it is late: 4 of 4 requests of class chat missed their time to first "
            "token in the last 2 s",
            "get pods -n ai",
            id="a class that is late, while only another one waits",
        ),
        pytest.param(
            peers(a={"usable": 0, "unknown_key": 2}, b={"usable": 1, "unknown_key": 0}),
            "StaleKeys",
            f"{SERVES}, but the keys of sidecars differ, so they do not forward to each other: "
            "llama-a",
            r"annotations.serving\.weir\.dev/policies",
            id="a sidecar with an old key",
        ),
        pytest.param(
            peers(a={"usable": 0, "lost": 1}, b={"usable": 0, "lost": 1}),
            "WithoutPeers",
            f"{SERVES}, but llama-a, llama-b can forward to no other replica",
            "-c sidecar",
            id="sidecars that reach no other",
        ),
        pytest.param(
            killed_often(),
            "OOMKilled",
            f"{SERVES}, but container engine of pod llama-a was killed for its memory",
            "describe pod -n ai llama-a",
            id="an engine that runs, and is killed again and again",
        ),
        pytest.param(
            facts(
                READY,
                ("PoliciesReady", "False", "InvalidTenant", "InferenceTenant/app: no class gold"),
                replicas=(replica(killed(restarts=3), engine_ended_s=90.0),),
            ),
            "EngineKilled",
            f"{SERVES}, but the engine of llama-a ends again and again: Error, exit code 137",
            "get events -n ai --field-selector=involvedObject.name=llama-a",
            id="an engine that is killed without a word, before what matters less",
        ),
    ],
)
def test_names_the_cause_and_the_remedy(
    found: Facts, reason: str, verdict: str, command: str
) -> None:
    said = explain(found)
    assert said.verdict == verdict
    assert said.health is Health.UNHEALTHY
    assert said.findings[0].reason == reason
    assert any(command in each for each in said.findings[0].commands)
    assert said.findings[0].section


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(late(3, 4), id="one late request"),
        pytest.param(peers(a={"usable": 1}, b={"usable": 1}), id="two that know each other"),
        pytest.param(peers(a={"usable": 0}), id="a replica without others"),
        pytest.param(one_of_two_leaves(), id="a replica whose only other one drains"),
        pytest.param(facts(READY, lease=Lease()), id="no Lease where it is looked for"),
        pytest.param(killed_often(restarts=2), id="an engine that ended twice"),
        pytest.param(killed_often(ago_s=7200.0), id="an engine that ended long ago"),
    ],
)
def test_what_passes_is_no_fault(found: Facts) -> None:
    assert explain(found).health is Health.HEALTHY


@pytest.mark.parametrize(
    ("refusal", "verdict"),
    [
        pytest.param(
            Refusal.UNKNOWN_NAME,
            "there is no service llama in namespace ai; did you mean llama3?",
            id="an unknown name, with a near one",
        ),
        pytest.param(
            Refusal.DEFINITIONS_MISSING,
            "namespace ai knows no InferenceServices: Weir's definitions are not installed",
            id="definitions that are missing",
        ),
        pytest.param(
            Refusal.FORBIDDEN,
            "you may not read InferenceServices in namespace ai",
            id="no right",
        ),
    ],
)
def test_says_why_nothing_can_be_said(refusal: Refusal, verdict: str) -> None:
    said = explain(facts(body=None, refusal=refusal, names=("chat", "llama3")))
    assert (said.verdict, said.health.exit_code) == (verdict, 2)


def test_what_two_conditions_say_of_one_container_is_said_once() -> None:
    assert len(explain(crashed("OOMKilled")).findings) == 1


def test_events_add_what_the_conditions_do_not_say() -> None:
    said = explain(image()).findings[0].evidence
    assert said[1:] == ("event Failed of llama-a: manifest for reg/eng:1 not found",)


def test_a_healthy_service_is_told_what_is_noteworthy() -> None:
    told = read_page(
        """\
weir_requests_total{class="batch",outcome="ok"} 90
weir_requests_total{class="batch",outcome="rejected_queue_full"} 10
weir_attainment_requests_total{class="interactive",result="met"} 7
weir_attainment_requests_total{class="interactive",result="missed"} 2
weir_queue_requests{class="batch",tenant="a"} 2
weir_queue_requests{class="batch",tenant="b"} 1
weir_queue_oldest_seconds{class="batch",tenant="a"} 1.5
weir_engine_losses_total{how="down"} 2
weir_engine_losses_total{how="stalled"} 0
weir_policies_refused_total 1
""",
        READ,
    )
    leaves = Replica("llama-a", state={"phase": "lame-duck"}, first=told)
    said = explain(facts(READY, replicas=(leaves,)))
    assert (said.verdict, said.health) == (
        "llama is healthy: 2 of 2 replicas take requests",
        Health.HEALTHY,
    )
    assert said.remarks == (
        "class batch: 3 wait (of tenants: a 2, b 1), the oldest for 1.5 s",
        "class batch: 10 of 100 requests were rejected since the replicas started: queue full 10",
        "class interactive: 2 of 9 requests missed their time to first token since the replicas "
        "started",
        "the engine of llama-a ended or hung 2 times since its sidecar started",
        "llama-a could not use its policies once since its sidecar started, and kept the last good "
        'ones; its sidecar\'s log has "the policies are refused"',
        "llama-a drains: it takes no new requests and finishes what it has",
    )


def test_zero_on_purpose_is_healthy() -> None:
    asleep = ("Ready", "True", "ScaledToZero", "no replicas are asked for, and none answer")
    said = explain(facts(asleep))
    assert (said.health, said.verdict) == (
        Health.HEALTHY,
        "llama is asleep on purpose: no replicas are asked for, and none answer",
    )


@pytest.mark.parametrize(
    ("one", "reason", "what"),
    [
        pytest.param(
            Replica(
                "chat-1",
                "restarting",
                1,
                last_lines={"engine": ("loading", "ValueError: no such argument")},
                logs={"engine": "/logs/chat-1.engine.log"},
            ),
            "EngineFailed",
            "the engine ended: ValueError: no such argument",
            id="an engine that ended",
        ),
        pytest.param(
            Replica(
                "chat-1",
                "loading the engine",
                1,
                last_lines={"engine": ("ValueError: no such argument", "INFO loading")},
                logs={"engine": "/logs/chat-1.engine.log"},
            ),
            "EngineFailed",
            "the engine ended: ValueError: no such argument",
            id="an engine that ended, and loads again",
        ),
        pytest.param(
            Replica("chat-1", "loading the engine", logs={"engine": "/logs/chat-1.engine.log"}),
            "Loading",
            "chat-1 is loading the engine",
            id="an engine that loads",
        ),
    ],
)
def test_processes_of_weir_up_say_the_same(one: Replica, reason: str, what: str) -> None:
    said = explain(Facts("chat", "`weir up` at port 8000", replicas=(Replica("chat-gateway"), one)))
    assert said.verdict == f"chat is not ready: {what}"
    assert said.findings[0].reason == reason
    assert said.findings[0].commands == ("tail -n 50 /logs/chat-1.engine.log",)


@pytest.mark.parametrize(
    ("message", "want"),
    [
        pytest.param(SHORT, "no node has 2 free nvidia.com/gpu", id="too few GPUs"),
        pytest.param(
            "0/1 nodes are available: 1 Insufficient memory.",
            "no node has enough free memory",
            id="a resource that no container names",
        ),
        pytest.param(
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            "no node matches its nodeSelector or affinity",
            id="a selector",
        ),
        pytest.param(
            "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}.",
            "the nodes have taints that it does not tolerate",
            id="a taint",
        ),
        pytest.param("no nodes available", "no nodes available", id="other words"),
    ],
)
def test_says_in_short_why_no_node_fits(message: str, want: str) -> None:
    assert no_node(message, pod()) == want


def test_an_engine_of_weir_up_that_hangs_is_told_once() -> None:
    hangs = Replica("chat-1", "loading the engine", state={"engine": "stalled", "running": 4})
    replicas = (hangs, Replica("chat-2", "ready", state={"engine": "ready"}))
    said = explain(Facts("chat", "`weir up` at port 8000", replicas=replicas))
    assert [each.reason for each in said.findings] == ["Stalled"]


def test_a_process_that_said_nothing_has_no_error_line() -> None:
    assert error_line([" "]) == "it said nothing"


def test_an_error_that_lists_values_is_told_with_the_first() -> None:
    said = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, max_model_len (99999) is greater than 16384",
        "    For further information visit https://errors.example",
    )
    value = "Value error, max_model_len (99999) is greater than 16384"
    assert error_line(said).endswith(f"1 validation error for ModelConfig: {value}")


def test_prints_the_verdict_then_the_evidence_then_what_to_do_then_what_was_not_seen() -> None:
    found = unscheduled()
    blind = explain(Facts(**{**vars(found), "unseen": (Unseen("events", "forbidden"),)}))
    lines = list(lines_of(blind))
    assert lines[0] == NO_GPU
    order = [lines.index(each) for each in ("Seen:", "What to do:", "Could not be seen:")]
    assert order == sorted(order)
    assert "  events: forbidden" in lines
    assert '"health": "unhealthy"' in as_json(blind)


def test_what_a_log_quotes_of_clients_commands_no_terminal() -> None:
    said = explain(broken("ModelReady", "FetchFailed", "pod llama-a: \x1b[2J"))
    assert not any("\x1b" in each for each in lines_of(said))

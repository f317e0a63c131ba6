"""The chart's alerts, run by promtool on series that are written down.

The rules are those of `tests/golden/chart-alerts.yaml`, which e2e/test_chart.py holds equal to what
Helm renders. One promtool runs all cases.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs/runbook.md"
OF = 'namespace="models",service="chat"'
POD = f'{OF},pod="chat-0"'
EXPLAIN = "For the cause and what to do, type: weir explain chat -n models"
CLASS = f'{OF},class="interactive"'


class Case(NamedTuple):
    """When an alert fires, or does not."""

    what: str
    alert: str
    series: Mapping[str, str]
    """Values, a minute apart, by the name and the labels of a series, in promtool's notation."""
    minute: int
    firing: Sequence[str]
    """The severities that fire then."""


def condition(type_: str, status: str, reason: str) -> str:
    return f'weir_service_condition{{{OF},type="{type_}",status="{status}",reason="{reason}"}}'


def judged(result: str) -> str:
    return f'weir_attainment_requests_total{{{CLASS},result="{result}"}}'


def ended(outcome: str) -> str:
    return f'weir_requests_total{{{CLASS},outcome="{outcome}"}}'


def estimates(label: str) -> str:
    return f'weir_estimate_ratio_{label.replace("}", "")}of="first_token",{OF}}}'


READY_TWICE = {f'weir_service_replicas{{{OF},pool="a",state="ready"}}': "2x99"}
WITHIN, BELOW = estimates('bucket{le="2.0",'), estimates('bucket{le="0.5",')
TRUTHS = estimates("count{")
STEPS = f"weir_engine_step_seconds_count{{{POD}}}"
LOST = f"weir_engine_steps_lost_total{{{POD}}}"
PROMPTS = f"weir_prefix_prompt_tokens_total{{{POD}}}"
LOSSES = f'weir_engine_losses_total{{{POD},how="%s"}}'
OVER = f'weir_prefix_error_tokens_total{{{POD},direction="over"}}'
LEADING = 'weir_operator_leading{namespace="weir-system",pod="weir-%d"}'

CASES = (
    Case(
        "a service that is not ready for long",
        "WeirServiceNotReady",
        {condition("Ready", "False", "Loading"): "1x99"},
        16,
        ["critical"],
    ),
    Case(
        "a service whose model was loaded in time",
        "WeirServiceNotReady",
        {
            condition("Ready", "False", "Loading"): "1x8 _x90",
            condition("Ready", "True", "Serving"): "_x9 1x90",
        },
        30,
        [],
    ),
    Case(
        "a service that is scaled to zero",
        "WeirServiceNotReady",
        {condition("Ready", "True", "ScaledToZero"): "1x99"},
        60,
        [],
    ),
    Case(
        "a replica that no node takes",
        "WeirReplicaUnschedulable",
        {condition("WorkloadsReady", "False", "Unschedulable"): "1x99"},
        11,
        ["warning"],
    ),
    Case(
        "a rollout on its way, and none stuck",
        "WeirServiceStuck",
        {
            condition("Ready", "True", "Serving"): "1x99",
            condition("WorkloadsReady", "False", "Progressing"): "1x99",
            condition("Reconciling", "True", "Progressing"): "1x99",
        },
        60,
        [],
    ),
    Case(
        "a rollout on its way",
        "WeirReplicaUnschedulable",
        {condition("WorkloadsReady", "False", "Progressing"): "1x99"},
        60,
        [],
    ),
    Case(
        "a service that waits for one of its name to be gone",
        "WeirPoliciesRefused",
        {condition("PoliciesReady", "False", "WaitingForPredecessor"): "1x99"},
        60,
        [],
    ),
    Case(
        "a new image that no node can pull, while the old replicas serve",
        "WeirServiceStuck",
        {
            condition("Ready", "True", "Serving"): "1x99",
            condition("Stalled", "True", "ImagePullBackOff"): "1x99",
        },
        16,
        ["warning"],
    ),
    Case(
        "a replica that ends whenever it has begun to start",
        "WeirServiceStuck",
        {
            condition("Ready", "True", "Serving"): "1x99",
            condition("Stalled", "True", "CrashLoopBackOff"): "1 1 _ _ _ _ 1 1 _ _ _ _ 1 1 _x80",
        },
        20,
        ["warning"],
    ),
    Case(
        "an engine that ended once while it was loaded",
        "WeirServiceStuck",
        {
            condition("Ready", "True", "Serving"): "1x99",
            condition("Stalled", "True", "CrashLoopBackOff"): "1 1 _x90",
        },
        14,
        [],
    ),
    Case(
        "a service that answers nothing has an alert of its own",
        "WeirServiceStuck",
        {
            condition("Ready", "False", "ImagePullBackOff"): "1x99",
            condition("Stalled", "True", "ImagePullBackOff"): "1x99",
        },
        30,
        [],
    ),
    Case(
        "a rollout without room has an alert of its own",
        "WeirServiceStuck",
        {
            condition("Ready", "True", "Serving"): "1x99",
            condition("Stalled", "True", "Unschedulable"): "1x99",
        },
        30,
        [],
    ),
    Case(
        "one of two sidecars knows no other",
        "WeirFleetWithoutPeers",
        {
            **READY_TWICE,
            f'weir_peers{{{OF},pod="chat-0",state="usable"}}': "1x99",
            f'weir_peers{{{OF},pod="chat-1",state="usable"}}': "0x99",
        },
        11,
        ["warning"],
    ),
    Case(
        "sidecars that say nothing",
        "WeirFleetWithoutPeers",
        READY_TWICE,
        11,
        ["warning"],
    ),
    Case(
        "two sidecars that know each other",
        "WeirFleetWithoutPeers",
        {
            **READY_TWICE,
            f'weir_peers{{{OF},pod="chat-0",state="usable"}}': "1x99",
            f'weir_peers{{{OF},pod="chat-1",state="usable"}}': "1x99",
        },
        60,
        [],
    ),
    Case(
        "one replica, which has no peers to know",
        "WeirFleetWithoutPeers",
        {
            f'weir_service_replicas{{{OF},pool="a",state="ready"}}': "1x99",
            f'weir_peers{{{OF},pod="chat-0",state="usable"}}': "0x99",
        },
        60,
        [],
    ),
    Case(
        "a peer that accepts none of the keys",
        "WeirStaleKeys",
        {f'weir_peers{{{POD},state="unknown_key"}}': "1x99"},
        11,
        ["warning"],
    ),
    Case(
        "a peer that is told the new key a moment later",
        "WeirStaleKeys",
        {f'weir_peers{{{POD},state="unknown_key"}}': "1x5 0x90"},
        60,
        [],
    ),
    Case(
        "a sidecar that cannot use its document",
        "WeirPoliciesRefused",
        {f"weir_policies_refused_total{{{POD}}}": "0x4 1x90"},
        12,
        ["warning"],
    ),
    Case(
        "a tenant that names no class there is",
        "WeirPoliciesRefused",
        {condition("PoliciesReady", "False", "InvalidPolicies"): "1x99"},
        6,
        ["warning"],
    ),
    Case(
        "a document that was refused long ago",
        "WeirPoliciesRefused",
        {f"weir_policies_refused_total{{{POD}}}": "1x99"},
        90,
        [],
    ),
    Case(
        "a fifth of the class is late: urgent within minutes",
        "WeirAttainmentBurn",
        {judged("met"): "0+80x99", judged("missed"): "0+20x99"},
        10,
        ["critical"],
    ),
    Case(
        "a tenth is late for hours: 10 times the allowed misses, not 14.4",
        "WeirAttainmentBurn",
        {judged("met"): "0+90x499", judged("missed"): "0+10x499"},
        400,
        ["warning"],
    ),
    Case(
        "urgent no more once the last minutes are in order",
        "WeirAttainmentBurn",
        {judged("met"): "0+80x99 8000+100x99", judged("missed"): "0+20x99 2000x99"},
        106,
        ["warning"],
    ),
    Case(
        "half of the allowed misses",
        "WeirAttainmentBurn",
        {judged("met"): "0+199x499", judged("missed"): "0+1x499"},
        400,
        [],
    ),
    Case(
        "the first request of a quiet hour wakes the service, and is late",
        "WeirAttainmentBurn",
        {judged("met"): "0x99", judged("missed"): "0 1x98"},
        4,
        [],
    ),
    Case(
        "the two requests of a quiet hour are rejected",
        "WeirShedding",
        {ended("ok"): "0x99", ended("rejected_saturated"): "0x9 1x5 2x80"},
        22,
        [],
    ),
    Case(
        "a tenth is shed",
        "WeirShedding",
        {ended("ok"): "0+90x99", ended("rejected_saturated"): "0+10x99"},
        12,
        ["warning"],
    ),
    Case(
        "a tenth is over its tenant's limit",
        "WeirShedding",
        {ended("ok"): "0+90x99", ended("rejected_tenant_limit"): "0+10x99"},
        60,
        [],
    ),
    Case(
        "a few are shed",
        "WeirShedding",
        {ended("ok"): "0+97x99", ended("rejected_saturated"): "0+3x99"},
        60,
        [],
    ),
    Case(
        "one request before one of a higher class",
        "WeirInversion",
        {f"weir_inversions_total{{{POD}}}": "0x4 1x90"},
        6,
        ["warning"],
    ),
    Case(
        "no inversion",
        "WeirInversion",
        {f"weir_inversions_total{{{POD}}}": "0x99"},
        60,
        [],
    ),
    Case(
        "an engine that is killed, hangs, and is killed again",
        "WeirEngineLost",
        {LOSSES % "down": "0x9 1x19 2x60", LOSSES % "stalled": "0x19 1x70"},
        32,
        ["warning"],
    ),
    Case(
        "an engine that is killed twice within an hour",
        "WeirEngineLost",
        {LOSSES % "down": "0x9 1x19 2x60", LOSSES % "stalled": "0x90"},
        60,
        [],
    ),
    Case(
        "a twentieth of the steps is lost",
        "WeirStepsLost",
        {STEPS: "0+95x99", LOST: "0+5x99"},
        12,
        ["warning"],
    ),
    Case(
        "an engine without work",
        "WeirStepsLost",
        {STEPS: "0x99", LOST: "0x99"},
        60,
        [],
    ),
    Case(
        "one step in a thousand is lost",
        "WeirStepsLost",
        {STEPS: "0+1000x99", LOST: "0+1x99"},
        60,
        [],
    ),
    Case(
        "three of ten estimates are right",
        "WeirEstimatesOff",
        {WITHIN: "0+6x99", BELOW: "0+3x99", TRUTHS: "0+10x99"},
        60,
        ["warning"],
    ),
    Case(
        "eight of ten estimates are right",
        "WeirEstimatesOff",
        {WITHIN: "0+9x99", BELOW: "0+1x99", TRUTHS: "0+10x99"},
        60,
        [],
    ),
    Case(
        "few estimates, and half of them wrong",
        "WeirEstimatesOff",
        {WITHIN: "0+1x99", BELOW: "0x99", TRUTHS: "0+2x99"},
        60,
        [],
    ),
    Case(
        "three tenths were not in the cache",
        "WeirPrefixPredictionsOff",
        {PROMPTS: "0+5000x99", OVER: "0+1500x99"},
        50,
        ["warning"],
    ),
    Case(
        "a twentieth was not in the cache",
        "WeirPrefixPredictionsOff",
        {PROMPTS: "0+5000x99", OVER: "0+250x99"},
        60,
        [],
    ),
    Case(
        "few prompts, and half of them were not in the cache",
        "WeirPrefixPredictionsOff",
        {PROMPTS: "0+1000x99", OVER: "0+500x99"},
        60,
        [],
    ),
    Case(
        "two operators, and none leads",
        "WeirNoLeader",
        {LEADING % 0: "0x99", LEADING % 1: "0x99"},
        6,
        ["critical"],
    ),
    Case(
        "no operator at all",
        "WeirNoLeader",
        {"up": "1x99"},
        6,
        ["critical"],
    ),
    Case(
        "a change of the leader",
        "WeirNoLeader",
        {LEADING % 0: "1x10 0x80", LEADING % 1: "0x12 1x80"},
        60,
        [],
    ),
)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart's rules, as Prometheus reads them."""
    manifest = yaml.safe_load((ROOT / "tests/golden/chart-alerts.yaml").read_text())
    path = tmp_path_factory.mktemp("alerts") / "rules.yaml"
    path.write_text(yaml.safe_dump(manifest["spec"]))
    return path


def promtool(prometheus: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [prometheus / "promtool", *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_prometheus_takes_the_rules_and_their_texts(prometheus: Path, rules: Path) -> None:
    done = promtool(prometheus, "check", "rules", "--lint-fatal", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_expressions_of_the_runbook(prometheus: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```promql\n(.*?)^```", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE)
    expressions = [line for block in blocks for line in block.splitlines()]
    assert expressions
    recorded = [{"record": f"runbook:{i}", "expr": each} for i, each in enumerate(expressions)]
    path = tmp_path / "runbook.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "runbook", "rules": recorded}]}))
    done = promtool(prometheus, "check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_at_no_other_time(
    prometheus: Path, rules: Path
) -> None:
    path = rules.with_name("test.yaml")
    tests = [promtools(case) for case in CASES]
    path.write_text(
        yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests})
    )
    done = promtool(prometheus, "test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_says_of_what_and_why_and_what_to_type(prometheus: Path, rules: Path) -> None:
    expected = {
        "WeirServiceNotReady": {
            "exp_labels": {"severity": "critical", "namespace": "models", "service": "chat"},
            "exp_annotations": {
                "summary": "models/chat answers no requests: FetchFailed",
                "description": EXPLAIN,
                "runbook": "docs/runbook.md#weirservicenotready",
            },
        },
        "WeirNoLeader": {
            "exp_labels": {"severity": "critical", "namespace": "weir-system"},
            "exp_annotations": {
                "summary": "no operator of weir-system holds its Lease, and nothing acts on edits",
                "runbook": "docs/runbook.md#weirnoleader",
            },
        },
    }
    test = {
        "interval": "1m",
        "input_series": [
            {"series": condition("Ready", "False", "FetchFailed"), "values": "1x30"},
            {"series": condition("ModelReady", "False", "FetchFailed"), "values": "1x30"},
        ],
        "alert_rule_test": [
            {"eval_time": "20m", "alertname": name, "exp_alerts": [alert]}
            for name, alert in expected.items()
        ],
    }
    path = rules.with_name("texts.yaml")
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    done = promtool(prometheus, "test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def promtools(case: Case) -> dict[str, Any]:
    """Return a case as promtool reads it.

    It asks for the series `ALERTS`, and not for alerts, of which promtool would compare the texts.
    """
    expected = [{"labels": f'{{severity="{each}"}}', "value": 1} for each in case.firing]
    firing = f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}'
    return {
        "name": f"{case.alert}: {case.what}",
        "interval": "1m",
        "input_series": [{"series": name, "values": each} for name, each in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f"count by (severity) ({firing})",
                "eval_time": f"{case.minute}m",
                "exp_samples": expected,
            }
        ],
    }


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(rules: Path) -> None:
    named = {
        rule["alert"]
        for group in yaml.safe_load(rules.read_text())["groups"]
        for rule in group["rules"]
    }
    assert {case.alert for case in CASES if case.firing} == named
    assert {case.alert for case in CASES if not case.firing} == named

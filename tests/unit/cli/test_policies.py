"""Classes and tenants of the files reach the replicas."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import pytest

from tests.unit.cli.services import (
    ANONYMOUS,
    GOLD,
    HASH,
    KEYS,
    SERVICE,
    TENANT,
    planned,
    written,
)
from weir_cli.documents import load
from weir_cli.plan import read
from weir_cli.policies import callers, is_loopback
from weir_cli.up import curl
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import PolicyDocument

EXAMPLE: Final = Path(__file__).parents[3] / "examples" / "priority.yaml"


def test_each_replicas_sidecar_finds_the_document_where_it_looks(tmp_path: Path) -> None:
    plan = planned(read([written(tmp_path, SERVICE, GOLD, TENANT, KEYS)], replicas=2))
    for number, replica in enumerate(plan.replicas, start=1):
        folder = Path(f"/scratch/{number}/policies")
        sidecar = replica.processes[0]
        assert sidecar.env["WEIR_POLICIES_DIR"] == str(folder)
        assert folder in replica.directories
        assert replica.policies_file == folder / "policies.json"
        told = PolicyDocument.decode(replica.files[folder / "policies.json"].encode())
        assert told == plan.policies
    assert [policy.rank for policy in plan.policies.classes] == [9]
    assert plan.policies.tenants[0].key_hashes == (HASH,)


def test_the_mode_of_the_engine_is_in_the_document_and_not_in_its_environment(
    tmp_path: Path,
) -> None:
    throughput = "  engine: {scheduling: {mode: throughput}}\n"
    plan = planned(load([written(tmp_path, SERVICE, throughput)]))
    assert plan.policies.engine.mode == "throughput"
    config = json.loads(plan.replicas[0].processes[-1].env["WEIR_ENGINE_CONFIG"])
    assert "scheduling" not in config


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        pytest.param(
            [TENANT],
            r"weir.yaml: document 2 \(InferenceTenant app\): spec.apiKeySecretRef.name: there is",
            id="no Secret",
        ),
        pytest.param(
            [TENANT, KEYS.replace(HASH, "sk-secret")],
            r"document 3 \(Secret app-keys\): data.a: is not the SHA-256 hash of a key",
            id="a key instead of its hash",
        ),
        pytest.param(
            [GOLD.replace("standard", "gold")],
            r"document 1 \(InferenceService chat\): spec.admission.defaultClass: is not set",
            id="no default class",
        ),
    ],
)
def test_what_is_wrong_at_the_start_is_an_error_that_names_the_file(
    tmp_path: Path, parts: list[str], said: str
) -> None:
    with pytest.raises(InvalidSpec, match=said) as refused:
        planned(load([written(tmp_path, SERVICE, *parts)]))
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("parts", "who", "with_key"),
    [
        pytest.param([SERVICE], "open to this machine only (no tenants)", False, id="nothing said"),
        pytest.param([SERVICE, TENANT, KEYS], "open to 1 tenant by API key", True, id="a tenant"),
        pytest.param([ANONYMOUS], "open to everybody as standard", False, id="anonymous"),
        pytest.param(
            [ANONYMOUS, TENANT, KEYS],
            "open to 1 tenant by API key, everybody else as standard",
            False,
            id="both",
        ),
    ],
)
def test_it_is_said_who_may_call_and_with_what(
    tmp_path: Path, parts: list[str], who: str, with_key: bool
) -> None:
    plan = planned(load([written(tmp_path, *parts)]))
    assert callers(plan.policies) == who
    assert ('-H "Authorization: Bearer $KEY"' in curl(plan)) == with_key
    assert ("KEY=...  # an API key of app" in curl(plan)) == with_key


def test_a_service_is_not_opened_to_a_network_by_accident(tmp_path: Path) -> None:
    found = load([written(tmp_path, SERVICE)])
    with pytest.raises(InvalidSpec, match=r"--host 0\.0\.0\.0: service chat has no tenants"):
        planned(found, host="0.0.0.0")
    for parts in ([ANONYMOUS], [SERVICE, TENANT, KEYS]):
        assert planned(load([written(tmp_path, *parts)]), host="0.0.0.0")


@pytest.mark.parametrize(
    ("host", "want"),
    [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("example.com", False)],
)
def test_knows_what_only_this_machine_reaches(host: str, want: bool) -> None:
    assert is_loopback(host) == want


def test_the_example_of_priorities_stands_by_itself() -> None:
    plan = planned(load([EXAMPLE]))
    # Applied to a cluster, it must not change the classes the chart made: Helm would fail later.
    assert load([EXAMPLE]).classes == load([EXAMPLE.with_name("priority-classes.yaml")]).classes
    names = [policy.name for policy in plan.policies.classes]
    assert names == ["batch", "interactive", "standard"]
    keys = {entry.policy.name: entry.key_hashes for entry in plan.policies.tenants}
    assert keys == {
        name: (hashlib.sha256(f"sk-example-{name}".encode()).hexdigest(),)
        for name in ("api", "chat", "nightly")
    }

"""Classes and tenants of the files reach the replicas, at the start and when the files change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Final

import pytest

from weir_cli.documents import Documents, load
from weir_cli.edits import Edit, Edits
from weir_cli.plan import Ground, ServicePlan, plan_services, read
from weir_cli.policies import callers, is_loopback
from weir_cli.up import curl
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import PolicyDocument

EXAMPLE: Final = Path(__file__).parents[3] / "examples" / "priority.yaml"
HASH: Final = hashlib.sha256(b"k").hexdigest()
SERVICE: Final = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {name: tiny, source: {uri: "tiny://"}}
  pools: [{name: cpu, accelerator: {count: 0}}]
"""
TENANT: Final = """\
---
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceTenant
metadata: {name: app}
spec: {apiKeySecretRef: {name: app-keys}}
"""
KEYS: Final = f"""\
---
apiVersion: v1
kind: Secret
metadata: {{name: app-keys}}
stringData: {{a: {HASH}}}
"""
GOLD: Final = """\
---
apiVersion: serving.weir.dev/v1alpha1
kind: InferencePriorityClass
metadata: {name: standard}
spec: {rank: 9}
"""
ANONYMOUS: Final = SERVICE + "  admission: {anonymousClass: standard}\n"


def written(folder: Path, *parts: str) -> Path:
    path = folder / "weir.yaml"
    path.write_text("".join(parts))
    return path


def planned(found: Documents, host: str = "127.0.0.1") -> ServicePlan:
    ground = Ground(host, 8080, Path("/scratch"), Path("/cache"), ())
    with ExitStack() as claims:
        (plan,) = plan_services(found, ground, claims, lambda: token_hex(32))
    return plan


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


# ---- while it runs


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Edit | None]:
    """Return a function that changes the file of a `weir up` and returns what comes of it."""
    running: list[Edits] = []

    def edit(
        *parts: str, started: tuple[str, ...] = (SERVICE,), host: str = "127.0.0.1"
    ) -> Edit | None:
        if not running:
            path = written(tmp_path, *started)
            found = load([path])
            told = {("default", "chat"): planned(found, host).policies}
            running.append(Edits([path], lambda: load([path]), found, told, host))
        path = written(tmp_path, *parts)
        later = path.stat().st_mtime_ns + 10**9 * (1 + len(path.read_text()))
        os.utime(path, ns=(later, later))
        return running[0].next()

    return edit


def test_files_that_stay_as_they_are_come_to_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, SERVICE)
    edits = Edits([path], lambda: load([path]), load([path]), {}, "127.0.0.1")
    assert edits.next() is None


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([SERVICE, GOLD], id="a class"),
        pytest.param([SERVICE, TENANT, KEYS], id="a tenant"),
        pytest.param([ANONYMOUS], id="admission"),
        pytest.param([SERVICE, "  engine: {scheduling: {mode: throughput}}\n"], id="mode"),
    ],
)
def test_what_sidecars_are_told_changes_at_once(
    edited: Callable[..., Edit | None], parts: list[str]
) -> None:
    edit = edited(*parts)
    assert edit is not None
    (document,) = edit.fresh.values()
    assert document != PolicyDocument()
    (notice,) = edit.notices
    assert notice.startswith("chat: applied what changed; open to")


def test_an_edit_keeps_the_peers_and_their_key_and_tells_nobody_the_key(tmp_path: Path) -> None:
    path = written(tmp_path, SERVICE)
    plan = planned(load([path]))
    told = {("default", "chat"): plan.policies}
    edits = Edits([path], lambda: load([path]), load([path]), told, "127.0.0.1")
    written(tmp_path, SERVICE, GOLD)
    edit = edits.next()
    assert edit is not None
    (document,) = edit.fresh.values()
    assert document.classes != plan.policies.classes
    assert (document.peers, document.peer_keys) == (plan.policies.peers, plan.policies.peer_keys)
    assert len(document.peers) == 2
    (key,) = document.peer_keys
    assert key not in " ".join(edit.notices)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        pytest.param(["{"], "not applied: ", id="no YAML"),
        pytest.param([SERVICE, "  replcas: 2\n"], "spec.replcas", id="a misspelt field"),
        pytest.param(
            [SERVICE, TENANT],
            "chat: not applied: ",
            id="no Secret",
        ),
    ],
)
def test_what_cannot_be_applied_is_said_and_all_stays(
    edited: Callable[..., Edit | None], parts: list[str], said: str
) -> None:
    edit = edited(*parts)
    assert edit is not None
    assert edit.fresh == {}
    assert said in edit.notices[0]
    assert "as it was" in edit.notices[0]


def test_a_broken_tenant_keeps_its_last_version_and_a_class_beside_it_changes(
    edited: Callable[..., Edit | None],
) -> None:
    edit = edited(SERVICE, TENANT, GOLD, started=(SERVICE, TENANT, KEYS))
    assert edit is not None
    (document,) = edit.fresh.values()
    assert document.tenants[0].key_hashes == (HASH,)
    assert [policy.rank for policy in document.classes] == [9]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        pytest.param([SERVICE, "  replicas: 2\n"], "chat: spec.replicas changed", id="replicas"),
        pytest.param(
            [SERVICE, "  admission: {maxQueued: 5}\n"], "spec.admission.maxQueued", id="a bound"
        ),
        pytest.param([SERVICE.replace("chat", "talk")], "talk: is new", id="another service"),
    ],
)
def test_what_needs_a_restart_is_named(
    edited: Callable[..., Edit | None], parts: list[str], said: str
) -> None:
    edit = edited(*parts)
    assert edit is not None
    assert edit.fresh == {}
    assert said in edit.notices[0]
    assert "start it again" in edit.notices[0]


def test_an_edit_opens_no_service_to_a_network_by_accident(
    edited: Callable[..., Edit | None],
) -> None:
    edit = edited(SERVICE, started=(ANONYMOUS,), host="0.0.0.0")
    assert edit is not None
    assert edit.fresh == {}
    assert "has no tenants" in edit.notices[0]

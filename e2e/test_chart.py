"""The chart through Helm itself: lint, rendering and refusals. Needs no cluster.

`UPDATE_GOLDEN=1 .venv/bin/pytest e2e/test_chart.py` writes the expected manifests anew.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import build

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm/weir"
WATCH = ROOT / "docs/watch.md"
GOLDEN = ROOT / "tests/golden"
KUBERNETES = "1.35.0"

RunHelm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run_helm() -> RunHelm:
    """Return a function that runs the cluster's Helm, or the caller's own."""
    own = shutil.which("helm") if os.environ.get("KUBECONFIG") else None
    program = own or str(build.binaries() / "helm")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    return run


def template(run_helm: RunHelm, *arguments: str) -> list[dict[str, Any]]:
    """Render the chart."""
    done = run_helm(
        "template", "weir", str(CHART), "--namespace=weir-system",
        f"--kube-version={KUBERNETES}", *arguments,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(kind: str, manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def test_lint_finds_nothing(run_helm: RunHelm) -> None:
    done = run_helm("lint", "--strict", f"--kube-version={KUBERNETES}", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["default", "everything"])
def test_renders(name: str, run_helm: RunHelm) -> None:
    values = GOLDEN / f"chart-{name}.values.yaml"
    manifests = template(run_helm, *([f"--values={values}"] if values.exists() else []))
    for each in of_kind("ConfigMap", manifests):
        ((file, text),) = each["data"].items()
        # Each dashboard is in the chart as it is; a second copy of it would tell nothing.
        assert text == (CHART / "dashboards" / file.removeprefix("weir-")).read_text().rstrip()
        each["data"] = {file: "..."}
    golden = GOLDEN / f"chart-{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(yaml.safe_dump_all(manifests, sort_keys=False, width=100))
    assert manifests == list(yaml.safe_load_all(golden.read_text()))


def test_alerts_are_what_their_tests_run(run_helm: RunHelm) -> None:
    """tests/integration/test_alerts.py has no Helm, and takes the rules from this file."""
    found = re.search(r"^helm (template .*\\\n.*)$", WATCH.read_text(), re.MULTILINE)
    assert found is not None
    typed = shlex.split(found[1].replace("\\\n", " ").replace("helm/weir", str(CHART)))
    done = run_helm(*typed, f"--kube-version={KUBERNETES}")
    assert done.returncode == 0, done.stderr
    rules = yaml.safe_load(done.stdout)
    golden = GOLDEN / "chart-alerts.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(yaml.safe_dump(rules, sort_keys=False, width=100))
    assert rules == yaml.safe_load(golden.read_text())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        pytest.param("replicas=2", "'replicas' not allowed", id="a key of another level"),
        pytest.param("operator.replica=2", "'replica' not allowed", id="a misspelt key"),
        pytest.param("operator.replicas=two", "want integer", id="a word for a number"),
        pytest.param("images.weir.repository=", "repository", id="no image"),
        pytest.param("fullnameOverride=Weir", "does not match", id="a name that no object has"),
        pytest.param(
            "metrics.service.enabled=false,metrics.serviceMonitor.enabled=true",
            "enable that, too",
            id="a monitor of no Service",
        ),
    ],
)
def test_refuses(setting: str, complaint: str, run_helm: RunHelm) -> None:
    done = run_helm(
        "template", "weir", str(CHART), f"--kube-version={KUBERNETES}", "--set", setting
    )
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("value", "others"),
    [
        ("operator.podLabels", ""),
        ("console.podLabels", "console.enabled=true,console.tokenSecret.name=t"),
        ("metrics.serviceMonitor.labels", "metrics.serviceMonitor.enabled=true"),
        ("metrics.podMonitor.labels", "metrics.podMonitor.enabled=true"),
        ("alerts.labels", "alerts.enabled=true"),
        ("dashboards.labels", "dashboards.enabled=true"),
    ],
)
def test_labels_that_the_chart_sets_itself_are_refused(
    value: str, others: str, run_helm: RunHelm
) -> None:
    label = "app.kubernetes.io/name"
    setting = f"{value}.{label.replace('.', chr(92) + '.')}=mine"
    done = run_helm(
        *("template", "weir", str(CHART), f"--kube-version={KUBERNETES}"),
        *("--set", ",".join(filter(None, (others, setting)))),
    )
    assert done.returncode != 0
    assert f"{value}: leave {label} out" in done.stderr


def test_the_longest_name_of_a_release_leaves_every_object_a_legal_one(run_helm: RunHelm) -> None:
    done = run_helm(
        *("template", "r" * 53, str(CHART), f"--kube-version={KUBERNETES}"),
        "--set=console.enabled=true,console.tokenSecret.name=t,externalScaler.enabled=true",
    )
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert max(len(each["metadata"]["name"]) for each in of_kind("Service", made)) == 63


def test_a_cluster_without_native_sidecars_is_refused(run_helm: RunHelm) -> None:
    done = run_helm("template", "weir", str(CHART), "--kube-version=1.28.9")
    assert done.returncode != 0
    assert "1.29.0" in done.stderr


def test_without_options_only_one_operator_and_its_rights_are_installed(run_helm: RunHelm) -> None:
    manifests = template(
        run_helm,
        "--set=priorityClasses.create=false,metrics.service.enabled=false,rbac.aggregate=false",
    )
    assert sorted(manifest["kind"] for manifest in manifests) == [
        "ClusterRole", "ClusterRoleBinding", "Deployment", "Role", "RoleBinding", "ServiceAccount",
    ]  # fmt: skip


SOME = "--set=watchNamespaces={chat,batch}"
OWN_ROLES_ONLY = "--set=rbac.aggregate=false"


def test_watching_some_namespaces_needs_nothing_of_the_whole_cluster_but_its_classes(
    run_helm: RunHelm,
) -> None:
    manifests = template(run_helm, SOME, OWN_ROLES_ONLY)
    (everywhere,) = of_kind("ClusterRole", manifests)
    assert [rule["resources"] for rule in everywhere["rules"]] == [
        ["inferencepriorityclasses"], ["customresourcedefinitions"],
    ]  # fmt: skip
    namespaces = {role["metadata"]["namespace"] for role in of_kind("Role", manifests)}
    assert namespaces == {"chat", "batch", "weir-system"}
    without = template(run_helm, SOME, OWN_ROLES_ONLY, "--set=rbac.readClasses=false")
    assert of_kind("ClusterRole", without) == []


@pytest.mark.parametrize("where", [(), (SOME,)], ids=["cluster", "namespaces"])
def test_without_a_watch_no_secret_can_be_read_but_by_its_name(
    run_helm: RunHelm, where: tuple[str, ...]
) -> None:
    manifests = template(run_helm, "--set=rbac.watchSecrets=false", *where)
    granted = {
        verb
        for role in (*of_kind("ClusterRole", manifests), *of_kind("Role", manifests))
        for rule in role["rules"]
        if "secrets" in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {"get", "create", "patch"}


def test_the_clusters_own_roles_learn_of_weirs_kinds(run_helm: RunHelm) -> None:
    added = {
        label.rpartition("-to-")[2]: {
            (resource, verb)
            for rule in role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for role in of_kind("ClusterRole", template(run_helm))
        for label in role["metadata"]["labels"]
        if "/aggregate-to-" in label
    }
    assert added.keys() == {"view", "edit", "admin"}
    assert {verb for _, verb in added["view"]} == {"get", "list", "watch"}
    assert {resource for resource, _ in added["edit"]} == {
        "inferenceservices", "inferenceservices/scale",
    }  # fmt: skip
    assert {resource for resource, _ in added["admin"]} == {"inferencetenants"}


def test_a_policy_needs_a_cluster_that_knows_policies(run_helm: RunHelm) -> None:
    wish = "--set=podTemplatePolicy.create=true"
    done = run_helm("template", "weir", str(CHART), "--kube-version=1.29.0", wish)
    assert done.returncode != 0
    assert "Kubernetes 1.30 or newer" in done.stderr
    assert len(of_kind("ValidatingAdmissionPolicy", template(run_helm, wish))) == 1
    assert of_kind("ValidatingAdmissionPolicy", template(run_helm)) == []


def test_a_policy_counts_where_the_operator_watches(run_helm: RunHelm) -> None:
    manifests = template(run_helm, SOME, "--set=podTemplatePolicy.create=true")
    (binding,) = of_kind("ValidatingAdmissionPolicyBinding", manifests)
    (where,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
    assert where["values"] == ["chat", "batch"]


def test_rights_are_the_same_in_a_namespace_and_in_the_cluster(run_helm: RunHelm) -> None:
    (whole,) = of_kind("ClusterRole", template(run_helm, OWN_ROLES_ONLY))
    some = template(run_helm, "--set=watchNamespaces={chat}", OWN_ROLES_ONLY)
    (classes,) = of_kind("ClusterRole", some)
    chat = next(r for r in of_kind("Role", some) if r["metadata"]["namespace"] == "chat")
    assert whole["rules"] == chat["rules"] + classes["rules"]


def test_ships_the_resource_definitions(run_helm: RunHelm) -> None:
    manifests = template(run_helm, "--include-crds")
    names = {each["metadata"]["name"] for each in of_kind("CustomResourceDefinition", manifests)}
    assert names == {path.stem for path in (CHART / "crds").glob("*.yaml")}


OPENSHIFT = "--api-versions=security.openshift.io/v1"


@pytest.mark.parametrize(
    ("arguments", "who"),
    [
        pytest.param([], "fixed", id="a cluster that says nothing"),
        pytest.param([OPENSHIFT], "assigned", id="OpenShift"),
        pytest.param([OPENSHIFT, "--set=userIds=fixed"], "fixed", id="fixed, on OpenShift too"),
        pytest.param(["--set=userIds=assigned"], "assigned", id="assigned"),
    ],
)
def test_no_user_is_asked_for_where_the_platform_assigns_them(
    arguments: list[str], who: str, run_helm: RunHelm
) -> None:
    (deployment,) = of_kind("Deployment", template(run_helm, *arguments))
    pod = deployment["spec"]["template"]["spec"]
    ids = {"runAsUser", "runAsGroup", "fsGroup"} & pod["securityContext"].keys()
    assert len(ids) == (3 if who == "fixed" else 0)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {"name": "WEIR_USER_IDS", "value": who} in pod["containers"][0]["env"]

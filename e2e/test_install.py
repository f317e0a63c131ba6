"""Weir arrives by Helm, with the rights it needs and no others."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from e2e.eventually import eventually
from e2e.installation import DEFINITIONS, NAMESPACE, RELEASE, Installation
from e2e.kube import Manifest, conditions, kind_and_name
from e2e.service import NAMESPACE as SERVICES
from e2e.service import Service, quickstart_spec
from e2e.target import Target
from weir_core.api import labels

ACCOUNT = f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}"


def test_helm_reports_a_deployed_release(weir: Installation) -> None:
    out = weir.target.helm("status", RELEASE, f"--namespace={NAMESPACE}")
    assert "STATUS: deployed" in out


def test_the_chart_brings_the_default_priority_classes(weir: Installation) -> None:
    names = weir.target.kubectl("get", "ipc", "--output=name").split()
    assert {name.rpartition("/")[2] for name in names} >= {"interactive", "standard", "batch"}


@pytest.mark.parametrize(
    ("verb", "what", "want"),
    [
        pytest.param("patch", "deployments.apps", "yes", id="it applies Deployments"),
        pytest.param("patch", "infs.serving.weir.dev/status", "yes", id="it writes status"),
        pytest.param("patch", "infs.serving.weir.dev", "no", id="it leaves the spec alone"),
        pytest.param("get", "secrets", "yes", id="it reads Secrets that tenants name"),
        pytest.param("list", "secrets", "no", id="it lists no Secrets"),
        pytest.param("delete", "secrets", "no", id="it deletes no Secret"),
        pytest.param("patch", "pods", "yes", id="it touches pods that have something to read"),
        pytest.param("delete", "pods", "no", id="it ends no pod"),
        pytest.param("create", "pods/exec", "no", id="it runs nothing in pods"),
        pytest.param("delete", "nodes", "no", id="it does not touch nodes"),
        pytest.param("create", "clusterrolebindings", "no", id="it gives nobody rights"),
    ],
)
def test_the_operator_has_the_rights_it_needs_and_no_others(
    weir: Installation, verb: str, what: str, want: str
) -> None:
    resource, _, subresource = what.partition("/")
    words = ("auth", "can-i", verb, resource, f"--subresource={subresource}")
    answer = weir.target.kubectl.attempt(*words, ACCOUNT, "--namespace=default")
    assert answer.out.strip() == want, answer


def test_an_upgrade_replaces_the_operator_and_no_replica(
    weir: Installation, mocked: Service
) -> None:
    replica, templates = mocked.pod(), mocked.templates()
    before = {kind_and_name(pod) for pod in weir.pods()}

    weir.upgrade({"operator": {"podAnnotations": {"example.com/upgraded": "yes"}}})
    weir.ready()

    def replaced() -> None:
        assert not before & {kind_and_name(pod) for pod in weir.pods()}

    eventually(replaced)
    weir.acts_on(mocked)
    assert mocked.templates() == templates
    assert mocked.pod()["metadata"]["uid"] == replica["metadata"]["uid"]


def test_where_no_operator_may_lead_weir_is_not_ready(weir: Installation) -> None:
    kubectl = weir.target.kubectl
    binding = kubectl.get("rolebinding", f"{RELEASE}-leader", NAMESPACE)
    for noise in ("uid", "resourceVersion", "creationTimestamp"):
        del binding["metadata"][noise]
    kubectl("delete", "rolebinding", f"{RELEASE}-leader", f"--namespace={NAMESPACE}")
    weir.kill()

    def unready() -> None:
        (pod,) = weir.pods()
        assert conditions(pod)["ContainersReady"]["status"] == "False"
        (state,) = pod["status"]["containerStatuses"]
        assert state["started"]
        assert "running" in state["state"]

    eventually(unready)
    kubectl.apply({**binding, "metadata": {**binding["metadata"], "managedFields": None}})
    weir.ready()


def test_a_service_that_no_operator_has_seen_is_not_ready(weir: Installation) -> None:
    done = weir.target.kubectl(
        "create", "--dry-run=server", "--output=json", "--filename=-",
        stdin=json.dumps(service({}, SERVICES)),
    )  # fmt: skip
    ready = conditions(json.loads(done))["Ready"]
    assert (ready["status"], ready["reason"]) == ("Unknown", "Pending")


def test_the_operator_says_that_somebody_installed_older_definitions(weir: Installation) -> None:
    kubectl = weir.target.kubectl
    name = "inferenceservices.serving.weir.dev"
    older = yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text())
    schema = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["pools"]["items"]["properties"]["cost"]
    kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager=helm", "--filename=-",
        stdin=json.dumps(older),
    )  # fmt: skip

    def told() -> None:
        events = kubectl.list("events", NAMESPACE)
        said = [one["message"] for one in events if one["reason"] == "DefinitionsOutdated"]
        assert any(".spec.pools[].cost" in message and name in message for message in said), said

    try:
        weir.kill()  # it looks when it begins to lead, and then every minute
        eventually(told)
    finally:
        weir.define("--field-manager=helm")
    weir.ready()


ROLES = [
    pytest.param("view", "list", "infs", "yes", id="a viewer sees services"),
    pytest.param("view", "update", "infs", "no", id="a viewer edits none"),
    pytest.param("edit", "patch", "infs", "yes", id="an editor edits services"),
    pytest.param("edit", "patch", "infs/scale", "yes", id="an editor scales them"),
    pytest.param("edit", "get", "itn", "yes", id="an editor sees tenants"),
    pytest.param("edit", "create", "itn", "no", id="an editor makes no tenants"),
    pytest.param("edit", "patch", "infs/status", "no", id="an editor writes no status"),
    pytest.param("admin", "create", "itn", "yes", id="an admin makes tenants"),
]


@pytest.mark.parametrize(("role", "verb", "what", "want"), ROLES)
def test_the_clusters_own_roles_know_weirs_kinds(
    weir: Installation, role: str, verb: str, what: str, want: str
) -> None:
    kubectl = weir.target.kubectl
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"a-{role}er"}
    kubectl.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"a-{role}er", "namespace": SERVICES},
            "roleRef": {**subject, "kind": "ClusterRole", "name": role},
            "subjects": [subject],
        }
    )
    resource, _, subresource = what.partition("/")

    def granted() -> None:
        answer = kubectl.attempt(
            "auth", "can-i", verb, resource, f"--subresource={subresource}",
            f"--as={subject['name']}", f"--namespace={SERVICES}",
        )  # fmt: skip
        assert answer.out.strip() == want, answer

    eventually(granted)


BOUNDED = "weir-e2e-bounded"


@pytest.fixture(scope="module")
def bounded(engines_load: None, target: Target) -> Iterator[Target]:
    """A namespace in which the chart's policy bounds podTemplate."""
    policy = {
        "create": True,
        "allowedFields": ["nodeSelector", "containers", "volumes"],
        "allowedContainerFields": ["name", "env"],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": BOUNDED}},
    }
    rendered = Installation(target).rendered(
        {"podTemplatePolicy": policy}, "--show-only=templates/podtemplatepolicy.yaml"
    )
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": BOUNDED}}
    target.kubectl.apply(namespace)
    # One that was there before the policy.
    target.kubectl.apply(service(HOST_PATH, BOUNDED, "older"))
    for manifest in rendered:
        target.kubectl.apply(manifest)

    def in_force() -> None:
        refusal(target, HOST_PATH)

    eventually(in_force)
    yield target
    for manifest in rendered:
        target.kubectl("delete", manifest["kind"], manifest["metadata"]["name"])
    target.kubectl("delete", "namespace", BOUNDED, "--wait=false")


def refusal(target: Target, spec: dict[str, Any]) -> str:
    """Return why the API server refuses a service; fail if it does not."""
    done = target.kubectl.attempt(
        "create", "--dry-run=server", "--filename=-", stdin=json.dumps(service(spec, BOUNDED))
    )
    assert done.code, done.out
    return done.err


def service(spec: dict[str, Any], namespace: str, name: str = "tried") -> Manifest:
    """Return a service without replicas."""
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**copy.deepcopy(quickstart_spec()), "replicas": 0, **spec},
    }


HOST_PATH = {"podTemplate": {"spec": {"volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}]}}}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(HOST_PATH, "names no hostPath volume", id="a volume of the node's"),
        pytest.param(
            {"pools": [{"name": "gpu", **HOST_PATH}]},
            "names no hostPath volume",
            id="a volume of the node's, in a pool",
        ),
        pytest.param(
            {"model": {"name": "m", "source": {"uri": "file:///etc"}}},
            "no source is file://",
            id="weights of the node's",
        ),
        pytest.param(
            {
                "model": {
                    "name": "m",
                    "source": {"uri": "tiny://"},
                    "cache": {"hostPath": "/srv/models"},
                }
            },
            "model.cache names no hostPath",
            id="a cache of the node's",
        ),
        pytest.param(
            {"podTemplate": {"spec": {"hostNetwork": True}}},
            "no fields but nodeSelector, containers, volumes",
            id="the node's network",
        ),
        pytest.param(
            {
                "podTemplate": {
                    "spec": {
                        "containers": [{"name": "engine", "securityContext": {"privileged": True}}]
                    }
                }
            },
            "no fields but name, env",
            id="a privileged container",
        ),
        pytest.param(
            {"podTemplate": {"spec": {"containers": "all"}}},
            "expected iterable type",
            id="nonsense",
        ),
    ],
)
def test_the_policy_refuses(bounded: Target, spec: dict[str, Any], words: str) -> None:
    assert words in refusal(bounded, spec)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="no patch"),
        pytest.param({"podTemplate": {"metadata": {"labels": {"a": "b"}}}}, id="labels"),
        pytest.param(
            {
                "podTemplate": {
                    "spec": {
                        "nodeSelector": {"a": "b"},
                        "containers": [{"name": "engine", "env": [{"name": "A", "value": "b"}]}],
                        "volumes": [{"name": "scratch", "emptyDir": {}}],
                    }
                }
            },
            id="what it allows",
        ),
    ],
)
def test_the_policy_lets_through(bounded: Target, spec: dict[str, Any]) -> None:
    bounded.kubectl(
        "create", "--dry-run=server", "--filename=-", stdin=json.dumps(service(spec, BOUNDED))
    )


def test_a_service_older_than_the_policy_is_labelled_and_deleted_and_not_edited(
    bounded: Target,
) -> None:
    where = f"--namespace={BOUNDED}"
    bounded.kubectl("label", "infs", "older", "a=b", where)
    edit = ("infs", "older", where, "--type=merge", '--patch={"spec":{"replicas":1}}')
    assert "names no hostPath volume" in bounded.kubectl.attempt("patch", *edit).err
    bounded.kubectl("delete", "infs", "older", where, "--cascade=foreground", "--timeout=60s")

"""Weir arrives by Helm, with the rights it needs and no others."""

from __future__ import annotations

import pytest

from e2e.eventually import eventually
from e2e.installation import NAMESPACE, RELEASE, Installation
from e2e.kube import name_of
from e2e.service import Service

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
    before = {name_of(pod) for pod in weir.pods()}

    weir.upgrade({"operator": {"podAnnotations": {"example.com/upgraded": "yes"}}})
    weir.ready()

    def replaced() -> None:
        assert not before & {name_of(pod) for pod in weir.pods()}

    eventually(replaced)
    weir.acts_on(mocked)
    assert mocked.templates() == templates
    assert mocked.pod()["metadata"]["uid"] == replica["metadata"]["uid"]

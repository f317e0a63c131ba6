"""What is deleted is gone, with everything that came with it; what comes again works again.

The last scenarios of a run: they leave the cluster without Weir.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.eventually import eventually
from e2e.installation import CHART, LEASE, Installation
from e2e.installation import NAMESPACE as OPERATOR_NAMESPACE
from e2e.kube import Manifest, kind_and_name
from e2e.service import MOCK_ENGINE, Service
from e2e.target import Target

EARLIER_LEASE: Manifest = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {
        "name": LEASE,
        "namespace": OPERATOR_NAMESPACE,
        "labels": {"app.kubernetes.io/instance": "weir"},
    },
}
"""What charts of earlier versions held."""


def test_a_deleted_service_leaves_nothing(mocked: Service) -> None:
    assert {one["kind"] for one in mocked.owned()} >= {"Deployment", "Service", "Pod"}
    mocked.delete()

    def gone() -> None:
        assert [kind_and_name(one) for one in mocked.owned()] == []

    eventually(gone)
    assert mocked.target.kubectl.find("infs", mocked.name, "weir-e2e") is None


def test_uninstalling_leaves_nothing_but_the_resource_types_and_the_lease(
    weir: Installation,
) -> None:
    kubectl = weir.target.kubectl
    weir.uninstall()

    def gone() -> None:
        left = kubectl(
            "get", "all,leases,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets",
            f"--namespace={OPERATOR_NAMESPACE}", "--output=name",
        ).split()  # fmt: skip
        assert set(left) == {"serviceaccount/default", f"lease.coordination.k8s.io/{LEASE}"}
        cluster_wide = kubectl("get", "clusterroles,clusterrolebindings,ipc", "--output=name")
        assert [one for one in cluster_wide.split() if "weir" in one] == []

    eventually(gone)
    kept = kubectl("get", "crds", "--output=name").split()
    assert len([one for one in kept if one.endswith("serving.weir.dev")]) == 3


@pytest.mark.parametrize("manager", ["kubectl", "helm"])
def test_weir_can_be_installed_again_after_its_definitions_were_applied(
    weir: Installation, manager: str
) -> None:
    weir.define(f"--field-manager={manager}")
    weir.uninstall()
    weir.ensure()
    weir.ready()


def test_an_upgrade_that_deletes_an_earlier_charts_lease_goes_on_leading(
    target: Target, tmp_path: Path
) -> None:
    weir = Installation(target)
    weir.uninstall()
    target.kubectl("delete", "lease", LEASE, f"--namespace={OPERATOR_NAMESPACE}")
    chart = shutil.copytree(CHART, tmp_path / "weir")
    (chart / "templates/lease.yaml").write_text(yaml.safe_dump(EARLIER_LEASE))
    weir.upgrade({}, chart)
    weir.ready()
    of_the_chart = weir.lease()
    assert of_the_chart is not None

    weir.upgrade({})

    def led() -> None:
        lease = weir.lease()
        assert lease is not None
        assert lease["metadata"]["uid"] != of_the_chart["metadata"]["uid"]
        assert weir.holder() == weir.pods()[0]["metadata"]["name"]

    eventually(led)
    weir.ready()
    weir.uninstall()


@pytest.fixture
def applied(target: Target) -> Iterator[Installation]:
    """Weir rendered and applied, as Argo CD does it, where no Lease was; no release of Helm's."""
    weir = Installation(target)
    kubectl = target.kubectl
    where = f"--namespace={OPERATOR_NAMESPACE}"
    kubectl("delete", "lease", LEASE, where, "--ignore-not-found")
    weir.define("--field-manager=helm")
    apply(target, weir.rendered({}))
    yield weir
    kubectl("delete", "--filename=-", "--ignore-not-found", stdin=as_list(weir.rendered({})))


def apply(target: Target, manifests: list[Manifest], *options: str) -> str:
    """Apply manifests with a client that notes what it applied, to prune later."""
    return target.kubectl("apply", "--filename=-", *options, stdin=as_list(manifests))


def as_list(manifests: list[Manifest]) -> str:
    """Return manifests as one document."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


PRUNING = (
    "--prune", "--selector=app.kubernetes.io/instance=weir",
    "--prune-allowlist=coordination.k8s.io/v1/Lease",
)  # fmt: skip


def test_rendered_and_applied_weir_serves_and_a_pruned_lease_comes_back(
    applied: Installation,
) -> None:
    rendered = applied.rendered({})
    assert [kind_and_name(one) for one in rendered if one["kind"] == "Lease"] == []
    applied.ready()
    (operator,) = applied.pods()
    assert applied.holder() == operator["metadata"]["name"]
    served = Service(applied.target, "applied", pod_patch=MOCK_ENGINE)
    served.apply()
    served.wait_ready(1)

    apply(applied.target, [*rendered, EARLIER_LEASE])
    before = applied.lease()
    assert before is not None
    said = apply(applied.target, rendered, *PRUNING)
    assert f"lease.coordination.k8s.io/{LEASE} pruned" in said

    def back() -> None:
        lease = applied.lease()
        assert lease is not None
        assert lease["metadata"]["uid"] != before["metadata"]["uid"]
        assert applied.holder() == operator["metadata"]["name"]

    eventually(back)
    applied.acts_on(served)
    (still,) = applied.pods()
    assert still["metadata"]["uid"] == operator["metadata"]["uid"]
    assert still["status"]["containerStatuses"][0]["restartCount"] == 0
    served.delete()

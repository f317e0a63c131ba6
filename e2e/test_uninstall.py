"""What is deleted is gone, with everything that came with it."""

from __future__ import annotations

from e2e.eventually import eventually
from e2e.installation import NAMESPACE as OPERATOR_NAMESPACE
from e2e.installation import Installation
from e2e.kube import name_of
from e2e.service import Service


def test_a_deleted_service_leaves_nothing(mocked: Service) -> None:
    assert {one["kind"] for one in mocked.owned()} >= {"Deployment", "Service", "Pod"}
    mocked.delete()

    def gone() -> None:
        assert [name_of(one) for one in mocked.owned()] == []

    eventually(gone)
    assert mocked.target.kubectl.find("infs", mocked.name, "weir-e2e") is None


def test_uninstalling_leaves_nothing_but_the_resource_types(weir: Installation) -> None:
    kubectl = weir.target.kubectl
    weir.uninstall()

    def gone() -> None:
        left = kubectl(
            "get", "all,leases,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets",
            f"--namespace={OPERATOR_NAMESPACE}", "--output=name",
        ).split()  # fmt: skip
        assert [one for one in left if one != "serviceaccount/default"] == []
        cluster_wide = kubectl("get", "clusterroles,clusterrolebindings,ipc", "--output=name")
        assert [one for one in cluster_wide.split() if "weir" in one] == []

    eventually(gone)
    kept = kubectl("get", "crds", "--output=name").split()
    assert len([one for one in kept if one.endswith("serving.weir.dev")]) == 3

"""A service's own labels and annotations are on all that it owns, and no tool's bookkeeping is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import service
from weir_core.wire.policies import PolicyDocument
from weir_operator.render import desired_state, pod_templates, policies_secret
from weir_operator.revisions import choose, spec_digest

Manifest = dict[str, Any]

LABELS = {"team": "search", "kueue.x-k8s.io/queue-name": "gpus", "example.com/cost-centre": "42"}
ANNOTATIONS = {"example.com/owner": "a@b", "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
OURS = "serving.weir.dev/service"


def owned(**meta: Any) -> list[Manifest]:
    owner = service(**meta)
    chosen = choose(owner, pod_templates(owner), []).values()
    revisions = [each.new for each in chosen if each.new is not None]
    return [*desired_state(owner), policies_secret(owner, PolicyDocument()), *revisions]


def pod_metadata(**meta: Any) -> Manifest:
    (template,) = pod_templates(service(**meta)).values()
    found: Manifest = template["metadata"]
    return found


def test_every_owned_object_and_pod_has_the_labels_and_annotations_of_the_service() -> None:
    objects = [each["metadata"] for each in owned(labels=LABELS, annotations=ANNOTATIONS)]
    for meta in (*objects, pod_metadata(labels=LABELS, annotations=ANNOTATIONS)):
        assert meta["labels"].items() >= LABELS.items(), meta["name"]
        assert meta["annotations"].items() >= ANNOTATIONS.items(), meta["name"]
        assert meta["labels"][OURS] == "chat"


@pytest.mark.parametrize(
    "key",
    [
        "kubectl.kubernetes.io/last-applied-configuration",
        "argocd.argoproj.io/tracking-id",
        "argocd.argoproj.io/sync-wave",
        "argocd.argoproj.io/instance",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/managed-by",
        "meta.helm.sh/release-name",
        "helm.sh/chart",
        "helm.toolkit.fluxcd.io/name",
        "kustomize.toolkit.fluxcd.io/name",
        "config.k8s.io/owning-inventory",
        "kapp.k14s.io/app",
        "objectset.rio.cattle.io/id",
        "skaffold.dev/run-id",
        "serving.weir.dev/service",
        "serving.weir.dev/rotate-peer-key",
    ],
)
def test_what_a_tool_or_kubernetes_keeps_for_itself_stays_on_the_service(key: str) -> None:
    plain, marked = owned(), owned(labels={key: "mark"}, annotations={key: "mark"})
    assert [each["metadata"] for each in plain] == [each["metadata"] for each in marked]
    assert "mark" not in pod_metadata(labels={key: "mark"})["labels"].values()


def test_a_label_of_the_service_rolls_no_pods() -> None:
    """It is on the Deployment at once, and on the pods with their next new template."""
    before, after = service(), service(labels=LABELS, annotations=ANNOTATIONS)
    (pool,) = before.spec.hardware_pools
    assert spec_digest(before, pool) == spec_digest(after, pool)
    revision = choose(before, pod_templates(before), [])[pool.name].new
    assert revision is not None
    kept = choose(after, pod_templates(after), [revision])[pool.name]
    assert (kept.template, kept.new) == (revision["data"], None)


def test_a_patch_may_give_the_pods_another_value() -> None:
    patch = {"podTemplate": {"metadata": {"labels": {"team": "pods"}}}}
    (template,) = pod_templates(service(patch, labels=LABELS)).values()
    assert template["metadata"]["labels"]["team"] == "pods"


def test_what_the_operator_remembers_is_beside_the_annotations_of_the_service() -> None:
    secret = policies_secret(service(annotations=ANNOTATIONS), PolicyDocument(), {"note": "now"})
    assert secret["metadata"]["annotations"] == {**ANNOTATIONS, "note": "now"}

"""The gateways of a service that may have no replicas: two small pods, without an engine.

They have the service's label, so its Service, its list of peers and its NetworkPolicy have them as
they have the replicas. They are ready all the time, and the Service sends them a share of the
requests while replicas serve, too; they route these on, as any sidecar does. Were they in the
Service only while there is no replica, requests that come in the moment between the last replica's
leave and the gateways' readiness would find nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.api.scaling import Gateways
from weir_operator.render.containers import sidecar
from weir_operator.render.naming import Manifest, common_labels, gateway_name, inherited, metadata
from weir_operator.render.patch import patched
from weir_operator.render.pods import GRACE_PERIOD_S, Images, pod_security
from weir_operator.render.policies import policies_volume

GATEWAYS: Final = 2
"""One more than it takes: a node may go."""
_REQUESTS: Final = {"cpu": "100m", "memory": "256Mi"}
_OF_SIDECARS: Final = (
    *("name", "image", "imagePullPolicy", "env", "envFrom"),
    *("resources", "securityContext", "volumeMounts"),
)
"""Fields of the sidecar in spec.podTemplate that count for a gateway."""
_OF_PODS: Final = (
    *("serviceAccountName", "automountServiceAccountToken", "imagePullSecrets"),
    *("securityContext", "hostUsers", "priorityClassName", "preemptionPolicy"),
    *("terminationGracePeriodSeconds", "topologySpreadConstraints"),
    *("dnsConfig", "dnsPolicy", "hostAliases"),
)
"""Fields of the pod in spec.podTemplate that count for a gateway. What binds a replica to nodes
with accelerators does not (nodeSelector, affinity, tolerations, runtimeClassName, schedulerName,
resources, the host's namespaces): it would hold such a node for as long as the service sleeps."""
_PLATFORM: Final = ("kubernetes.io/arch", "kubernetes.io/os")
"""Node labels that images are made for."""
_NOT_OF_GATEWAYS: Final = (labels.ENV_POOL, labels.ENV_RUN_DIR, labels.ENV_ADAPTER_SLOTS)


def gateway_deployment(
    owner: InferenceService, images: Images, current: Manifest | None = None
) -> Manifest:
    """Return the Deployment of a service's gateways.

    Args:
        owner: The service.
        images: Where the sidecar's image is named.
        current: The Deployment as it is. An upgrade of the operator alone does not replace its
            pods, as it does no replica's: what they were made from stays while the spec does.
    """
    digest = _digest(owner)
    template = _template(owner, images)
    if current is not None:
        noted = current["metadata"].get("annotations", {}).get(labels.SPEC_HASH)
        template = current["spec"]["template"] if noted == digest else template
    meta = metadata(owner, gateway_name(owner), labels.GATEWAY)
    meta["annotations"] = {**meta.get("annotations", {}), labels.SPEC_HASH: digest}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "paused": False,
            "replicas": GATEWAYS,
            "revisionHistoryLimit": 3,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "selector": {"matchLabels": _selector(owner)},
            "template": template,
        },
    }


def _selector(owner: InferenceService) -> dict[str, str]:
    return {labels.SERVICE: owner.metadata.name, labels.COMPONENT: labels.GATEWAY}


def _digest(owner: InferenceService) -> str:
    """Return a digest of what of a spec is in a gateway's pod."""
    spec = owner.spec
    written = [
        spec.model.name,
        list(spec.engine_of(spec.hardware_pools[0]).args),
        None if spec.tracing is None else spec.tracing.model_dump(mode="json"),
        _patch(owner),
        owner.metadata.annotations.get(labels.RESTARTED_AT),
    ]
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


def _template(owner: InferenceService, images: Images) -> Manifest:
    restarted = owner.metadata.annotations.get(labels.RESTARTED_AT)
    spec: dict[str, Any] = {
        "serviceAccountName": owner.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "securityContext": pod_security(images),
        "affinity": {"podAntiAffinity": _apart(owner)},
        "containers": [_container(owner, images)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, policies_volume(owner)],
    }
    annotations = inherited(owner.metadata.annotations)
    if restarted:
        annotations[labels.RESTARTED_AT] = restarted
    meta = {"labels": inherited(owner.metadata.labels), "annotations": annotations}
    template = patched({"metadata": meta, "spec": spec}, _patch(owner))
    template["metadata"]["labels"] |= common_labels(owner, labels.GATEWAY)
    grace = str(template["spec"].setdefault("terminationGracePeriodSeconds", GRACE_PERIOD_S))
    (container,) = template["spec"]["containers"]
    container["env"].append({"name": labels.ENV_GRACE_PERIOD_S, "value": grace})
    return template


def _container(owner: InferenceService, images: Images) -> Manifest:
    """Return a replica's sidecar without what belongs to an engine."""
    made = sidecar(owner, owner.spec.hardware_pools[0], images.sidecar)
    del made["restartPolicy"]
    env = [each for each in made["env"] if each["name"] not in _NOT_OF_GATEWAYS]
    anywhere = (f"[::]:{port}" for port in (labels.API_PORT, labels.ADMIN_PORT))
    listen, admin = anywhere
    return {
        **made,
        "command": ["weir-sidecar", "gateway", "--listen", listen, "--admin", admin],
        "env": env,
        "resources": {"requests": dict(_REQUESTS)},
        "volumeMounts": [each for each in made["volumeMounts"] if each["name"] != "run"],
    }


def _apart(owner: InferenceService) -> Manifest:
    """Return the wish for different nodes, which a cluster of one node does not fulfil."""
    term = {
        "labelSelector": {"matchLabels": _selector(owner)},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": term}
        ]
    }


def _patch(owner: InferenceService) -> Manifest:
    """Return what is written of a gateway's pod: what of spec.podTemplate engines do not need.

    Of the containers that is the sidecar, but for what it runs and when; of the volumes those that
    it mounts. Where it may run is said in spec.scaling.gateways.
    """
    written = owner.spec.pod_template or {}
    pod = written.get("spec") or {}
    sidecars = [
        {key: value for key, value in each.items() if key in _OF_SIDECARS}
        for each in pod.get("initContainers") or ()
        if each.get("name") == labels.SIDECAR_CONTAINER
    ]
    mounted = {mount.get("name") for each in sidecars for mount in each.get("volumeMounts") or ()}
    used = [each for each in pod.get("volumes") or () if each.get("name") in mounted]
    spec = {key: value for key, value in pod.items() if key in _OF_PODS}
    return {
        **written,
        "spec": {**spec, **_place(owner, pod), "containers": sidecars, "volumes": used},
    }


def _place(owner: InferenceService, pod: Manifest) -> Manifest:
    """Return on which nodes gateways may run, where that is not any."""
    selected = pod.get("nodeSelector")
    written = selected.items() if isinstance(selected, dict) else ()
    nodes = {key: value for key, value in written if key in _PLATFORM}
    scaling = owner.spec.scaling
    said = Gateways() if scaling is None else scaling.gateways
    nodes |= said.node_selector
    place: Manifest = {"nodeSelector": nodes} if nodes else {}
    if said.tolerations:
        place["tolerations"] = [dict(each) for each in said.tolerations]
    return place

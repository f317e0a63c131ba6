"""The Jobs that fill a cache before a replica is there to do it.

A Job's pod is what the `model` container of a replica's pod is, with its patches, and asks for no
node of the pool: any node that can mount the claim will do, and a GPU is not kept waiting. Pools
that fetch the same share a Job. Its name follows from its pod, because a Job's pod cannot be
changed: another source is another Job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_core.wire.engine import EngineConfig
from weir_operator.render.containers import config_variable, fetches
from weir_operator.render.groups import replica_of
from weir_operator.render.naming import Manifest, metadata, prefetch_name

_COMPONENT: Final = "prefetch"
_OF_PODS: Final = (
    *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"),
    *("securityContext", "imagePullSecrets", "tolerations", "priorityClassName"),
    *("hostAliases", "dnsPolicy", "dnsConfig"),
)
"""Fields of a replica's pod that hold for the Job's."""
_WHERE_IMAGES_RUN: Final = ("kubernetes.io/arch", "kubernetes.io/os")
"""What of a node selector holds for any pod of the image."""
_OF_REPLICAS: Final = (labels.SERVICE, labels.POOL)
"""Labels by which a replica's pods are found."""


def prefetch_jobs(owner: InferenceService, templates: Mapping[str, Manifest]) -> list[Manifest]:
    """Return the Jobs that fill the cache of a service, which may be none.

    Args:
        owner: The service.
        templates: What each pool's pods are made from, by the pool's name.
    """
    cache = owner.spec.model.cache
    if cache is None or not cache.prefetch:
        return []
    pools = owner.spec.hardware_pools
    made = (job for pool in pools for job in _jobs(owner, pool, replica_of(templates[pool.name])))
    return list({job["metadata"]["name"]: job for job in made}.values())


def _jobs(owner: InferenceService, pool: Pool, template: Manifest) -> Iterator[Manifest]:
    """Yield the Job of a pool, unless its podTemplate took the download away."""
    for container in template["spec"]["initContainers"]:
        if container["name"] == labels.MODEL_CONTAINER:
            yield _job(owner, _pod(owner, pool, template, container))


def _job(owner: InferenceService, pod: Manifest) -> Manifest:
    text = json.dumps([owner.metadata.name, pod], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, prefetch_name(owner, digest), _COMPONENT),
        "spec": {"template": pod},
    }


def _pod(owner: InferenceService, pool: Pool, template: Manifest, container: Manifest) -> Manifest:
    replica = template["spec"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    selected = {
        key: value
        for key, value in replica.get("nodeSelector", {}).items()
        if key in _WHERE_IMAGES_RUN
    }
    spec: dict[str, Any] = {
        # Each attempt's pod stays, and with it the log of what went wrong.
        "restartPolicy": "Never",
        **{field: replica[field] for field in _OF_PODS if field in replica},
        **({"nodeSelector": selected} if selected else {}),
        "containers": [_fetching(owner, pool, container)],
        "volumes": [each for each in replica["volumes"] if each["name"] in mounted],
    }
    written = template["metadata"]["labels"]
    kept = {key: value for key, value in written.items() if key not in _OF_REPLICAS}
    return {"metadata": {"labels": {**kept, labels.COMPONENT: _COMPONENT}}, "spec": spec}


def _fetching(owner: InferenceService, pool: Pool, container: Manifest) -> Manifest:
    """Return the container of a replica, told of all downloads, those of adapters, too."""
    model = owner.spec.model
    config = EngineConfig(
        name=model.name,
        source=model.source,
        adapters=tuple(each for each in model.adapters if fetches(each.source)),
        args=owner.spec.engine_of(pool).args,
    )
    told = config_variable(config)
    env = [each for each in container["env"] if each["name"] != told["name"]]
    return {**container, "env": [told, *env]}

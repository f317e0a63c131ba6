"""A Deployment per hardware pool."""

from __future__ import annotations

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService, Pool
from weir_operator.render.naming import Manifest, Names, deployment_name, metadata, selector

PROGRESS_DEADLINE_S = 3600
"""A large model takes long to load; the operator's own conditions speak much earlier."""


def deployment(
    owner: InferenceService,
    pool: Pool,
    template: Manifest,
    replicas: int | None = None,
    names: Names | None = None,
) -> Manifest:
    """Return a pool's Deployment around its pod template, with the spec's replicas by default."""
    rollout = owner.spec.rollout
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(
            owner, deployment_name(owner, pool, names), "replica", **{labels.POOL: pool.name}
        ),
        "spec": {
            "replicas": owner.spec.replicas_of(pool) if replicas is None else replicas,
            # Said, so that a Deployment which someone paused is resumed.
            "paused": False,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": PROGRESS_DEADLINE_S,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": rollout.max_surge,
                    "maxUnavailable": rollout.max_unavailable,
                },
            },
            "selector": {"matchLabels": selector(owner, pool)},
            "template": template,
        },
    }

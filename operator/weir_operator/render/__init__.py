"""The full desired state of an InferenceService, as pure data.

`desired_state` is what the operator applies to a cluster and what `weir up` runs on a laptop; both
see the same pods. Nothing here talks to anything, so the tests compare whole manifests. The Secret
with classes and tenants is rendered by itself (`policies_secret`): it comes from more than the
service, and changes without it.
"""

from __future__ import annotations

from weir_core.api.inferenceservice import InferenceService, Pool
from weir_operator.render.access import Access, network_policy, service_account
from weir_operator.render.gateways import gateway_deployment
from weir_operator.render.groups import (
    group_budget,
    group_policy,
    group_set,
    group_templates,
    is_of_groups,
)
from weir_operator.render.naming import (
    Manifest,
    Names,
    deployment_name,
    group_name,
    names_in,
    service_url,
)
from weir_operator.render.pods import Images, pod_template
from weir_operator.render.policies import (
    POLICIES_ANNOTATION,
    digest_of,
    document_in,
    policies_name,
    policies_secret,
)
from weir_operator.render.prefetch import prefetch_jobs
from weir_operator.render.services import (
    disruption_budget,
    gateway_disruption_budget,
    headless_service,
    service,
)
from weir_operator.render.workloads import deployment, same_workload

__all__ = [
    "POLICIES_ANNOTATION",
    "Access",
    "Images",
    "Manifest",
    "Names",
    "deployment",
    "deployment_name",
    "desired_state",
    "digest_of",
    "document_in",
    "gateway_deployment",
    "group_name",
    "group_set",
    "is_of_groups",
    "names_in",
    "network",
    "pod_templates",
    "policies_name",
    "policies_secret",
    "prefetch_jobs",
    "same_workload",
    "service_url",
]


def pod_templates(owner: InferenceService, images: Images | None = None) -> dict[str, Manifest]:
    """Return what each pool's pods are made from by the pool's name.

    It is a pod template, or those of a group where a replica spreads over nodes.

    Raises:
        InvalidSpec: The spec contradicts itself in a way only rendering shows.
    """
    images = images or Images()
    return {pool.name: _made_from(owner, pool, images) for pool in owner.spec.hardware_pools}


def _made_from(owner: InferenceService, pool: Pool, images: Images) -> Manifest:
    template = pod_template(owner, pool, images)
    nodes = owner.spec.engine_of(pool).parallelism.nodes
    return group_templates(template, nodes) if nodes > 1 else template


def network(
    owner: InferenceService,
    names: Names | None = None,
    access: Access | None = None,
    *,
    has_groups: bool = False,
) -> list[Manifest]:
    """Return what `owner`'s pods need to be found and kept apart, in the order to apply it.

    Args:
        owner: The service.
        names: Names that its objects have already (`names_in`). Default: none exists.
        access: What its NetworkPolicy admits beside what it says. Default: any source.
        has_groups: Whether there are pods of pools that spread over nodes, though the spec may
            have no such pool any more.
    """
    groups = [pool for pool in owner.spec.hardware_pools if owner.spec.spreads(pool)]
    return [
        service_account(owner),
        network_policy(owner, access),
        *(group_policy(owner, pool) for pool in groups),
        headless_service(owner, names),
        service(owner),
        # A pod of two budgets cannot be evicted, so the one that gives up gateways goes first.
        disruption_budget(owner, has_groups=has_groups or bool(groups)),
        *([gateway_disruption_budget(owner)] if owner.spec.may_sleep else []),
        *(group_budget(owner, pool) for pool in groups),
    ]


def desired_state(owner: InferenceService, images: Images | None = None) -> list[Manifest]:
    """Return every object `owner` owns, in the order they should be applied.

    Args:
        owner: The service.
        images: Container images to use where the spec names none.

    Raises:
        InvalidSpec: The spec contradicts itself in a way only rendering shows.
    """
    images = images or Images()
    templates = pod_templates(owner, images)
    pools = owner.spec.hardware_pools
    return [
        *network(owner),
        *([gateway_deployment(owner, images)] if owner.spec.may_sleep else []),
        *(_workload(owner, pool, templates[pool.name]) for pool in pools),
        *prefetch_jobs(owner, templates),
    ]


def _workload(owner: InferenceService, pool: Pool, template: Manifest) -> Manifest:
    if is_of_groups(template):
        return group_set(owner, pool, template, owner.spec.replicas_of(pool))
    return deployment(owner, pool, template)

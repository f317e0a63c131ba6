"""Tells a service's sidecars their classes, tenants, modes and peers: part of each pass.

The document goes into a Secret that the pods mount. A kubelet looks at mounted Secrets again only
every minute or so, unless the pod itself changes: so after a change each pod gets an annotation
with the document's digest, and the kubelet mounts the new one at once. The pods need no right in
the cluster for that, and no pod is replaced.

Peers come and go with each replica, so they have no part in the digest: a pod is touched for them
once, when the Secret has its own address. The list it then mounts names every pod that was touched
before it, and it greets those. So of any two pods the later one finds the earlier one, and a fleet
of n costs n touches.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from weir_core.errors import ClusterRefuses, InvalidSpec
from weir_core.wire.compiler import Declared, compile_policies
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.problems import Problem
from weir_core.wire.tenant_entries import Secrets, secret_of
from weir_operator import peers
from weir_operator.cluster import SECRET, Cluster
from weir_operator.interests import Interests
from weir_operator.parse import parse_governed
from weir_operator.render import (
    POLICIES_ANNOTATION,
    Manifest,
    digest_of,
    document_in,
    policies_name,
)
from weir_operator.verdicts import is_told

log = logging.getLogger(__name__)


class Told(NamedTuple):
    """What sidecars are told, and what is not in it as it was written."""

    document: PolicyDocument
    problems: Sequence[Problem]


async def compiled(
    body: Manifest,
    cluster: Cluster,
    interests: Interests[tuple[str, str]],
    before: Manifest | None,
) -> Told:
    """Return the document for a service, given the Secret with the one before.

    Args:
        body: The service as the API server holds it; most of its spec may be wrong.
        cluster: The API server.
        interests: Where to note which objects the document comes from.
        before: The Secret as it is now, or None.

    Returns:
        The document without peers and their keys (`weir_operator.peers`).

    Raises:
        ClusterUnavailable: The API server cannot serve now.
    """
    held = document_in(before)
    service, wrong = parse_governed(body, held)
    namespace, name = service.metadata.namespace, service.metadata.name
    classes = await _allowed(cluster.classes)
    tenants = await _allowed(lambda: cluster.tenants(namespace))
    named = {each for each in map(secret_of, tenants or ()) if each is not None}
    # Noted before they are read: a change during this pass must ask for another.
    interests.note((namespace, name), named | {policies_name(service)})
    secrets = await _secrets(cluster, namespace, named)
    document, problems = compile_policies(Declared(service, classes, tenants, secrets), held)
    return Told(document, [*wrong, *problems])


async def tell(cluster: Cluster, pods: Sequence[Manifest], document: PolicyDocument) -> None:
    """Have the kubelets of these pods mount the document now.

    Raises:
        ClusterUnavailable: The API server cannot serve now.
    """
    digest = digest_of(document)
    listed = {peer.name: peer.address for peer in document.peers}
    for pod in pods:
        # Without an address it takes no requests: the pass after it has one is early enough.
        if not is_told(pod) or not peers.ip_of(pod):
            continue
        address = listed.get(pod["metadata"]["name"], "")
        if _knows(pod, digest, address):
            continue
        mark = f"{digest}@{address}" if address else digest
        try:
            await cluster.annotate_pod(pod, POLICIES_ANNOTATION, mark)
        except (ClusterRefuses, InvalidSpec) as error:
            # It comes all the same, when the kubelet next looks.
            log.warning("%s: told of its classes a minute late: %s", pod["metadata"]["name"], error)


def _knows(pod: Manifest, digest: str, address: str) -> bool:
    """Tell whether a pod was told of this document, and with its own address if that is in it."""
    annotations = pod["metadata"].get("annotations") or {}
    last, _, listed_as = annotations.get(POLICIES_ANNOTATION, "").partition("@")
    return last == digest and address in ("", listed_as)


async def _secrets(cluster: Cluster, namespace: str, names: set[str]) -> Secrets:
    """Return the values of those Secrets that are there and may be read."""
    found: dict[str, Mapping[str, str]] = {}
    for name in sorted(names):
        try:
            secret = await cluster.find(SECRET, namespace, name)
        except ClusterRefuses as error:
            log.warning("%s/%s: %s", namespace, name, error)
            continue
        if secret is not None:
            found[name] = {key: _text(value) for key, value in (secret.get("data") or {}).items()}
    return found


def _text(value: str) -> str:
    """Return a Secret's value; what is no text comes out as something that is no hash either."""
    try:
        return base64.b64decode(value).decode(errors="replace")
    except binascii.Error:
        return ""


async def _allowed(ask: Callable[[], Awaitable[list[Manifest]]]) -> list[Manifest] | None:
    """Return what is there, or None where the operator lacks the right to know."""
    try:
        return await ask()
    except ClusterRefuses as error:
        log.warning("%s", error)
        return None

"""Tells a service's sidecars their classes, tenants, modes and peers.

The document goes into a Secret that the pods mount. A kubelet looks at mounted Secrets again only
every minute or so, unless the pod itself changes: so after a change each pod gets an annotation
with the document's digest, and the kubelet mounts the new one at once. The pods need no right in
the cluster for that, and no pod is replaced.

Peers come and go with each replica, so they have no part in the digest: a pod is touched for them
once, when the Secret has its own address. The list it then mounts names every pod that was touched
before it, and it greets those. So of any two pods the later one finds the earlier one, and a fleet
of n costs n touches.

This part comes before all others, and asks for no more of the spec than it needs: pods that serve
what is left of an earlier spec must not go on taking a key that was revoked.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from weir_core.api import labels
from weir_core.errors import ClusterRefuses, InvalidSpec
from weir_core.wire.compiler import Declared, compile_policies
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.tenant_entries import Secrets, secret_of
from weir_operator import peers
from weir_operator.cluster import Cluster
from weir_operator.conditions import LONGEST_MESSAGE, POLICIES, Verdict
from weir_operator.interests import Interests
from weir_operator.kinds import SECRET
from weir_operator.observed import Observed, Told, belongs_to, in_the_way
from weir_operator.parse import parse_governed
from weir_operator.parts.part import Owned, Part
from weir_operator.render import (
    POLICIES_ANNOTATION,
    Manifest,
    digest_of,
    document_in,
    policies_name,
    policies_secret,
)
from weir_operator.views import Pod

log = logging.getLogger(__name__)


class Policies(Part):
    """One Secret, and a touch of each pod.

    Args:
        interests: Where to note which objects a document comes from.
        new_key: Makes a key for the sidecars of a service: 64 random hex digits.
    """

    condition = POLICIES
    owns: ClassVar[tuple[Owned, ...]] = (
        Owned(
            SECRET,
            "sidecars are told of classes, tenants and peers; hashes of tenants' keys are read",
            listed=False,
            watched=False,
            deleted=False,
        ),
    )

    def __init__(self, interests: Interests[tuple[str, str]], new_key: Callable[[], str]) -> None:
        self._interests = interests
        self._new_key = new_key

    async def observe(self, seen: Observed, cluster: Cluster) -> Observed:
        """Read classes, tenants and keys, and the document in force."""
        owner = seen.owner
        meta = owner.metadata
        before = await cluster.find(SECRET, meta.namespace, policies_name(owner))
        if before is not None and not belongs_to(before, owner):
            raise in_the_way(before, owner)
        held = document_in(before)
        governed, wrong = parse_governed(seen.body, held)
        classes = await _allowed(cluster.classes)
        tenants = await _allowed(lambda: cluster.tenants(meta.namespace))
        named = {each for each in map(secret_of, tenants or ()) if each is not None}
        # Noted before they are read: a change during this pass must ask for another.
        self._interests.note((meta.namespace, meta.name), named | {policies_name(owner)})
        secrets = await _secrets(cluster, meta.namespace, named)
        document, problems = compile_policies(Declared(governed, classes, tenants, secrets), held)
        told = Told(document, [*wrong, *problems], peers.keys_for(owner, before, self._new_key))
        owned = [*seen.owned, *([] if before is None else [before])]
        return replace(seen, told=told, owned=owned)

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return the Secret."""
        # Before the pods are touched: each then mounts a list with itself and all before it. One
        # that is made meanwhile has no address; when it is ready, its Deployment asks for a pass.
        return [policies_secret(seen.owner, _document(seen), seen.told.keys.rotation)]

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """Have the kubelets mount it now."""
        await _tell(cluster, seen.pods, _document(seen))
        return seen

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say what is not in force as it was written, and which pods cannot be told."""
        return {POLICIES: _policies(seen)}

    def forget(self, service: tuple[str, str]) -> None:
        """Forget what it read."""
        self._interests.forget(service)


def _document(seen: Observed) -> PolicyDocument:
    return peers.with_peers(seen.told.document, seen.pods, seen.told.keys)


def _policies(seen: Observed) -> Verdict:
    told = seen.told
    if told.problems:
        said = "; ".join(str(problem) for problem in told.problems)
        return Verdict("False", told.problems[0].reason, said[:LONGEST_MESSAGE])
    deaf = [pod for pod in seen.staying if not pod.is_told]
    if deaf:
        return Verdict(
            "False",
            "RestartNeeded",
            f"{len(deaf)} of {len(seen.staying)} pods are of an older Weir and know of no classes "
            f"or tenants; to replace them: kubectl annotate infs {seen.owner.metadata.name} "
            f'{labels.RESTARTED_AT}="$(date -u +%FT%TZ)" --overwrite',
        )
    classes, tenants = len(told.document.classes), len(told.document.tenants)
    said = f"{classes} classes" if classes else "the built-in classes"
    return Verdict("True", "Applied", f"{said}, {tenants} tenants")


async def _tell(cluster: Cluster, pods: Sequence[Pod], document: PolicyDocument) -> None:
    digest = digest_of(document)
    listed = {peer.name: peer.address for peer in document.peers}
    for pod in pods:
        # Without an address it takes no requests: the pass after it has one is early enough.
        if not pod.is_told or not pod.status.pod_ip:
            continue
        address = listed.get(pod.name, "")
        if _knows(pod, digest, address):
            continue
        mark = f"{digest}@{address}" if address else digest
        try:
            await cluster.annotate_pod(pod, POLICIES_ANNOTATION, mark)
        except (ClusterRefuses, InvalidSpec) as error:
            # It comes all the same, when the kubelet next looks.
            log.warning("%s: told of its classes a minute late: %s", pod.name, error)


def _knows(pod: Pod, digest: str, address: str) -> bool:
    """Tell whether a pod was told of this document, and with its own address if that is in it."""
    last, _, listed_as = pod.metadata.annotations.get(POLICIES_ANNOTATION, "").partition("@")
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

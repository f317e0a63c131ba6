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
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar, Final

from weir_core.api import labels
from weir_core.errors import ClusterRefuses, InvalidSpec
from weir_core.units import Seconds
from weir_core.wire.compiler import Declared, compile_policies
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.tenant_entries import Secrets, secret_of
from weir_operator import peers, tenants
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

SECRET_GRACE: Final = Seconds(300.0)
"""In seconds, by default."""


class Policies(Part):
    """One Secret, and a touch of each pod.

    Args:
        interests: Where to note which objects a document comes from.
        new_key: Makes a key for the sidecars of a service: 64 random hex digits.
        clock: The time of day, with its zone.
        grace: Seconds for which the keys of a Secret that is gone are still taken: one that is
            deleted and made again, as some tools edit, locks nobody out.
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

    def __init__(
        self,
        interests: Interests[tuple[str, str]],
        new_key: Callable[[], str],
        clock: Callable[[], datetime],
        grace: Seconds = SECRET_GRACE,
    ) -> None:
        self._interests = interests
        self._new_key = new_key
        self._clock = clock
        self._grace = timedelta(seconds=grace)

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
        listed = await _allowed(lambda: cluster.tenants(meta.namespace))
        named = {each for each in map(secret_of, listed or ()) if each is not None}
        # Noted before they are read: a change during this pass must ask for another.
        self._interests.note((meta.namespace, meta.name), named | {policies_name(owner)})
        secrets, gone = await _secrets(cluster, meta.namespace, named)
        missing = self._missing(before, gone)
        declared = Declared(governed, classes, listed, secrets, self._revoked(missing))
        document, problems = compile_policies(declared, held)
        keys = peers.keys_for(owner, before, self._new_key)
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        said = tenants.statuses(declared, now)
        unread = named - secrets.keys() - missing.keys()
        told = Told(document, [*wrong, *problems], keys, said, missing, unread)
        owned = [*seen.owned, *([] if before is None else [before])]
        return replace(seen, told=told, owned=owned)

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return the Secret."""
        # Before the pods are touched: each then mounts a list with itself and all before it. One
        # that is made meanwhile has no address; when it is ready, its Deployment asks for a pass.
        told, annotations = seen.told, dict[str, str]()
        if told.keys.rotation is not None:
            annotations[labels.ROTATE_PEER_KEY] = told.keys.rotation
        if told.missing:
            annotations[labels.SECRETS_MISSING] = json.dumps(dict(told.missing), sort_keys=True)
        return [policies_secret(seen.owner, _document(seen), annotations)]

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """Have the kubelets mount it now, and tell tenants what became of them."""
        await _tell(cluster, seen.pods, _document(seen))
        for tenant, status in seen.told.tenants:
            try:
                await cluster.write_status(tenant, status)
            except ClusterRefuses as error:  # PoliciesReady says the same
                log.warning("%s: no status: %s", tenant["metadata"]["name"], error)
        return seen

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say what is not in force as it was written, and which pods cannot be told."""
        return {POLICIES: _policies(seen)}

    def is_settled(self, seen: Observed) -> bool:
        """Tell whether no key is about to be revoked, and all was read that is named.

        A right to read Secrets that is granted later changes no object that a resync compares.
        """
        return not (seen.told.missing or seen.told.unread)

    def _missing(self, before: Manifest | None, gone: Collection[str]) -> dict[str, str]:
        """Return since when each of these Secrets is gone; it is kept with the document."""
        annotations = ((before or {}).get("metadata") or {}).get("annotations") or {}
        try:
            known = dict(json.loads(annotations.get(labels.SECRETS_MISSING, "{}")))
        except ValueError:  # someone edited it
            known = {}
        now = self._clock().isoformat(timespec="seconds")
        return {name: str(known.get(name, now)) for name in sorted(gone)}

    def _revoked(self, missing: Mapping[str, str]) -> set[str]:
        """Return those that are gone for longer than keys are kept."""
        now = self._clock()
        return {name for name, since in missing.items() if now - _time(since, now) >= self._grace}

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


def _time(text: str, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return otherwise


async def _secrets(
    cluster: Cluster, namespace: str, names: set[str]
) -> tuple[Secrets, Collection[str]]:
    """Return the values of those Secrets that may be read, and the names of those that are gone."""
    found: dict[str, Mapping[str, str]] = {}
    gone = []
    for name in sorted(names):
        try:
            secret = await cluster.find(SECRET, namespace, name)
        except ClusterRefuses as error:
            log.warning("%s/%s: %s", namespace, name, error)
            continue
        if secret is None:
            gone.append(name)
        else:
            found[name] = {key: _text(value) for key, value in (secret.get("data") or {}).items()}
    return found, gone


def _text(value: str) -> str:
    """Return a Secret's value; what is no text comes out as something that is no hash either."""
    try:
        return base64.b64decode(value).decode(errors="replace")
    except binascii.Error:
        return ""


async def _allowed(ask: Callable[[], Awaitable[list[Manifest]]]) -> list[Manifest] | None:
    """Return what is there, or None where the operator lacks the right to know, or the kind."""
    try:
        return await ask()
    except ClusterRefuses as error:
        log.warning("%s", error)
        return None

"""Which sidecars a service has, and the keys by which they know each other. Pure.

Both are part of the document that the pods mount. A key is a secret that only the Secret holds:
it is in no log, event, status or metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.wire.addresses import host_and_port
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_operator.observed import PeerKeys
from weir_operator.render import Manifest, document_in
from weir_operator.views import Pod

KEY_BYTES: Final = 32


def keys_for(
    owner: InferenceService, before: Manifest | None, new_key: Callable[[], str]
) -> PeerKeys:
    """Return the keys to put in force: those in force so far, unless a new one is asked for.

    A new key is added before the newest one, which stays: sidecars that have only the old one and
    those that have both show it to each other. An older one is dropped, so a rotation ends with
    the next. What was asked for is kept with the keys in one object, so that a pass that is
    repeated makes no second key.

    Args:
        owner: The service; its metadata suffices.
        before: The Secret as it is now, or None.
        new_key: Makes a key.
    """
    held = document_in(before)
    asked = owner.metadata.annotations.get(labels.ROTATE_PEER_KEY)
    if before is None or held is None or not held.peer_keys:
        return PeerKeys((new_key(),), asked)
    annotations = before["metadata"].get("annotations") or {}
    done = annotations.get(labels.ROTATE_PEER_KEY)
    if asked is None or asked == done:
        return PeerKeys(held.peer_keys, done)
    return PeerKeys((new_key(), held.peer_keys[0]), asked)


def with_peers(document: PolicyDocument, pods: Sequence[Pod], keys: PeerKeys) -> PolicyDocument:
    """Return the document with the pods whose sidecars can be reached, and the keys."""
    entries = (_entry(pod) for pod in pods if _is_reached(pod))
    peers = tuple(sorted(entries, key=lambda entry: entry.name))
    return msgspec.structs.replace(document, peers=peers, peer_keys=keys.valid)


def _is_reached(pod: Pod) -> bool:
    return bool(pod.status.pod_ip) and not pod.leaves and not pod.has_ended


def _entry(pod: Pod) -> PeerEntry:
    address = host_and_port(pod.status.pod_ip, labels.PEER_PORT)
    return PeerEntry(pod.name, address, serves=not pod.is_gateway)

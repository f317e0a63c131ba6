"""The Secret that tells a service's sidecars their classes, tenants, modes and peers.

It is no part of the pod template: the pods mount it, and a change of it reaches them while they
run. A Secret and not a ConfigMap: hashes of API keys are in it, and the keys of the peers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_core.wire.policies import PolicyDocument
from weir_operator.render.naming import Manifest, metadata

POLICIES_ANNOTATION: Final = f"{labels.GROUP}/policies"
"""On a pod: digest of the document it was last told of, and `@ADDRESS` where its own is in it."""


def policies_name(owner: InferenceService) -> str:
    """Return the Secret's name."""
    return f"{owner.metadata.name}-policies"


def policies_secret(
    owner: InferenceService, document: PolicyDocument, annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Return the Secret with the document.

    Args:
        owner: The service.
        document: What it holds.
        annotations: What the operator has to remember with it.
    """
    meta = metadata(owner, policies_name(owner), "policies")
    if annotations:
        meta["annotations"] = {**meta.get("annotations", {}), **annotations}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta,
        "type": "Opaque",
        "data": {labels.POLICIES_FILE: base64.b64encode(document.encode()).decode()},
    }


def document_in(secret: Manifest | None) -> PolicyDocument | None:
    """Return the document a Secret holds, or None where it holds none that can be read."""
    held = ((secret or {}).get("data") or {}).get(labels.POLICIES_FILE)
    if held is None:
        return None
    try:
        return PolicyDocument.decode(base64.b64decode(held))
    except ValueError:  # someone edited it, or a later Weir wrote it
        return None


def digest_of(document: PolicyDocument) -> str:
    """Return a short digest, by which pods with an older document are known.

    The peers have no part in it: a replica more or less would otherwise touch every pod.
    """
    lasting = msgspec.structs.replace(document, peers=())
    return hashlib.sha256(lasting.encode()).hexdigest()[:16]


def policies_volume(owner: InferenceService) -> Manifest:
    """Return the pods' volume; a pod starts without it where the Secret is not there yet."""
    return {
        "name": labels.POLICIES_VOLUME,
        "secret": {"secretName": policies_name(owner), "optional": True},
    }

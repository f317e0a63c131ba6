"""Kubernetes Events, so that `kubectl describe infs NAME` tells the story."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from weir_core.api.labels import FIELD_MANAGER
from weir_operator.render import Manifest
from weir_operator.status import is_trouble


def event(service: Manifest, condition: Mapping[str, str], at: datetime) -> Manifest:
    """Return the Event of one condition that turned.

    Its name comes from what happened and when, so a pass that is repeated after a failure makes
    the same Event again, which the API server then refuses as a duplicate.
    """
    meta = service["metadata"]
    stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    text = "/".join((meta["uid"], condition["type"], condition["reason"], stamp))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": service["apiVersion"],
            "kind": service["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "type": "Warning" if is_trouble(condition) else "Normal",
        "reason": condition["reason"],
        "message": f"{condition['type']} is {condition['status']}: {condition['message']}"[:1000],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }

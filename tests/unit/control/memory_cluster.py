"""An API server in memory, as far as the operator's own Protocol goes: objects in, objects out.

It keeps what server-side apply would keep (uid, status), counts generations by spec, and can be
told to be down. It checks nothing: that is for the tests on a real API server.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from copy import deepcopy
from typing import Any

from weir_core.api import labels
from weir_core.errors import ClusterRefuses, ClusterUnavailable
from weir_operator.kinds import POD, SECRET, Kind, kind_of
from weir_operator.views import Meta, Pod, view

Manifest = dict[str, Any]


class MemoryCluster:
    """Objects by kind, namespace and name."""

    def __init__(self, *objects: Manifest) -> None:
        self._numbers = itertools.count(1)
        self.objects: dict[tuple[Kind, str, str], Manifest] = {}
        self.all_pods: dict[tuple[str, str], list[Manifest]] = {}
        """Pods by namespace and service."""
        self.workers: dict[tuple[str, str], list[Manifest]] = {}
        """Pods of groups that are no leaders, by namespace and service."""
        self.events: list[Manifest] = []
        self.writes = 0
        self.applied: list[str] = []
        """Kinds of the objects that were applied, each as often as it was."""
        self.touched: list[str] = []
        """Names of pods, each as often as it was annotated."""
        self.down: Exception | None = None
        self.calls = 0
        self.calls_left: int | None = None
        """Calls that it still answers before it is down; None for no end."""
        self.no_events = False
        self.forbidden: set[str] = set()
        """Kinds the operator has no right to read, or in the case of pods to write."""
        self.unwritable: dict[str, Exception] = {}
        """What applying an object of a kind raises."""
        for one in objects:
            self.put(one)

    def put(self, manifest: Manifest) -> None:
        """Have an object, however it came there."""
        self.objects[_place(manifest)] = deepcopy(manifest)

    def of(self, kind: str) -> dict[str, Manifest]:
        """Return all objects of a kind by name."""
        return {name: one for (k, _, name), one in self.objects.items() if k.name == kind}

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        self._answer()
        if kind.name in self.forbidden:
            raise ClusterRefuses(f"{kind.name} is forbidden")
        found = deepcopy(self.objects.get((kind, namespace, name)))
        if found is not None and kind == SECRET:
            found["metadata"]["resourceVersion"] = _version(found)
        return found

    async def metadata(self, kind: Kind, selector: str = "") -> list[Meta]:
        self._answer()
        if kind.name in self.forbidden:
            raise ClusterRefuses(f"{kind.name} is forbidden")
        found = [one for (has, _, _), one in self.objects.items() if has == kind]
        if kind == POD:
            found = [_labelled(one, *at) for at, pods in self.all_pods.items() for one in pods]
        return [
            view(Meta, {**one["metadata"], "resourceVersion": _version(one)})
            for one in found
            if not selector or selector in one["metadata"].get("labels", {})
        ]

    async def owned(self, kind: Kind, namespace: str, service: str) -> list[Manifest]:
        self._answer()
        if kind.name in self.forbidden:
            raise ClusterRefuses(f"{kind.name} is forbidden")
        return [
            deepcopy(one)
            for (has, where, _), one in self.objects.items()
            if has == kind
            and where == namespace
            and one["metadata"].get("labels", {}).get("serving.weir.dev/service") == service
        ]

    async def pods(
        self, namespace: str, service: str, label: str = labels.SERVICE
    ) -> list[Manifest]:
        self._answer()
        kept = self.workers if label == labels.WORKER_OF else self.all_pods
        return deepcopy(kept.get((namespace, service), []))

    async def classes(self) -> list[Manifest]:
        return self._all("InferencePriorityClass")

    async def tenants(self, namespace: str) -> list[Manifest]:
        found = self._all("InferenceTenant")
        return [one for one in found if one["metadata"]["namespace"] == namespace]

    def _all(self, kind: str) -> list[Manifest]:
        self._answer()
        if kind in self.forbidden:
            raise ClusterRefuses(f"{kind} is forbidden")
        return deepcopy(list(self.of(kind).values()))

    async def annotate_pod(self, pod: Pod, key: str, value: str) -> None:
        self._answer()
        if "Pod" in self.forbidden:
            raise ClusterRefuses("pods are forbidden")
        self.writes += 1
        self.touched.append(pod.name)
        for one in itertools.chain(*self.all_pods.values()):
            if one["metadata"]["name"] == pod.name:
                one["metadata"].setdefault("annotations", {})[key] = value

    async def apply(self, manifest: Manifest) -> Manifest:
        self._answer()
        self.applied.append(manifest["kind"])
        if manifest["kind"] in self.unwritable:
            raise self.unwritable[manifest["kind"]]
        before = self.objects.get(_place(manifest))
        after = deepcopy(manifest)
        kept = {} if before is None else before["metadata"]
        changed = before is None or before.get("spec") != after.get("spec")
        after["metadata"]["uid"] = kept.get("uid", f"made-{next(self._numbers)}")
        after["metadata"]["generation"] = kept.get("generation", 0) + changed
        if before is not None and "status" in before:
            after["status"] = before["status"]
        self.writes += after != before
        self.objects[_place(manifest)] = after
        return deepcopy(after)

    async def delete(self, manifest: Manifest) -> None:
        self._answer()
        self.writes += 1
        self.objects.pop(_place(manifest), None)

    async def write_status(self, owner: Manifest, status: Manifest) -> None:
        self._answer()
        self.writes += 1
        found = self.objects[_place(owner)]
        if found["metadata"]["uid"] != owner["metadata"]["uid"]:
            raise ClusterUnavailable("422: the uid is another")
        found["status"] = deepcopy(status)

    async def record(self, event: Manifest) -> None:
        if self.no_events:
            raise ClusterUnavailable("events are not for you")
        self._answer()
        self.events.append(event)

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        self._answer()
        before = self.objects.get(_place(lease))
        version = None if before is None else before["metadata"]["resourceVersion"]
        if lease["metadata"].get("resourceVersion") != version:
            return None
        written = deepcopy(lease)
        written["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[_place(lease)] = written
        return deepcopy(written)

    def _answer(self) -> None:
        self.calls += 1
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise ClusterUnavailable("connection refused")
        if self.down is not None:
            raise self.down


def _labelled(pod: Manifest, namespace: str, service: str) -> Manifest:
    meta = pod["metadata"]
    marked = {**meta.get("labels", {}), labels.SERVICE: service}
    return {**pod, "metadata": {**meta, "namespace": namespace, "labels": marked}}


def _version(manifest: Manifest) -> str:
    """Return another text for each content, as a resourceVersion is."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _place(manifest: Manifest) -> tuple[Kind, str, str]:
    meta = manifest["metadata"]
    return kind_of(manifest), meta.get("namespace", ""), meta["name"]

"""The one client of the API server.

`Cluster` is all the operator asks of it; `Kubernetes` is the real one, on the asynchronous half of
the official client. Objects are written by server-side apply with the field manager
`weir-operator`, so that what others add to an object stays and what they change of ours comes back.

Of Secrets it reads two kinds, each by its name: the ones it writes itself, and those that an
InferenceTenant names. They are watched by their metadata alone, so that no other Secret's values
ever reach this process (`weir_operator.watches`). The right to watch would give it the values, too:
that is a habit of this client and no bound. Without that right they are read in each resync and no
sooner. Pods are patched for one thing: an annotation that makes the kubelet look at their Secret
again at once. `weir_operator.rights` lists the rights that all of this needs.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from weir_core.api import labels
from weir_core.errors import (
    ClusterRefuses,
    ClusterUnavailable,
    InvalidSpec,
    KindMissing,
    WatchExpired,
)
from weir_core.units import Seconds
from weir_operator.interests import Change
from weir_operator.kinds import CLASS, EVENT, LEASE, OPTIONAL, POD, TENANT, Kind, kind_of
from weir_operator.render import Manifest
from weir_operator.views import Meta, Pod, view

_CONNECT_S: Final = Seconds(5.0)
_PATIENCE: Final = Seconds(20.0)
"""In seconds, between two pieces of an answer."""
_AT_ONCE: Final = 32
"""Connections for calls; watches have their own."""
_WATCH_S: Final = 300
"""How long the API server keeps a watch, in seconds."""

_EXPIRED: Final = (400, 410, 504)
"""Where a watch cannot go on: the version is malformed, too old, or one that the API server has yet
to reach, as after its data was restored from a backup."""

_JSON: Final = "application/json"
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_APPLY: Final = "application/apply-patch+yaml"
_MERGE_PATCH: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"

_DENIALS: Final = ("admission webhook", "ValidatingAdmissionPolicy", "failed calling webhook")
"""What the API server's message says where neither it nor the spec is at fault, but something that
a person installed beside it. Their codes say nothing: a webhook that gives none denies with 400, a
policy with 422 (Kubernetes 1.35)."""

_NO_RIGHT: Final = 'is forbidden: User "'
"""What RBAC says, and neither a quota nor an admission controller."""
_GRANT: Final = (
    ". The chart of this operator's version grants it, unless a value leaves it out: helm upgrade, "
    "or see docs/install.md#rights"
)


class _Read(NamedTuple):
    path: str
    accept: str = _JSON
    method: str = "GET"
    type_: str = _JSON
    body: None = None


class _Write(NamedTuple):
    method: str
    path: str
    body: Any
    type_: str = _JSON
    accept: str = _JSON


class Cluster(Protocol):
    """What the operator asks of an API server.

    Every method raises `ClusterUnavailable` when it does not answer, or answers that it cannot
    serve now; trying again later may help.
    """

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Return one object, or None."""

    async def metadata(self, kind: Kind, selector: str = "") -> list[Meta]:
        """Return the metadata of a kind's objects in the watched namespaces."""

    async def owned(self, kind: Kind, namespace: str, service: str) -> list[Manifest]:
        """Return the objects of a kind that are labelled as the service's."""

    async def pods(
        self, namespace: str, service: str, label: str = labels.SERVICE
    ) -> list[Manifest]:
        """Return the pods whose label names the service: its replicas, by default."""

    async def classes(self) -> list[Manifest]:
        """Return every InferencePriorityClass; raise `ClusterRefuses` without right or kind."""

    async def tenants(self, namespace: str) -> list[Manifest]:
        """Return the namespace's InferenceTenants; raise `ClusterRefuses` without right or kind."""

    async def annotate_pod(self, pod: Pod, key: str, value: str) -> None:
        """Set one annotation of a pod; it is well if the pod is gone."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply one object and return it as it is now; raise `InvalidSpec` if it is refused."""

    async def delete(self, manifest: Manifest) -> None:
        """Delete one object; it is well if it is gone already."""

    async def write_status(self, owner: Manifest, status: Manifest) -> None:
        """Replace the status of this very service or tenant; it is well if it is gone."""

    async def record(self, event: Manifest) -> None:
        """Create an Event."""

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        """Create or replace a Lease; return None when someone else was faster."""


async def credentials() -> client.Configuration:
    """Return where the API server is and who asks: the pod's account, or the user's kubeconfig.

    Raises:
        ClusterUnavailable: There are no credentials.
    """
    server = client.Configuration()
    try:
        config.load_incluster_config(server)
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=server)
        except config.ConfigException as error:
            raise ClusterUnavailable(f"no credentials for a cluster: {error}") from error
    return server


class Kubernetes:
    """The real API server; `aclose` ends its connections.

    Args:
        namespaces: Those to list services in; empty for all.
        server: Where it is and who asks.
        patience: Seconds to wait for a connection, and between two pieces of an answer.
    """

    def __init__(
        self,
        namespaces: tuple[str, ...],
        server: client.Configuration,
        patience: Seconds = _PATIENCE,
    ) -> None:
        self._namespaces = namespaces
        self._patience = patience
        self._calls = client.ApiClient(_with_connections(server, _AT_ONCE))
        self._watches = client.ApiClient(_with_connections(server, 0))
        self._under_way: set[asyncio.Task[Manifest]] = set()

    async def finish(self) -> None:
        """Return when every write under way has ended, though nothing waits for it any more."""
        while self._under_way:
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._calls.close()
        await self._watches.close()

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Return one object, or None."""
        return await self._ask(kind.path(namespace, name))

    async def metadata(self, kind: Kind, selector: str = "") -> list[Meta]:
        """Return the metadata of a kind's objects in the watched namespaces, in a call for each.

        A namespace that was deleted took the right along; its watch says so. Others are listed.
        """
        found: list[Meta] = []
        refused: list[ClusterRefuses] = []
        places = (None,) if kind == CLASS else self._namespaces or (None,)
        for namespace in places:
            try:
                listed = await self._list(kind, namespace, selector, _METADATA_LIST)
            except ClusterRefuses as error:
                refused.append(error)
            else:
                found += [view(Meta, each["metadata"]) for each in listed]
        if len(refused) == len(places):
            raise refused[0]
        return found

    async def owned(self, kind: Kind, namespace: str, service: str) -> list[Manifest]:
        """Return the objects labelled as the service's."""
        selector = f"{labels.SERVICE}={service},{labels.MANAGED_BY}={labels.FIELD_MANAGER}"
        return await self._list(kind, namespace, selector)

    async def pods(
        self, namespace: str, service: str, label: str = labels.SERVICE
    ) -> list[Manifest]:
        """Return the pods whose label names the service."""
        return await self._list(POD, namespace, f"{label}={service}")

    async def classes(self) -> list[Manifest]:
        """Return every InferencePriorityClass."""
        return await self._list(CLASS, None)

    async def tenants(self, namespace: str) -> list[Manifest]:
        """Return the namespace's InferenceTenants."""
        return await self._list(TENANT, namespace)

    async def annotate_pod(self, pod: Pod, key: str, value: str) -> None:
        """Set one annotation of a pod."""
        meta = pod.metadata
        body = {"metadata": {"uid": meta.uid, "annotations": {key: value}}}
        await self._write(
            _Write("PATCH", POD.path(meta.namespace, meta.name), body, _MERGE_PATCH),
            about=f"an annotation of pod {meta.name}",
            conflict_is_none=True,
        )

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply one object and return it as it is now."""
        meta = manifest["metadata"]
        # With strict validation a misspelt field of spec.podTemplate is refused, not dropped.
        path = kind_of(manifest).path(meta["namespace"], meta["name"])
        applied = await self._write(
            _Write("PATCH", path, manifest, _APPLY),
            {"force": "true", "fieldValidation": "Strict"},
            about=f"{manifest['kind']} {meta['name']}",
        )
        if applied is None:
            if kind_of(manifest) in OPTIONAL:
                raise KindMissing(OPTIONAL[kind_of(manifest)])
            raise ClusterUnavailable(f"the namespace of {meta['name']} is gone")
        return applied

    async def delete(self, manifest: Manifest) -> None:
        """Delete one object, and what it owns after it."""
        meta = manifest["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": meta["uid"]}}
        path = kind_of(manifest).path(meta["namespace"], meta["name"])
        await self._write(_Write("DELETE", path, body))

    async def write_status(self, owner: Manifest, status: Manifest) -> None:
        """Replace the status of this very object: one of its name may have followed it."""
        meta = owner["metadata"]
        steps = [
            {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind_of(owner).path(meta["namespace"], meta["name"], "status")
        await self._write(_Write("PATCH", path, steps, _JSON_PATCH))

    async def record(self, event: Manifest) -> None:
        """Create an Event."""
        await self._write(_Write("POST", EVENT.path(event["metadata"]["namespace"]), event))

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        """Create or replace a Lease; its resourceVersion says which state it replaces."""
        meta = lease["metadata"]
        new = not meta.get("resourceVersion")
        path = LEASE.path(meta["namespace"], "" if new else meta["name"])
        write = _Write("POST" if new else "PUT", path, lease)
        return await self._write(write, conflict_is_none=True)

    async def changes(
        self, kind: Kind, namespace: str | None, since: str = "", selector: str = ""
    ) -> AsyncIterator[Change]:
        """Yield each object that changes, for a while; without `since` all there are before."""
        query = {
            "watch": "true", "timeoutSeconds": str(_WATCH_S), "allowWatchBookmarks": "true",
            **({"resourceVersion": since} if since else {}),
            **({"labelSelector": selector} if selector else {}),
        }  # fmt: skip
        limit = aiohttp.ClientTimeout(
            sock_connect=_CONNECT_S, sock_read=_WATCH_S + 30, total=_WATCH_S + 60
        )
        try:
            answer = await _sent(
                self._watches, _Read(kind.path(namespace), _METADATA), query, limit
            )
            async with answer:
                async for line in _lines(answer.content):
                    yield _change(kind, json.loads(line))
        except ApiException as error:
            if error.status == 404:
                raise KindMissing(OPTIONAL.get(kind, _no_kind(kind))) from error
            if error.status in _EXPIRED:
                raise WatchExpired(f"{error.status} {error.reason}: {_message(error)}") from error
            raise translated(error, f"a watch of {kind.plural}") from error
        except ValueError as error:
            raise WatchExpired(f"the watch tells no JSON: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            said = str(error) or type(error).__name__
            raise ClusterUnavailable(f"the watch broke: {said}") from error

    async def _list(
        self, kind: Kind, namespace: str | None, selector: str = "", accept: str = _JSON
    ) -> list[Manifest]:
        query = {"labelSelector": selector} if selector else {}
        about = f"a list of {kind.name}" if kind in (CLASS, TENANT) else ""
        listed = await self._ask(kind.path(namespace), query, about=about, accept=accept)
        if listed is None and kind in OPTIONAL:
            return []
        if listed is None:  # no kind, rather than no objects: nobody's tenants are gone
            raise KindMissing(_no_kind(kind))
        items: list[Manifest] = listed.get("items") or []  # null where metadata alone is listed
        for item in items:  # lists leave out what all their items have in common
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.name)
        return items

    async def _write(
        self,
        write: _Write,
        query: Mapping[str, str] | None = None,
        *,
        about: str = "",
        conflict_is_none: bool = False,
    ) -> Manifest | None:
        """Write; None is "not found" (or "conflict", where asked for)."""
        manager = {} if write.method == "DELETE" else {"fieldManager": labels.FIELD_MANAGER}
        try:
            return await self._kept(self._call(write, {**manager, **(query or {})}))
        except ApiException as error:
            if error.status == 404 or (conflict_is_none and error.status == 409):
                return None
            raise translated(error, about) from error

    async def _kept(self, writing: Coroutine[Any, Any, Manifest]) -> Manifest:
        """Write; a task that is cancelled meanwhile leaves the write to itself.

        What was sent may be written even if its connection is closed: `finish` waits for it.
        """
        task = asyncio.create_task(writing)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Manifest]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # nothing else may ask for it

    async def _ask(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        about: str = "",
        accept: str = _JSON,
    ) -> Manifest | None:
        """Read; None is "not found"."""
        try:
            return await self._call(_Read(path, accept), query or {})
        except ApiException as error:
            if error.status == 404:
                return None
            raise translated(error, about) from error

    async def _call(self, request: _Read | _Write, query: Mapping[str, str]) -> Manifest:
        # A wait for one of the connections is within the total.
        limit = aiohttp.ClientTimeout(
            sock_connect=min(_CONNECT_S, self._patience),
            sock_read=self._patience,
            total=3 * self._patience,
        )
        try:
            async with await _sent(self._calls, request, query, limit) as answer:
                found: Manifest = json.loads(await answer.read())
                return found
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise ClusterUnavailable(f"the API server does not answer: {said}") from error


async def _sent(
    api: client.ApiClient,
    request: _Read | _Write,
    query: Mapping[str, str],
    limit: aiohttp.ClientTimeout,
) -> aiohttp.ClientResponse:
    """Return an answer whose head is there; raise `ApiException` for a refusal."""
    serialized = await api.param_serialize(
        request.method,
        request.path,
        query_params=list(query.items()),
        header_params={"Accept": request.accept, "Content-Type": request.type_},
        body=request.body,
        auth_settings=["BearerToken"],
    )
    answer = await api.call_api(*serialized, _request_timeout=limit)
    response: aiohttp.ClientResponse = answer.response
    if not 200 <= response.status <= 299:
        said = (await response.read()).decode(errors="replace")
        raise ApiException(status=response.status, reason=response.reason, body=said)
    return response


def _no_kind(kind: Kind) -> str:
    return f"there is no {kind.name}: are Weir's CRDs installed?"


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length; an object's annotations alone may have 256 KiB before escapes.

    The end of a line whose newline never came is left out.
    """
    begun = b""
    async for piece in content.iter_any():
        *whole, begun = (begun + piece).split(b"\n")
        for line in whole:
            yield line


def _change(kind: Kind, event: Manifest) -> Change:
    """Return what an event of a watch tells; one without a name only tells how far it is.

    Raises:
        WatchExpired: The watch cannot go on, most often because it began too long ago.
    """
    found = event["object"]
    if event["type"] == "ERROR":
        raise WatchExpired(f"the watch ended: {found.get('message', '')}")
    meta = found.get("metadata", {})
    name = "" if event["type"] == "BOOKMARK" else meta.get("name", "")
    return Change(
        kind,
        meta.get("namespace", ""),
        name,
        meta.get("resourceVersion", ""),
        meta.get("labels", {}).get(labels.SERVICE, ""),
    )


def _with_connections(server: client.Configuration, limit: int) -> client.Configuration:
    chosen = copy.copy(server)
    chosen.connection_pool_maxsize = limit
    chosen.retries = None
    return chosen


def translated(error: ApiException, about: str) -> Exception:
    """Return our error for the API server's.

    What it calls invalid stays invalid until someone edits it. All else may be different in a
    while: quotas, admission controllers and missing rights are for a person to see meanwhile,
    conflicts and overload are not.
    """
    message = _message(error)
    if error.status == 403 or (about and any(each in message for each in _DENIALS)):
        said = f"{' '.join(filter(None, ('the API server refuses', about)))}: {message}"
        return ClusterRefuses(f"{said}{_GRANT}" if _NO_RIGHT in message else said)
    # A field that no schema knows makes server-side apply fail with 500, of all codes.
    unknown_field = error.status == 500 and "field not declared in schema" in message
    if about and (error.status in (400, 422) or unknown_field):
        return InvalidSpec("spec", f"the API server refuses {about}: {message}")
    return ClusterUnavailable(f"{error.status} {error.reason} {about}: {message}".strip())


def _message(error: ApiException) -> str:
    """Return what the API server says, in its own words."""
    text = str(error.body or "")
    try:
        said = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):  # a proxy's, perhaps
        said = text
    return str(said).strip()[:500]

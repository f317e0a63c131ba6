"""The one client of the API server.

`Cluster` is all the operator asks of it; `Kubernetes` is the real one. Objects are written by
server-side apply with the field manager `weir-operator`, so that what others add to an object
stays and what they change of ours comes back.

Of Secrets it reads two kinds, each by its name: the ones it writes itself, and those that an
InferenceTenant names. They are watched by their metadata alone, so that no other Secret's values
ever reach this process (`weir_operator.watches`). The right to watch would give it the values, too:
that is a habit of this client and no bound. Without that right they are read in each pass and no
sooner. Pods are patched for one thing: an annotation that makes the kubelet look at their Secret
again at once.

Rights it needs, beside `get list watch` on inferenceservices for kopf:

| group | resources | verbs |
|---|---|---|
| serving.weir.dev | inferenceservices/status | patch |
| apps | deployments | get list watch create patch delete |
| apps | controllerrevisions | get list create patch delete |
| (core) | services, serviceaccounts | get list watch create patch delete |
| policy | poddisruptionbudgets | get list watch create patch delete |
| networking.k8s.io | networkpolicies | get list watch create patch delete |
| (core) | pods | list patch |
| (core) | secrets | get watch create patch |
| serving.weir.dev | inferencetenants | list watch |
| serving.weir.dev | inferencepriorityclasses | list watch |
| (core) | events | create |
| coordination.k8s.io | leases, in the operator's own namespace | create; get update of one |
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ResourceNotFoundError
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from weir_core.api import labels
from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec
from weir_operator.interests import Change
from weir_operator.render import Manifest
from weir_operator.watches import Resource

Kind = tuple[str, str]
"""(apiVersion, kind)."""

SERVICE: Kind = (labels.API_VERSION, "InferenceService")
DEPLOYMENT: Kind = ("apps/v1", "Deployment")
REVISION: Kind = ("apps/v1", "ControllerRevision")
CLASS: Kind = (labels.API_VERSION, "InferencePriorityClass")
TENANT: Kind = (labels.API_VERSION, "InferenceTenant")
SECRET: Kind = ("v1", "Secret")
POD: Kind = ("v1", "Pod")
OWNED: tuple[Kind, ...] = (
    DEPLOYMENT,
    REVISION,
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)
"""Every kind an InferenceService can own several of; its one Secret is found by name."""

Timeouts = tuple[float, float]
"""In seconds: to connect, and to read an answer."""

_TIMEOUTS: Timeouts = (5.0, 20.0)

_RETRIES = Retry(2, respect_retry_after_header=False)
"""Of reads whose connection broke. A wait that the server asks for would hold a thread: the queue
repeats the pass instead, later each time."""

_AT_ONCE = 32
"""Calls of one client that may be under way, each in a thread."""

_WATCH_S = 300
"""How long the API server keeps a watch."""

_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class Cluster(Protocol):
    """What the operator asks of an API server.

    Every method raises `ClusterUnavailable` when it does not answer, or answers that it cannot
    serve now; trying again later may help.
    """

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Return one object, or None."""

    async def services(self) -> list[Manifest]:
        """Return every InferenceService of the watched namespaces."""

    async def owned(self, namespace: str, service: str) -> list[Manifest]:
        """Return the objects labelled as the service's, of all kinds in `OWNED`."""

    async def pods(self, namespace: str, service: str) -> list[Manifest]:
        """Return the service's pods."""

    async def classes(self) -> list[Manifest]:
        """Return every InferencePriorityClass; raise `ClusterRefuses` without that right."""

    async def tenants(self, namespace: str) -> list[Manifest]:
        """Return the namespace's InferenceTenants; raise `ClusterRefuses` without that right."""

    async def annotate_pod(self, pod: Manifest, key: str, value: str) -> None:
        """Set one annotation of a pod; it is well if the pod is gone."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply one object and return it as it is now; raise `InvalidSpec` if it is refused."""

    async def delete(self, manifest: Manifest) -> None:
        """Delete one object; it is well if it is gone already."""

    async def write_status(self, service: Manifest, status: Manifest) -> None:
        """Replace the status of this very service; it is well if it is gone."""

    async def record(self, event: Manifest) -> None:
        """Create an Event."""

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        """Create or replace a Lease; return None when someone else was faster."""


def connect(namespaces: tuple[str, ...]) -> Kubernetes:
    """Return a client with the pod's own credentials, or the user's kubeconfig.

    Raises:
        ClusterUnavailable: There are no credentials, or the API server does not answer.
    """
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise ClusterUnavailable(f"no credentials for a cluster: {error}") from error
    return Kubernetes(namespaces)


class Kubernetes:
    """The real API server, asked from threads of this client's own: the official one blocks.

    Args:
        namespaces: Those to list services in; empty for all.
        server: Where it is and who asks. Default: what `connect` found.
        timeouts: Of each call.
    """

    def __init__(
        self,
        namespaces: tuple[str, ...],
        server: client.Configuration | None = None,
        timeouts: Timeouts = _TIMEOUTS,
    ) -> None:
        self._namespaces = namespaces
        self._server = server or client.Configuration.get_default_copy()
        self._server.retries = _RETRIES
        self._server.connection_pool_maxsize = _AT_ONCE
        self._timeouts = timeouts
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="api-server")
        self._under_way: set[Future[Any]] = set()
        self._api: DynamicClient | None = None
        self._discovery = threading.Lock()

    async def close(self) -> None:
        """Begin no more calls; return when those under way have ended.

        A task that is cancelled leaves its call to its thread, so what it writes is written still.
        """
        self._threads.shutdown(wait=False, cancel_futures=True)
        while self._under_way:
            calls = map(asyncio.wrap_future, tuple(self._under_way))
            await asyncio.gather(*calls, return_exceptions=True)

    async def find(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Return one object, or None."""
        return await self._ask(lambda: self._resource(kind).get(name=name, namespace=namespace))

    async def services(self) -> list[Manifest]:
        """Return every InferenceService of the watched namespaces."""
        found: list[Manifest] = []
        for namespace in self._namespaces or (None,):
            found += await self._list(SERVICE, namespace)
        return found

    async def owned(self, namespace: str, service: str) -> list[Manifest]:
        """Return the objects labelled as the service's."""
        selector = f"{labels.SERVICE}={service},{labels.MANAGED_BY}={labels.FIELD_MANAGER}"
        lists = await asyncio.gather(*(self._list(kind, namespace, selector) for kind in OWNED))
        return [manifest for listed in lists for manifest in listed]

    async def pods(self, namespace: str, service: str) -> list[Manifest]:
        """Return the service's pods."""
        return await self._list(POD, namespace, f"{labels.SERVICE}={service}")

    async def classes(self) -> list[Manifest]:
        """Return every InferencePriorityClass."""
        return await self._list(CLASS, None)

    async def tenants(self, namespace: str) -> list[Manifest]:
        """Return the namespace's InferenceTenants."""
        return await self._list(TENANT, namespace)

    async def annotate_pod(self, pod: Manifest, key: str, value: str) -> None:
        """Set one annotation of a pod."""
        meta = pod["metadata"]
        await self._ask(
            lambda: self._resource(POD).patch(
                body={"metadata": {"uid": meta["uid"], "annotations": {key: value}}},
                name=meta["name"],
                namespace=meta["namespace"],
                content_type="application/merge-patch+json",
                field_manager=labels.FIELD_MANAGER,
            ),
            about=f"an annotation of pod {meta['name']}",
            conflict_is_none=True,
        )

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply one object and return it as it is now."""
        applied = await self._ask(
            lambda: self._resource(_kind(manifest)).server_side_apply(
                body=manifest,
                namespace=manifest["metadata"]["namespace"],
                field_manager=labels.FIELD_MANAGER,
                force_conflicts=True,
                # A misspelt field of spec.podTemplate is refused, not dropped.
                query_params=[("fieldValidation", "Strict")],
            ),
            about=f"{manifest['kind']} {manifest['metadata']['name']}",
        )
        if applied is None:
            raise ClusterUnavailable(f"the namespace of {manifest['metadata']['name']} is gone")
        return applied

    async def delete(self, manifest: Manifest) -> None:
        """Delete one object, and what it owns after it."""
        meta = manifest["metadata"]
        await self._ask(
            lambda: self._resource(_kind(manifest)).delete(
                name=meta["name"],
                namespace=meta["namespace"],
                body={"propagationPolicy": "Background", "preconditions": {"uid": meta["uid"]}},
            )
        )

    async def write_status(self, service: Manifest, status: Manifest) -> None:
        """Replace the status of this very service: one of its name may have followed it."""
        meta = service["metadata"]
        await self._ask(
            lambda: self._resource(SERVICE).status.patch(
                body=[
                    {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
                    {"op": "add", "path": "/status", "value": status},
                ],
                name=meta["name"],
                namespace=meta["namespace"],
                content_type="application/json-patch+json",
                field_manager=labels.FIELD_MANAGER,
            )
        )

    async def record(self, event: Manifest) -> None:
        """Create an Event."""
        await self._ask(
            lambda: self._resource(_kind(event)).create(
                body=event,
                namespace=event["metadata"]["namespace"],
            )
        )

    async def write_lease(self, lease: Manifest) -> Manifest | None:
        """Create or replace a Lease; its resourceVersion says which state it replaces."""
        meta = lease["metadata"]
        verb = "replace" if meta.get("resourceVersion") else "create"
        return await self._ask(
            lambda: getattr(self._resource(_kind(lease)), verb)(
                body=lease, namespace=meta["namespace"]
            ),
            conflict_is_none=True,
        )

    def changes(self, resource: Resource, namespace: str | None) -> Iterator[Change]:
        """Yield every object there is and then each that changes, for a while; blocks."""
        group = "/api/v1" if resource == "secrets" else f"/apis/{labels.API_VERSION}"
        where = f"/namespaces/{namespace}" if namespace else ""
        api = client.ApiClient(self._server)
        try:
            request = api.param_serialize(
                "GET",
                f"{group}{where}/{resource}",
                query_params=[("watch", "true"), ("timeoutSeconds", str(_WATCH_S))],
                header_params={"Accept": _METADATA_ONLY},
                auth_settings=["BearerToken"],
            )
            answer = api.call_api(*request, _request_timeout=(self._timeouts[0], _WATCH_S + 30))
            if answer.status != 200:
                answer.read()
                api.response_deserialize(answer, {})
            for line in _lines(answer.response.stream()):
                meta = json.loads(line)["object"].get("metadata", {})
                yield Change(resource, meta.get("namespace", ""), meta.get("name", ""))
        except ApiException as error:
            raise translated(error, f"a watch of {resource}") from error
        except (HTTPError, OSError, ValueError) as error:
            raise ClusterUnavailable(f"the watch broke: {error}") from error
        finally:
            api.close()

    async def _list(self, kind: Kind, namespace: str | None, selector: str = "") -> list[Manifest]:
        listed = await self._ask(
            lambda: self._resource(kind).get(
                namespace=namespace,
                label_selector=selector or None,
            ),
            about=f"a list of {kind[1]}" if kind in (CLASS, TENANT) else "",
        )
        if listed is None:  # no kind, rather than no objects: nobody's tenants are gone
            raise ClusterUnavailable(f"there is no {kind[1]}: are Weir's CRDs installed?")
        items: list[Manifest] = listed.get("items", [])
        for item in items:  # lists leave out what all their items have in common
            item.setdefault("apiVersion", kind[0])
            item.setdefault("kind", kind[1])
        return items

    def _resource(self, kind: Kind) -> Any:
        with self._discovery:  # which is not made for threads
            if self._api is None:
                self._api = DynamicClient(_Bounded(self._server, self._timeouts))
            return self._api.resources.get(api_version=kind[0], kind=kind[1])

    async def _ask(
        self,
        call: Callable[[], Any],
        *,
        about: str = "",
        conflict_is_none: bool = False,
    ) -> Manifest | None:
        """Make one call in a thread; None is "not found" (or "conflict", where asked for)."""
        try:
            future = self._threads.submit(call)
            self._under_way.add(future)
            future.add_done_callback(self._under_way.discard)
            answer = await asyncio.wrap_future(future)
        except ApiException as error:
            if error.status == 404 or (conflict_is_none and error.status == 409):
                return None
            raise translated(error, about) from error
        except ResourceNotFoundError as error:
            raise ClusterUnavailable(f"are Weir's CRDs installed? {error}") from error
        except (HTTPError, OSError) as error:
            raise ClusterUnavailable(f"the API server does not answer: {error}") from error
        result: Manifest = answer.to_dict() if hasattr(answer, "to_dict") else {}
        return result


class _Bounded(client.ApiClient):  # type: ignore[misc]
    """The official client with a bound on every call; those that discover kinds have none."""

    def __init__(self, server: client.Configuration, timeouts: Timeouts) -> None:
        super().__init__(server)
        self._timeouts = timeouts

    def call_api(self, *request: Any, **options: Any) -> Any:
        """Make a call."""
        return super().call_api(*request, **{**options, "_request_timeout": self._timeouts})


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream that comes in pieces of any length."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from filter(None, whole)


def _kind(manifest: Manifest) -> Kind:
    return manifest["apiVersion"], manifest["kind"]


def translated(error: ApiException, about: str) -> Exception:
    """Return our error for the API server's.

    What it calls invalid stays invalid until someone edits it. All else may be different in a
    while: quotas, webhooks and missing rights are for a person to see meanwhile, conflicts and
    overload are not.
    """
    message = _message(error)
    # A field that no schema knows makes server-side apply fail with 500, of all codes.
    unknown_field = error.status == 500 and "field not declared in schema" in message
    if about and (error.status in (400, 422) or unknown_field):
        return InvalidSpec("spec", f"the API server refuses {about}: {message}")
    if error.status == 403:
        return ClusterRefuses(f"the API server refuses {about}: {message}")
    return ClusterUnavailable(f"{error.status} {error.reason} {about}: {message}".strip())


def _message(error: ApiException) -> str:
    body = getattr(error, "summary", None)
    text = body() if callable(body) else str(error.body or "")
    return text.strip()[:500]

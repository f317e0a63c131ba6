"""The client of the API server against one that is slow, overloaded or lacks the resources."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from weir_core.errors import ClusterRefuses, ClusterUnavailable, KindMissing, WatchExpired
from weir_core.units import Seconds
from weir_operator.cluster import Kubernetes
from weir_operator.interests import Change
from weir_operator.kinds import DEPLOYMENT, GROUP_SET, SECRET, TENANT

VERSION: Final = {"resourceVersion": "7"}
HANGING: Final = -1
"""A status for an answer that never comes."""
HASTY: Final = Seconds(0.1)


class ApiServer:
    """Answers with a status and an object of the test's choice."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        """By the beginning of a path; 200 otherwise."""
        self.objects: dict[str, dict[str, Any]] = {}
        """By path."""
        self.lines: list[bytes] = []
        """Pieces of what a watch yields; at an empty one the connection breaks, once
        `done` is set."""
        self.headers: list[Any] = []
        self.queries: list[Any] = []
        self.hanging = asyncio.Event()
        """Set when a call hangs."""
        self.done = asyncio.Event()
        self.url = ""
        self.clients: list[Kubernetes] = []

    def client(self, patience: Seconds = HASTY, namespaces: tuple[str, ...] = ()) -> Kubernetes:
        """Return a client that waits for an answer for so long."""
        self.clients.append(Kubernetes(namespaces, client.Configuration(host=self.url), patience))
        return self.clients[-1]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        self.queries.append(request.query)
        chosen = self.statuses.items()
        status = next((each for start, each in chosen if request.path.startswith(start)), 200)
        if status == HANGING:
            self.hanging.set()
            await self.done.wait()
            status = 503
        if "watch" in request.query and status == 200:
            watching = web.StreamResponse()
            await watching.prepare(request)
            for line in self.lines:
                await watching.write(line)
                if not line:
                    await self.done.wait()
                    assert request.transport is not None
                    request.transport.abort()
            return watching
        found = self.objects.get(request.path, {"message": "the reason why"})
        return web.json_response(found, status=status, headers={"Retry-After": "3600"})


@pytest.fixture
async def api_server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(app) as listening:
        server.url = str(listening.make_url("")).rstrip("/")
        yield server
        server.done.set()
        for each in server.clients:
            await each.aclose()


async def test_no_call_waits_for_ever(api_server: ApiServer) -> None:
    api_server.statuses["/api/v1"] = HANGING
    async with asyncio.timeout(30):
        with pytest.raises(ClusterUnavailable, match="does not answer"):
            await api_server.client().find(SECRET, "a", "x")


async def test_overload_is_told_at_once_however_long_the_server_asks_to_wait(
    api_server: ApiServer,
) -> None:
    api_server.statuses["/api/v1/namespaces"] = 429
    async with asyncio.timeout(30):
        with pytest.raises(ClusterUnavailable, match="429"):
            await api_server.client(Seconds(30)).find(SECRET, "a", "x")


async def test_a_kind_that_is_missing_is_no_empty_list_of_tenants(api_server: ApiServer) -> None:
    api_server.statuses["/apis/serving.weir.dev/v1alpha1/namespaces"] = 404
    with pytest.raises(ClusterRefuses, match="no InferenceTenant: are Weir's CRDs installed"):
        await api_server.client(Seconds(30)).tenants("a")
    with pytest.raises(KindMissing, match="no InferenceTenant: are Weir's CRDs installed"):
        await anext(api_server.client(Seconds(30)).changes(TENANT, "a"))


async def test_a_cluster_may_lack_leader_worker_sets(api_server: ApiServer) -> None:
    api_server.statuses["/apis/leaderworkerset.x-k8s.io"] = 404
    cluster = api_server.client(Seconds(30))
    assert await cluster.owned(GROUP_SET, "a", "chat") == []
    assert await cluster.metadata(GROUP_SET) == []
    meta = {"name": "x", "namespace": "a"}
    wanted = {"apiVersion": GROUP_SET.api_version, "kind": GROUP_SET.name, "metadata": meta}
    with pytest.raises(KindMissing, match="needs LeaderWorkerSet, which this cluster lacks"):
        await cluster.apply(wanted)
    with pytest.raises(KindMissing):
        await anext(cluster.changes(GROUP_SET, None))


async def test_one_client_does_not_wait_behind_the_calls_of_another(
    api_server: ApiServer,
) -> None:
    api_server.statuses["/api/v1/namespaces/slow"] = HANGING
    passes, election = api_server.client(Seconds(30)), api_server.client(Seconds(30))
    slow = [asyncio.create_task(passes.find(SECRET, "slow", "x")) for _ in range(40)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        assert await election.find(SECRET, "a", "x") is not None
    assert not any(task.done() for task in slow)
    api_server.done.set()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_what_a_cancelled_task_was_writing_can_be_waited_for(api_server: ApiServer) -> None:
    api_server.statuses["/api/v1/namespaces/slow"] = HANGING
    cluster = api_server.client(Seconds(30))
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "x", "namespace": "slow"}}
    writing = asyncio.create_task(cluster.record(event))
    async with asyncio.timeout(30):
        await api_server.hanging.wait()
    writing.cancel()
    finishing = asyncio.create_task(cluster.finish())
    for _ in range(10):
        await asyncio.sleep(0)
    assert writing.cancelled()
    assert not finishing.done()
    api_server.done.set()
    async with asyncio.timeout(30):
        await finishing


async def test_the_client_logs_no_values_of_secrets(
    api_server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    held = {"apiVersion": "v1", "kind": "Secret", "data": {"policies.json": "c2VjcmV0"}}
    api_server.objects["/api/v1/namespaces/a/secrets/x"] = held
    with caplog.at_level(logging.DEBUG):
        found = await api_server.client(Seconds(30)).find(SECRET, "a", "x")
    assert found == held
    assert "c2VjcmV0" not in caplog.text


async def test_a_watch_asks_for_metadata_alone_and_reads_lines_of_any_length(
    api_server: ApiServer,
) -> None:
    events = [
        {"type": kind, "object": {"metadata": {"namespace": "a", "name": name, **VERSION}}}
        for kind, name in (("ADDED", "x"), ("DELETED", "y" * 600_000), ("BOOKMARK", ""))
    ]
    text = b"".join(json.dumps(each).encode() + b"\n" for each in events)
    api_server.lines = [text[at : at + 7_001] for at in range(0, len(text), 7_001)]
    told = [each async for each in api_server.client(Seconds(30)).changes(SECRET, "a", "6")]
    assert told == [Change(SECRET, "a", name, "7") for name in ("x", "y" * 600_000, "")]
    assert "as=PartialObjectMetadata;" in api_server.headers[-1]["Accept"]
    assert api_server.queries[-1]["resourceVersion"] == "6"
    assert "labelSelector" not in api_server.queries[-1]


async def test_a_watch_can_be_for_some_labels_alone(api_server: ApiServer) -> None:
    cluster = api_server.client(Seconds(30))
    assert not [each async for each in cluster.changes(DEPLOYMENT, None, selector="a=b,c")]
    assert api_server.queries[-1]["labelSelector"] == "a=b,c"


async def test_a_watch_that_began_too_long_ago_says_so(api_server: ApiServer) -> None:
    error = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
    api_server.lines = [json.dumps(error).encode() + b"\n"]
    with pytest.raises(WatchExpired, match="too old"):
        async for _ in api_server.client(Seconds(30)).changes(SECRET, "a", "6"):
            pass


async def test_a_watch_whose_connection_breaks_can_go_on(api_server: ApiServer) -> None:
    one = {"type": "ADDED", "object": {"metadata": {"namespace": "a", "name": "x", **VERSION}}}
    api_server.lines = [json.dumps(one).encode() + b'\n{"type": "ADD', b""]
    watching = api_server.client(Seconds(30)).changes(SECRET, "a", "6")
    assert await anext(watching) == Change(SECRET, "a", "x", "7")
    api_server.done.set()
    with pytest.raises(ClusterUnavailable) as raised:
        await anext(watching)
    assert raised.type is ClusterUnavailable


async def test_metadata_is_asked_for_alone_in_one_call(api_server: ApiServer) -> None:
    meta = {"name": "x", "namespace": "a", "uid": "u", **VERSION}
    api_server.objects["/apis/apps/v1/deployments"] = {"items": [{"metadata": meta}]}
    found = await api_server.client().metadata(DEPLOYMENT, "serving.weir.dev/service")
    assert [(each.uid, each.resource_version) for each in found] == [("u", "7")]
    assert "as=PartialObjectMetadataList;" in api_server.headers[-1]["Accept"]
    assert api_server.queries[-1]["labelSelector"] == "serving.weir.dev/service"
    assert len(api_server.queries) == 1


async def test_a_namespace_without_rights_keeps_no_other_from_being_listed(
    api_server: ApiServer,
) -> None:
    meta = {"name": "x", "namespace": "b", "uid": "u", **VERSION}
    api_server.statuses["/apis/apps/v1/namespaces/gone"] = 403
    api_server.objects["/apis/apps/v1/namespaces/b/deployments"] = {"items": [{"metadata": meta}]}
    cluster = api_server.client(Seconds(30), ("gone", "b"))
    assert [each.uid for each in await cluster.metadata(DEPLOYMENT)] == ["u"]
    with pytest.raises(ClusterRefuses):
        await api_server.client(Seconds(30), ("gone",)).metadata(DEPLOYMENT)


async def test_a_list_of_no_metadata_is_null(api_server: ApiServer) -> None:
    api_server.objects["/apis/apps/v1/deployments"] = {"items": None}
    assert await api_server.client().metadata(DEPLOYMENT) == []


@pytest.mark.parametrize(
    ("status", "want"),
    [
        pytest.param(403, ClusterRefuses, id="no right"),
        pytest.param(410, WatchExpired, id="too old"),
        pytest.param(504, WatchExpired, id="a version that is yet to come"),
        pytest.param(503, ClusterUnavailable, id="an outage"),
    ],
)
async def test_a_watch_that_is_refused_says_so(
    status: int, want: type[Exception], api_server: ApiServer
) -> None:
    api_server.statuses["/api/v1"] = status
    with pytest.raises(want) as raised:
        async for _ in api_server.client(Seconds(30)).changes(SECRET, None):
            pass
    assert raised.type is want

"""What the console reads of a cluster: of real sidecars and a real gateway, through an API server.

The API server here lists what there is and passes requests on to pods, as a real one does: without
`Authorization`, which it takes for itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.integration.sidecar.fleet import DOCUMENT, KEY, Fleet, named
from tests.integration.sidecar.harness import PATIENT, House, chat, eventually
from weir_cli.console.api_server import ApiServer
from weir_cli.console.cluster import METRICS_S, SURVEY_S, Cluster, through
from weir_cli.console.feed import Feed
from weir_cli.console.frames import Watched
from weir_core.api import labels
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.request_state import RequestReport
from weir_operator.views import Pod
from weir_sidecar.__main__ import page_of
from weir_sidecar.gateway import Gateway
from weir_sidecar.settings import Policies

NAMESPACE = "ai"


@dataclass
class Api:
    """An API server: a service, its pods with their admin ports, and its Secret."""

    document: PolicyDocument
    ports: dict[str, int]
    gateways: tuple[str, ...] = ()
    not_ready: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)

    def app(self) -> web.Application:
        app = web.Application()
        of = f"/namespaces/{NAMESPACE}"
        app.router.add_get(f"/apis/{labels.API_VERSION}{of}/inferenceservices", self.services)
        app.router.add_get(f"/api/v1{of}/pods", self.pods)
        app.router.add_get(f"/api/v1{of}/secrets/chat-policies", self.secret)
        app.router.add_get(f"/api/v1{of}/pods/{{pod}}:8001/proxy/{{path:.+}}", self.passed_on)
        return app

    async def services(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"items": [{"metadata": {"name": "chat", "namespace": NAMESPACE}}]}
        )

    async def pods(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == labels.SERVICE
        return web.json_response({"items": [self._pod(name) for name in self.ports]})

    def _pod(self, name: str) -> dict[str, Any]:
        mine = {labels.SERVICE: "chat"}
        if name in self.gateways:
            mine[labels.COMPONENT] = labels.GATEWAY
        ready = "False" if name in self.not_ready else "True"
        return {
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": name, "labels": mine},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]},
        }

    async def secret(self, _request: web.Request) -> web.Response:
        held = base64.b64encode(self.document.encode()).decode()
        return web.json_response({"data": {labels.POLICIES_FILE: held}})

    async def passed_on(self, request: web.Request) -> web.Response:
        pod, path = request.match_info["pod"], request.match_info["path"]
        self.asked[f"{pod}/{path}"] += 1
        url = f"http://127.0.0.1:{self.ports[pod]}/{path}"
        headers = {k: v for k, v in request.headers.items() if k != "Authorization"}
        async with (
            aiohttp.ClientSession() as http,
            http.get(url, params=request.query, headers=headers) as answer,
        ):
            body = await answer.read()
            return web.Response(status=answer.status, body=body, content_type=answer.content_type)


@dataclass
class Clock:
    """Seconds that move when a test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def read(api: Api, clock: Clock) -> AsyncIterator[Cluster]:
    """Read a cluster as the user of a kubeconfig does."""
    async with TestServer(api.app()) as server, aiohttp.ClientSession() as http:
        asked = ApiServer(http, str(server.make_url("")).rstrip("/"))
        yield Cluster(asked, through(asked), (NAMESPACE,), clock)


def api_of(fleet: Fleet) -> Api:
    ports = {each.sidecar.peers.own.name: each.sidecar.admin_port for each in fleet.replicas}
    return Api(fleet.document(DOCUMENT), ports)


async def test_shows_replicas_and_the_requests_of_the_one_that_is_opened(fleet: Fleet) -> None:
    fleet.tell(DOCUMENT)
    await fleet.until_known()
    assert (await fleet.ask(0)).status == 200
    api, clock = api_of(fleet), Clock()
    async with read(api, clock) as cluster:
        cluster.watched = lambda: {Watched("chat", "r1")}
        await cluster.look()
        feed = Feed(cluster.services, 1.0, 15.0, clock=clock)
        await feed.look()
        frame = feed.frame("chat", "r1")
    rows = {row.name: row for row in frame.fleet.replicas}
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys(
        ("r0", "r1", "r2"), "ready"
    )
    assert [row.at_engine for row in rows.values()] == [0, 0, 0]
    assert [row.name for row in frame.fleet.classes] == ["high", "standard", "low"]
    assert set(frame.fleet.slots or ()) == {"r0", "r1", "r2"}
    assert frame.replica is not None
    assert frame.replica.state is not None
    assert frame.replica.state.scheduling is not None
    assert frame.replica.state.scheduling.waiting == 0
    # One tells the loads of all, and only the replica that is opened its requests.
    assert api.asked == {
        **{f"r{number}/metrics": 1 for number in range(3)}, "r0/fleet": 1, "r1/state": 1,
    }  # fmt: skip


async def test_a_replica_is_asked_for_its_metrics_no_oftener_than_it_can_bear(fleet: Fleet) -> None:
    fleet.tell(DOCUMENT)
    await fleet.until_known()
    api, clock = api_of(fleet), Clock()
    async with read(api, clock) as cluster:
        for _ in range(2 * int(METRICS_S)):
            await cluster.look()
            clock.now += 1
    assert api.asked["r2/metrics"] == 2
    assert api.asked["r2/state"] == 0
    assert sum(api.asked[f"r{number}/fleet"] for number in range(3)) == 2


async def test_a_request_is_told_with_the_replicas_that_were_compared(fleet: Fleet) -> None:
    fleet.tell(DOCUMENT)
    await fleet.until_known()
    assert (await fleet.ask(0, {"x-request-id": "mine"})).status == 200
    await eventually(lambda: not len(fleet.replicas[0].sidecar.registry))
    api, clock = api_of(fleet), Clock()
    async with read(api, clock) as cluster:
        await cluster.look()
        reports = await cluster.requests("chat", "mine")
        assert await cluster.requests("other", "mine") == []
    assert {report.pod for report in reports} == {"r0", "r1", "r2"}
    (ended,) = [each for report in reports for each in report.ended if not each.was_forwarded]
    assert ended.routed == "best"
    assert {each.replica for each in ended.candidates} == {"r0", "r1", "r2"}


@contextlib.asynccontextmanager
async def asleep(house: House) -> AsyncIterator[tuple[Gateway, Api]]:
    """Run the gateway of a service without replicas, at which a request waits."""
    document = PolicyDocument(peer_keys=(KEY,))
    house.policies(document)
    here = ("127.0.0.1", 0)
    settings = replace(named(PATIENT, "gate-1"), policies=Policies(house.policies_dir))
    gateway = Gateway(settings, here, admin=here)
    await house.stack.enter_async_context(gateway.running())
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as http:
        held = asyncio.create_task(http.post(url, json=chat(), headers={"x-request-id": "early"}))
        await eventually(lambda: gateway.parts.routing.waiting == 1)
        yield gateway, Api(document, {"gate-1": gateway.admin_port}, ("gate-1",))
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


async def test_a_request_that_waits_at_the_gateway_of_a_service_that_sleeps_is_found(
    house: House,
) -> None:
    async with asleep(house) as (gateway, api), read(api, Clock()) as cluster:
        await cluster.look()
        (report,) = await cluster.requests("chat", "early")
        addresses = replace(
            gateway.settings.addresses,
            run_dir=house.run_dir / "none",
            admin_port=gateway.admin_port,
        )
        settings = replace(gateway.settings, addresses=addresses)
        in_its_pod = await page_of(settings, "/requests?id=early")
    assert RequestReport.decode(in_its_pod.encode()).pod == "gate-1"
    (request,) = report.requests
    assert request.waits is not None
    assert (report.pod, request.waits.position) == ("gate-1", 1)


async def test_a_gateway_is_opened_as_a_replica_is(house: House) -> None:
    clock = Clock()
    async with asleep(house) as (_, api), read(api, clock) as cluster:
        await cluster.look()
        feed = Feed(cluster.services, 1.0, 15.0, clock=clock)
        cluster.watched = feed.watched
        await feed.look()
        with feed.viewed("chat", "gate-1"):
            await cluster.look()
        await feed.look()
        frame, first = feed.frame("chat", "gate-1"), feed.frame("chat", "")
    assert ([row.name for row in frame.fleet.gateways], frame.fleet.replicas) == (["gate-1"], ())
    assert sum(frame.fleet.gateways[0].waiting.values()) == 1
    assert frame.replica == first.replica  # there is no replica that would be the first
    assert frame.replica is not None
    assert frame.replica.state is not None
    assert frame.replica.state.held is not None
    (waits,) = frame.replica.state.held.queue
    assert (waits.id, waits.position, waits.blocked_by) == ("early", 1, "engine")
    assert api.asked["gate-1/state"] == 1


@pytest.mark.parametrize("shown", ["none", "of another key"])
async def test_a_sidecar_shows_requests_to_what_holds_a_key_only(house: House, shown: str) -> None:
    house.policies(PolicyDocument(peer_keys=(KEY,)))
    running = await house.sidecar(named(PATIENT, "r0"), ready=False)
    document = PolicyDocument(peer_keys=() if shown == "none" else ("ab" * 32,))
    api, clock = Api(document, {"r0": running.sidecar.admin_port}), Clock()
    async with read(api, clock) as cluster:
        await cluster.look()
        assert await cluster.requests("chat", "mine") == []
    assert (await running.probe("/requests?id=mine")).status == 401


async def test_a_gateway_shows_requests_to_what_holds_a_key_only(house: House) -> None:
    async with asleep(house) as (gateway, _), aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{gateway.admin_port}/state"
        async with http.get(url) as answer:
            assert answer.status == 401


@pytest.mark.parametrize(
    ("page", "why"),
    [
        pytest.param(b"[" * 100_000, "its page /state is no JSON", id="nested deeply"),
        pytest.param(b"\xff", "its page /state is no JSON", id="no text"),
        pytest.param(b"null", "its page /state does not name this pod", id="nothing"),
        pytest.param(b'{"pod": "r1"}', "its page /state does not name this pod", id="another pod"),
    ],
)
async def test_a_pod_that_is_no_sidecar_ends_nothing(page: bytes, why: str) -> None:
    async def ask(pod: Pod, path: str, keys: Sequence[str]) -> bytes:
        return page

    api, clock = Api(PolicyDocument(peer_keys=(KEY,)), {"r0": 1}), Clock()
    async with TestServer(api.app()) as server, aiohttp.ClientSession() as http:
        asked = ApiServer(http, str(server.make_url("")).rstrip("/"))
        cluster = Cluster(asked, ask, (NAMESPACE,), clock)
        cluster.watched = lambda: {Watched("chat", "r0")}
        await cluster.look()
        assert await cluster.requests("chat", "mine") == []
        (service,) = cluster.services()
    assert [(each.name, each.detail, each.trouble) for each in service.replicas] == [
        ("r0", None, why)
    ]


async def test_a_replica_says_why_its_requests_are_not_shown(fleet: Fleet) -> None:
    fleet.tell(DOCUMENT)
    await fleet.until_known()
    api, clock = api_of(fleet), Clock()
    api.document = msgspec.structs.replace(api.document, peer_keys=("ab" * 32,))
    async with read(api, clock) as cluster:
        cluster.watched = lambda: {Watched("chat", "r1")}
        await cluster.look()
        feed = Feed(cluster.services, 1.0, 15.0, clock=clock)
        await feed.look()
        shown = feed.frame("chat", "r1").replica
    assert shown is not None
    assert "its page /state does not come: " in shown.trouble
    assert ": 401: " in shown.trouble


async def test_a_cluster_that_cannot_be_read_is_no_empty_one() -> None:
    async with read(Api(PolicyDocument(), {}), Clock()) as cluster:
        cluster._namespaces = ["forbidden"]
        feed = Feed(cluster.services, 1.0, 15.0)
        feed.trouble = cluster.trouble
        await cluster.look()
        await feed.look()
        assert "the cluster cannot be read: /apis/" in feed.frame("", "").fleet.trouble


async def test_a_pod_that_is_gone_is_no_longer_read(fleet: Fleet) -> None:
    fleet.tell(DOCUMENT)
    api, clock = api_of(fleet), Clock()
    async with read(api, clock) as cluster:
        await cluster.look()
        (service,) = cluster.services()
        assert [each.name for each in service.replicas] == ["r0", "r1", "r2"]
        del api.ports["r2"]
        clock.now += SURVEY_S
        await cluster.look()
        (service,) = cluster.services()
        assert [each.name for each in service.replicas] == ["r0", "r1"]

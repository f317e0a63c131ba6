"""Every query of the dashboards gets an answer from a real Prometheus.

It scrapes a fleet and its gateway before mock engines, a sidecar whose requests wait, a sidecar
before real vLLM, and an operator, with the labels that the chart's monitors give. Requests run
until each query has returned a number, and each metric that the alerts name is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client import CollectorRegistry

from tests.integration.sidecar.fleet import DOCUMENT, Fleet
from tests.integration.sidecar.harness import PATIENT, House, Running, chat, eventually
from tests.unit.control.builders import NAME, NAMESPACE, body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_reconcile_pass import parts
from weir_core.sched.types import ClassPolicy
from weir_core.units import Seconds
from weir_core.wire.policies import PolicyDocument
from weir_operator.metrics import Metrics
from weir_operator.probes import serving
from weir_operator.queue import WorkQueue
from weir_operator.reconcile import Key, Reconciler
from weir_operator.render import Images
from weir_operator.worker import work
from weir_sidecar.settings import Identity
from weir_sim.mock_engine import Profile

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = sorted((ROOT / "helm/weir/dashboards").glob("*.json"))
SERVICE = {"namespace": NAMESPACE, "service": NAME}
IMPATIENT = PolicyDocument(
    classes=(
        ClassPolicy("high", rank=2, max_queue_wait_s=500.0),
        ClassPolicy("standard", rank=1, max_queue_wait_s=500.0),
        ClassPolicy("low", rank=0, max_queue_wait_s=1.0),
    )
)
LONG_PROMPT = " ".join(f"Rule {number}: the fox obeys the pilot." for number in range(110))
LIMIT_S = 180.0
"""A bound on hanging. With two cores and nothing beside it, it takes some seconds."""


@dataclass(frozen=True)
class Target:
    """A page of metrics, with the labels of its pod."""

    port: int
    labels: dict[str, str]


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = session

    async def is_ready(self) -> bool:
        try:
            async with self._session.get(self._url + "/-/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def ask(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Return what a query gives now: the labels and the value of each series."""
        async with self._session.post(self._url + "/api/v1/query", data={"query": expr}) as answer:
            said = await answer.json()
        assert said["status"] == "success", (expr, said)
        return [(each["metric"], float(each["value"][1])) for each in said["data"]["result"]]

    async def has_numbers(self, expr: str) -> bool:
        return any(math.isfinite(value) for _, value in await self.ask(expr))


@contextlib.asynccontextmanager
async def scraping(
    programs: Path, at: Path, targets: Sequence[Target], session: aiohttp.ClientSession
) -> AsyncIterator[Prometheus]:
    """Run a Prometheus that scrapes some pages."""
    statics = [{"targets": [f"127.0.0.1:{each.port}"], "labels": each.labels} for each in targets]
    job = {"job_name": "weir", "honor_labels": True, "static_configs": statics}
    (at / "prometheus.yaml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]})
    )
    port = free_port()
    with (at / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            programs / "prometheus", f"--config.file={at}/prometheus.yaml",
            f"--storage.tsdb.path={at}/series", f"--web.listen-address=127.0.0.1:{port}",
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        prometheus = Prometheus(port, session)
        async with asyncio.timeout(LIMIT_S):
            while not await prometheus.is_ready():
                assert process.returncode is None, (at / "log").read_text()
                await asyncio.sleep(0.1)
        yield prometheus
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(30):
            await process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries() -> dict[str, str]:
    """Return where each query of the dashboards is, by the query as Grafana would send it."""
    found = {}
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            for target in panel.get("targets", ()):
                found[filled(target["expr"])] = f"{path.name}: {panel['title']}"
        for variable in dashboard["templating"]["list"]:
            values = re.fullmatch(r"label_values\((.*), (\w+)\)", str(variable["query"]))
            if values:
                expr = f"count by ({values[2]}) ({values[1]})"
                found[filled(expr)] = f"{path.name}: ${variable['name']}"
    return found


def filled(expr: str) -> str:
    """Return a query with all values of each variable chosen."""
    return re.sub(r"\$(?:namespace|service|pod|tenant)\b", ".*", expr).replace(
        "$__rate_interval", "20s"
    )


def metrics_of_alerts() -> set[str]:
    manifest = yaml.safe_load((ROOT / "tests/golden/chart-alerts.yaml").read_text())
    rules = [rule for group in manifest["spec"]["groups"] for rule in group["rules"]]
    return {name for rule in rules for name in re.findall(r"\b(weir_\w+)", rule["expr"])}


@pytest.fixture
async def crowded() -> AsyncIterator[Running]:
    """A sidecar with one slot, which is taken for long."""
    path = Path(tempfile.mkdtemp(prefix="weir-"))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, path)
        house = House(path, stack)
        house.facts(slots=1)
        house.policies(IMPATIENT)
        await house.mock_engine(Profile(ttft_s=Seconds(600.0), max_running=1))
        yield await house.sidecar(replace(PATIENT, identity=Identity(NAME, NAMESPACE, pod="late")))


@pytest.fixture
async def real(engine_socket: Path) -> AsyncIterator[Running]:
    """A sidecar before vLLM."""
    async with contextlib.AsyncExitStack() as stack:
        settings = replace(
            PATIENT, identity=Identity(NAME, NAMESPACE, pod="real"), follow_prefixes=True
        )
        yield await House(engine_socket.parent, stack).sidecar(settings)


@pytest.fixture
async def operator_port() -> AsyncIterator[int]:
    """An operator at work on a cluster in memory: one service, whose pods never come."""
    metrics = Metrics(CollectorRegistry())
    metrics.leading.set(1)
    queue: WorkQueue[Key] = WorkQueue(time.monotonic)
    cluster = MemoryCluster(body())
    reconciler = Reconciler(cluster, parts(Images()), lambda: datetime.now(UTC), metrics)
    port = free_port()
    async with serving(metrics.registry, port, lambda: True):
        passes = asyncio.create_task(work(queue, reconciler, metrics))
        queue.add(Key(NAMESPACE, NAME))
        await eventually(lambda: bool(cluster.events))
        yield port
        passes.cancel()
        await asyncio.gather(passes, return_exceptions=True)


def pod(name: str) -> dict[str, str]:
    return {**SERVICE, "pool": "default", "pod": name}


@contextlib.asynccontextmanager
async def busy(jobs: Iterable[Any]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each for each in ended if isinstance(each, Exception)] == []


async def chatting(fleet: Fleet, real: Running) -> None:
    """Ask the fleet and vLLM for ever, with prompts that are in part in the prefix cache."""
    while True:
        messages = [{"role": "user", "content": LONG_PROMPT}]
        asked = real.post(json=chat(max_tokens=16, stream=True, messages=messages))
        standard = {"x-weir-class": "standard"}
        await asyncio.gather(asked, fleet.ask_gateway(standard), fleet.ask(0, standard))


async def test_each_query_of_the_dashboards_returns_numbers(
    fleet: Fleet,
    crowded: Running,
    real: Running,
    operator_port: int,
    prometheus: Path,
    tmp_path: Path,
) -> None:
    promised = [replace(each, ttft_target_s=1.0) for each in DOCUMENT.classes]
    fleet.tell(PolicyDocument(classes=tuple(promised), peer_keys=DOCUMENT.peer_keys))
    targets = [
        Target(operator_port, {"namespace": "weir-system", "pod": "weir-0"}),
        Target(fleet.gateway.port, pod("gateway")),
        *(Target(one.sidecar.admin_port, pod(f"r{n}")) for n, one in enumerate(fleet.replicas)),
        Target(crowded.sidecar.admin_port, pod("late")),
        Target(real.sidecar.admin_port, pod("real")),
    ]
    waiting = [
        crowded.post(json=chat(), headers={"x-weir-class": name})
        for name in ("standard", "high", "high", "low")
    ]
    unanswered = queries()
    async with (
        busy([*waiting, chatting(fleet, real)]),
        scraping(prometheus, tmp_path, targets, fleet.session) as server,
    ):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                while unanswered:
                    for query in list(unanswered):
                        if await server.has_numbers(query):
                            del unanswered[query]
                    await asyncio.sleep(0.5)
        assert unanswered == {}
        missing = [name for name in metrics_of_alerts() if not await server.ask(name)]
        assert missing == []
        of_services = metrics_of_alerts() - {"weir_operator_leading"}
        for name in of_services:
            labels = [labels for labels, _ in await server.ask(name)]
            assert {each["namespace"] for each in labels} == {NAMESPACE}, name
            assert {each["service"] for each in labels} == {NAME}, name

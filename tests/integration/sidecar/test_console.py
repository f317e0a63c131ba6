"""`weir console` in a browser: a flood, a request that is shed, a replica that dies, a login.

And the report of a simulation, which the same modules draw.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from playwright.async_api import Locator, Page, Route, ViewportSize, async_playwright, expect

from tests.integration.sidecar.fleet import KEY, named
from tests.integration.sidecar.harness import PATIENT, House, Running, chat, eventually
from weir_cli.console.access import Login, UrlToken
from weir_cli.console.command import ConsoleOptions, serving
from weir_cli.console.feed import Feed
from weir_cli.console.hosting import hosted
from weir_cli.console.server import Server
from weir_cli.records import Instance, InstanceRecord, ReplicaRecord, ServiceRecord, record_of
from weir_cli.simulation_report import write_report
from weir_cli.top_figures import Process, Reading, Service
from weir_core.api import labels
from weir_core.sched.types import ClassPolicy
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_core.wire.request_state import RequestReport
from weir_sidecar.gateway import Gateway
from weir_sidecar.settings import Identity, Policies
from weir_sim.experiments import Scenario
from weir_sim.mock_engine import MockEngine, Profile
from weir_sim.profiles import PROFILES
from weir_sim.run import SYSTEMS
from weir_sim.sweep import Job, run_job

CLASSES = (
    ClassPolicy("interactive", rank=100, ttft_target_s=60.0, shed="never"),
    ClassPolicy("batch", rank=-100, max_queue_wait_s=600.0, shed="never"),
)
SLOTS = 8
WAITING = 40
ANSWERS = Profile(output_tokens=100_000, token_gap_s=0.02)  # type: ignore[arg-type]
ROOT = Path(__file__).resolve().parents[3]
PICTURE = os.environ.get("WEIR_CONSOLE_PICTURE", "")
"""Where the documents' picture is written, if it is wanted (`make console-picture`)."""
SEEN_WITHIN_MS = 15_000
WIDE: ViewportSize = {"width": 1280, "height": 1010}
PHONE: ViewportSize = {"width": 390, "height": 800}
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@dataclass
class Replica:
    """A replica of the service, at an address of its own as below `weir up`."""

    name: str
    address: str
    running: Running
    engine: MockEngine
    life: contextlib.AsyncExitStack


@pytest.fixture
async def replicas(house: House, tmp_path: Path) -> AsyncIterator[list[Replica]]:
    network = f"127.{random.randrange(100, 250)}.{random.randrange(1, 250)}"
    found = []
    async with contextlib.AsyncExitStack() as stack:
        for number in (1, 2):
            life = await stack.enter_async_context(contextlib.AsyncExitStack())
            own = House(house.run_dir / str(number), life)
            own.run_dir.mkdir()
            own.facts(slots=SLOTS)
            own.policies(PolicyDocument(classes=CLASSES, default_class="batch", max_queued=WAITING))
            engine = await own.mock_engine(ANSWERS)
            address, name = f"{network}.{number}", f"chat-{number}"
            settings = replace(
                PATIENT,
                identity=Identity(pod=name),
                addresses=replace(PATIENT.addresses, host=address, admin_port=labels.ADMIN_PORT),
            )
            found.append(Replica(name, address, await own.sidecar(settings), engine, life))
        yield found


@dataclass
class Door:
    """The gateway of the service, and what it is told."""

    gateway: Gateway
    policies_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"


@pytest.fixture
async def door(house: House) -> Door:
    """A gateway with an admin port, as that of a service that may sleep."""
    address = f"127.{random.randrange(100, 250)}.{random.randrange(1, 250)}.9"
    gate = PeerEntry("chat-gateway", f"{address}:{labels.PEER_PORT}", serves=False)
    classes = PolicyDocument(classes=CLASSES, default_class="batch")
    house.policies(msgspec.structs.replace(classes, peers=(gate,), peer_keys=(KEY,)))
    settings = replace(named(PATIENT, gate.name), policies=Policies(house.policies_dir))
    gateway = Gateway(settings, ("127.0.0.1", 0), admin=(address, labels.ADMIN_PORT))
    await house.stack.enter_async_context(gateway.running())
    return Door(gateway, house.policies_dir / "policies.json")


def write_down(cache: Path, door: Door, replicas: list[Replica]) -> None:
    """Leave the record of a `weir up` that runs them."""
    own = record_of("weir up", os.getpid())
    assert own is not None
    shown = tuple(
        ReplicaRecord(
            name=each.name,
            pool="gpu",
            address=each.address,
            phase="ready",
            admin_socket=str(each.running.sidecar.settings.addresses.admin_socket),
        )
        for each in replicas
    )
    service = ServiceRecord(
        name="chat",
        model="tiny",
        url=door.url,
        policies_file=str(door.policies_file),
        replicas=shown,
    )
    instance = Instance(cache, 8000)
    instance.directory.mkdir(parents=True, exist_ok=True)
    instance.write(
        InstanceRecord(up=own, port=8000, scratch=str(cache), grace_period_s=1, services=(service,))
    )


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """A page of Chromium that reaches this machine and nothing else."""
    found = await asyncio.to_thread(
        subprocess.run, [ROOT / "scripts/chromium"], stdout=subprocess.PIPE, text=True, check=True
    )
    elsewhere: list[str] = []

    async def here_only(route: Route) -> None:
        if urlsplit(route.request.url).hostname in {"127.0.0.1", None}:  # None: a file
            await route.continue_()
        else:
            elsewhere.append(route.request.url)
            await route.abort()

    expect.set_options(timeout=SEEN_WITHIN_MS)
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            tmp_path / "browser",
            executable_path=found.stdout.strip(),
            args=list(FLAGS),
            viewport=WIDE,
            color_scheme="light",
            reduced_motion="reduce",
        )
        await context.route("**/*", here_only)
        page = context.pages[0]
        page.set_default_timeout(SEEN_WITHIN_MS)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        yield page
        await context.close()
    assert (elsewhere, faults) == ([], [])


@pytest.fixture
async def asked(replicas: list[Replica]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Requests in flight; their clients leave before the replicas stop."""
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def ask(at: Replica, class_name: str, name: str) -> None:
    headers = {"x-llm-d-inference-objective": class_name, "x-request-id": name}
    url = f"http://{at.address}:{at.running.sidecar.api_port}/v1/chat/completions"
    async with at.running.session.post(url, json=chat(stream=True), headers=headers) as answer:
        await answer.read()


async def flood(replicas: list[Replica], asked: list[asyncio.Task[None]]) -> None:
    """Fill the first replica's engine and its pool, with both classes; one more is refused."""
    first, second = replicas
    driver = first.running.sidecar.driver

    def begin(at: Replica, class_name: str, number: int) -> None:
        # Clients may use an id twice: those of the last two are equal.
        numbers = (min(each, number - 2) for each in range(number))
        names = [f"{class_name}-{at.name}-{len(asked) + each}" for each in numbers]
        asked.extend(asyncio.create_task(ask(at, class_name, name)) for name in names)

    begin(first, "interactive", 3)
    begin(second, "interactive", 2)
    await eventually(lambda: first.engine.running == 3)
    begin(first, "batch", SLOTS - 3 + 24)
    await eventually(lambda: len(driver.waiting()) == 24)
    begin(first, "interactive", WAITING - 24)
    await eventually(lambda: len(driver.waiting()) == WAITING)
    await ask(first, "batch", "one-too-many")


async def see_the_pool(page: Page, first: Replica) -> None:
    """Look at what waits, and by keyboard at why the last one does."""
    pool = page.get_by_role("group", name="Request pool")
    waiting = first.running.sidecar.driver.waiting()
    for each in CLASSES:
        number = sum(1 for ticket in waiting if ticket.policy.name == each.name)
        marks = pool.get_by_role("button", name=f"{each.name} request of anonymous: waits")
        await expect(marks).to_have_count(number)
    last = pool.get_by_role("button", name="batch request").last
    await last.focus()
    await page.keyboard.press("Enter")
    way = page.get_by_role("region", name="batch request")
    await expect(way).to_contain_text("all slots of the batch are taken")
    await expect(way).to_contain_text(f"place {WAITING}")
    if PICTURE:
        await page.wait_for_timeout(15_000)  # for lines to be seen in the timelines
        await page.screenshot(path=PICTURE, full_page=True)
    await page.keyboard.press("Escape")
    await expect(last).to_be_focused()
    await page.get_by_role("link", name="Skip what waits").press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip what runs")).to_be_focused()


async def see_the_shed_one(page: Page) -> None:
    ended = page.get_by_role("group", name="Ended last")
    await ended.get_by_role("button", name="the pool holds as many requests as it may").click()
    way = page.get_by_role("region", name="batch request")
    await expect(way).to_contain_text("rejected_queue_full")
    await expect(way).to_contain_text("one-too-many")
    await page.keyboard.press("Escape")


async def find_it_by_its_id(page: Page) -> None:
    """Look for a request that no mark on the page stands for."""
    await page.get_by_role("searchbox").fill("one-too-many")
    await page.keyboard.press("Enter")
    way = page.get_by_role("region", name="request", exact=True)
    await expect(way).to_contain_text("the pool holds as many requests as it may")
    await expect(way).to_contain_text("chat-1")
    await page.keyboard.press("Escape")


async def width_of(page: Page) -> float:
    """Return how wide the page is, by the browser: the page's policy lets no test run a script."""
    browser = await page.context.new_cdp_session(page)
    width: float = (await browser.send("Page.getLayoutMetrics"))["cssContentSize"]["width"]
    return width


async def test_shows_a_flood_a_shed_request_and_a_replica_that_dies(
    replicas: list[Replica],
    door: Door,
    asked: list[asyncio.Task[None]],
    page: Page,
    tmp_path: Path,
) -> None:
    first, second = replicas
    write_down(tmp_path, door, replicas)
    await flood(replicas, asked)
    async with serving(tmp_path, ConsoleOptions(port=0, interval_s=0.25)) as (url, _):
        await page.goto(url)
        await see_the_pool(page, first)
        await see_the_shed_one(page)
        await find_it_by_its_id(page)
        await second.life.aclose()
        await expect(page.get_by_role("button", name="chat-2: no answer")).to_be_visible()
        write_down(tmp_path, door, [first])
        await expect(page.get_by_role("button", name="chat-2: gone")).to_be_visible()
        await page.set_viewport_size(PHONE)
        await page.emulate_media(color_scheme="dark")
        assert await width_of(page) <= PHONE["width"]
        Instance(tmp_path, 8000).directory.joinpath("state.json").unlink()
        await expect(page.get_by_text("Nothing is served here")).to_be_visible()
        await page.goto("about:blank")  # a stream that breaks is an error of the page


async def tab_to(page: Page, name: str, most: int = 12) -> Locator:
    """Press Tab until a button of that name has the focus."""
    button = page.get_by_role("button", name=name)
    for _ in range(most):
        await page.keyboard.press("Tab")
        focused = button.and_(page.locator(":focus"))
        if await focused.count():
            return focused
    raise AssertionError(f"{most} times Tab do not lead to {name}")


async def test_a_gateway_that_holds_a_request_is_opened_by_keyboard_on_a_phone(
    door: Door, page: Page, tmp_path: Path
) -> None:
    await page.set_viewport_size(PHONE)
    write_down(tmp_path, door, [])
    async with (
        aiohttp.ClientSession() as http,
        serving(tmp_path, ConsoleOptions(port=0, interval_s=0.25)) as (url, _),
    ):
        held = asyncio.create_task(http.post(f"{door.url}/v1/chat/completions", json=chat()))
        await eventually(lambda: door.gateway.parts.routing.waiting == 1)
        await page.goto(url)
        await expect(page.get_by_role("button", name="chat-gateway: ready, 1 wait")).to_be_visible()
        await tab_to(page, "chat-gateway: ready")
        await page.keyboard.press("Enter")
        mark = await tab_to(page, "batch request of anonymous: waits")
        await page.keyboard.press("Enter")
        way = page.get_by_role("region", name="batch request")
        await expect(way).to_contain_text("in the pool of chat-gateway, place 1")
        await expect(way).to_contain_text("no replica takes requests now")
        await tab_to(page, "Close the request")
        await page.keyboard.press("Enter")
        await expect(mark).to_be_focused()
        assert await width_of(page) <= PHONE["width"]
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        # What has the focus is gone: the next Tab does not begin at the top of the page.
        await expect(page.get_by_role("heading", name="chat-gateway")).to_be_focused()
        await page.goto("about:blank")


async def test_a_login_leads_to_the_page_and_another_token_back_to_the_form(
    page: Page, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("a token of enough characters")
    broken = Process("chat-1", "ready", (), Reading(0.0, {"phase": 7}))
    feed = Feed(lambda: [Service("chat", CLASSES, (), (broken,))], 0.1, 1.0)
    why = "chat-1 cannot be read: its page /state is not one that this console knows"
    server = Server(feed, no_request, Login(token_file, time.time))
    async with hosted(server, (feed.run(),), "127.0.0.1", 0) as (port, _):
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.get_by_label("Token of the console").fill("a token of enough characters")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_text(why)).to_be_visible()
        assert page.url == f"http://127.0.0.1:{port}/"
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_label("Token of the console").fill("a token of enough characters")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text(why)).to_be_visible()
        await page.goto("about:blank")
        token_file.write_text("another token of enough characters")
        await page.goto(f"http://127.0.0.1:{port}/")
        await expect(page.get_by_label("Token of the console")).to_be_visible()


async def test_the_url_that_was_printed_opens_from_another_site_until_the_logout(
    page: Page,
) -> None:
    feed = Feed(tuple, 0.1, 1.0)
    server = Server(feed, no_request, UrlToken("secret", time.time))
    async with hosted(server, (feed.run(),), "127.0.0.1", 0) as (port, _):
        link = f"<a href='http://127.0.0.1:{port}/?token=secret'>console</a>"
        await page.goto(f"data:text/html,{link}")
        await page.get_by_role("link").click()
        await expect(page.get_by_text("Nothing is served here")).to_be_visible()
        assert page.url == f"http://127.0.0.1:{port}/"
        await page.go_back()  # the token is not in the history
        assert page.url.startswith("data:")
        await page.go_forward()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_text("logged out")).to_be_visible()
        assert await page.context.cookies() == []


async def no_request(service: str, request_id: str) -> list[RequestReport]:
    return []


async def test_the_report_of_a_simulation_draws_its_classes_as_the_console_does(
    page: Page, tmp_path: Path
) -> None:
    scenario = Scenario(PROFILES["h100-8b"], 3.0, duration_s=5.0)
    done = [run_job(Job(scenario, SYSTEMS[name], seed=0)) for name in ("weir", "fcfs")]
    await page.goto(write_report(done, tmp_path / "out", "weir simulate compare").as_uri())
    weir = page.get_by_role("region", name="weir, load 3, seed 0")
    await expect(weir.get_by_role("img", name="TTFT p99: interactive")).to_be_visible()
    most = max(moment.waiting.get("batch", 0) for moment in done[0].curves.timeline)
    await expect(weir.locator("figure", has_text="Waiting").first).to_contain_text(f"batch {most}")
    await expect(page.get_by_role("region", name="fcfs, load 3, seed 0")).to_be_visible()
    await page.set_viewport_size(PHONE)
    assert await width_of(page) <= PHONE["width"]

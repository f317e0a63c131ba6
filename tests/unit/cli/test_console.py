"""`weir console`: its server, its one loop, and the files of its page."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from weir_cli.console import feed as feeding
from weir_cli.console.access import (
    SESSION_S,
    WRONG_A_MINUTE,
    WRONG_OF_ALL,
    Access,
    Login,
    ThisMachine,
    UrlToken,
)
from weir_cli.console.command import ConsoleOptions, serving
from weir_cli.console.feed import HISTORY_S, IDLE_S, Feed, View
from weir_cli.console.frames import GONE_SHOWN_S, Watched
from weir_cli.console.server import LARGEST_PART, MAX_VIEWERS, Server, parts_of
from weir_cli.top_figures import Process, Reading, Series, Service, quantile
from weir_core.errors import MachineUnfit
from weir_core.sched.types import BUILT_IN_CLASSES
from weir_core.wire.request_state import RequestReport, RequestState

PAGE = Path(__file__).parents[3] / "cli/weir_cli/console/page"
PROMPT = "never shown"


def service(*names: str, slots: int = 8) -> Service:
    """Return a service of replicas that were read once."""
    waits = {"id": "r-1", "class": "batch", "tenant": "team-a", "position": 1, "waited_s": 2.5}
    counts = {"dispatched": 3, "finished": 0, "preempted": 0, "rejected": {}}
    scheduling = {
        **{"engine": {"max_num_seqs": slots}, "at_engine": 3, "kv_tokens": 0, "batch": []},
        **{"waiting": 1, "classes": [], "counts": counts, "queue": [{**waits, "prompt": PROMPT}]},
    }
    state = {"phase": "serving", "model": PROMPT, "scheduling": scheduling}
    reading = Reading(10.0, state, {Series("weir_queue_requests", (("class", "batch"),)): 5.0})
    replicas = tuple(Process(name, "ready", (reading,)) for name in names)
    return Service("chat", BUILT_IN_CLASSES, (Process("chat-gateway", "ready"),), replicas)


class Machine:
    """What runs, and how often it was looked at."""

    def __init__(self, *services: Service) -> None:
        self.services: Sequence[Service] = services
        self.looks = 0
        self.wall = 1000.0

    def read(self) -> Sequence[Service]:
        self.looks += 1
        return self.services

    def toggle(self) -> None:
        """Have every replica change its phase."""
        (known,) = self.services
        self.services = (replace(known, replicas=tuple(map(_toggled, known.replicas))),)

    def feed(self, only: str = "") -> Feed:
        return Feed(self.read, 1.0, 5.0, only, wall=lambda: self.wall, clock=lambda: 10.5)


def _toggled(process: Process) -> Process:
    return replace(process, phase="ready" if process.phase != "ready" else "draining")


async def find(service: str, request_id: str) -> list[RequestReport]:
    """Say where a request is: one that waits."""
    return [RequestReport(service, (RequestState("batch", "team-a", 1.0),))]


@asynccontextmanager
async def opened(
    feed: Feed, access: Access | None = None
) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """Serve a feed; yield a client and the URL."""
    async with served(Server(feed, find, access or ThisMachine())) as found:
        yield found


@asynccontextmanager
async def served(console: Server) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    server = TestServer(console.app())
    async with AsyncExitStack() as stack:
        await server.start_server(shutdown_timeout=0.1)
        stack.push_async_callback(server.close)
        jar = aiohttp.CookieJar(unsafe=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
        yield session, f"http://127.0.0.1:{server.port}"


async def event(stream: aiohttp.ClientResponse) -> tuple[str, Any]:
    """Read one event."""
    async with asyncio.timeout(20):
        name = (await stream.content.readline()).decode().removeprefix("event: ").strip()
        data = json.loads((await stream.content.readline()).removeprefix(b"data: "))
        assert await stream.content.readline() == b"\n"
    return name, data


async def test_a_viewer_gets_the_history_and_then_frames() -> None:
    machine = Machine(service("chat-1", "chat-2"))
    feed = machine.feed()
    await feed.look()
    async with opened(feed) as (session, url), session.get(url + "/events?replica=chat-2") as got:
        assert got.content_type == "text/event-stream"
        assert await event(got) == ("history", [frame_moment()])
        name, frame = await event(got)
        assert (name, frame["replica"]["name"]) == ("frame", "chat-2")
        (waits,) = frame["replica"]["state"]["scheduling"]["queue"]
        assert (waits["id"], waits["class"]) == ("r-1", "batch")
        assert PROMPT not in json.dumps(frame)
        assert frame["fleet"]["slots"] == {"chat-1": 8, "chat-2": 8}
        machine.wall += 1
        await feed.look()
        assert (await event(got))[1]["fleet"]["at_s"] == 1001.0


def frame_moment() -> dict[str, Any]:
    return {
        "at_s": 1000.0,
        "waiting": {"batch": 10},
        "at_engine": 6,
        "output_tokens_s": 0.0,
        "prompt_tokens_s": 0.0,
        "ttft_p99_s": {},
        "rejected": {},
    }


async def test_several_viewers_share_one_look() -> None:
    machine = Machine(service("chat-1"))
    feed = machine.feed()
    await feed.look()
    async with opened(feed) as (session, url), AsyncExitStack() as stack:
        for _ in range(MAX_VIEWERS):
            got = await stack.enter_async_context(session.get(url + "/events"))
            await event(got)
        assert machine.looks == 1
        async with session.get(url + "/events") as refused:
            assert (refused.status, await refused.text()) == (
                503,
                f"{MAX_VIEWERS} viewers look already; close a page\n",
            )


async def test_a_viewer_that_does_not_read_is_dropped() -> None:
    names = (f"chat-{number}-{'of a long name' * 100}" for number in range(100))
    machine = Machine(service(*names))
    feed = machine.feed()
    await feed.look()
    server = Server(feed, find, ThisMachine(), send_limit_s=0.05)
    async with served(server) as (_, url), asyncio.timeout(60):
        with socket.socket() as silent:
            # A small window, so that little fits between the two.
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(silent, ("127.0.0.1", urlsplit(url).port))
            await loop.sock_sendall(silent, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not server.viewers:  # noqa: ASYNC110 - what a test observes has no event
                await asyncio.sleep(0.01)
            while server.viewers:
                machine.toggle()  # so that frames are not small
                await feed.look()


@pytest.mark.parametrize("size", [0, LARGEST_PART, 3 * LARGEST_PART + 1])
def test_a_large_frame_is_sent_in_parts_so_that_a_slow_reader_is_no_silent_one(size: int) -> None:
    data = b"x" * size
    parts = list(parts_of("frame", data))
    assert b"".join(parts) == b"event: frame\ndata: " + data + b"\n\n"
    assert max(map(len, parts)) <= LARGEST_PART


@pytest.mark.parametrize("scheduling", [{}, {"engine": 1}, {"engine": {"max_num_seqs": "8"}}, 1])
async def test_a_page_that_no_sidecar_writes_ends_no_frame(scheduling: Any) -> None:
    detail = Reading(10.0, {"scheduling": scheduling})
    replicas = (Process("chat-1", "ready", (), detail),)
    feed = Machine(Service("chat", BUILT_IN_CLASSES, (), replicas)).feed()
    await feed.look()
    assert feed.frame("chat", "chat-1").fleet.slots == {}


async def test_a_service_that_vanishes_leaves_an_empty_page() -> None:
    machine = Machine(service("chat-1"))
    feed = machine.feed()
    await feed.look()
    machine.services = ()
    await feed.look()
    frame = feed.frame("chat", "chat-1")
    assert (frame.fleet.service, frame.replica, feed.history("chat")) == ("", None, [])


async def test_a_replica_that_vanishes_is_shown_as_gone_for_a_minute() -> None:
    machine = Machine(service("chat-1", "chat-2"))
    feed = machine.feed()

    async def states() -> dict[str, str]:
        await feed.look()
        return {row.name: row.state for row in feed.frame("", "").fleet.replicas}

    assert await states() == {"chat-1": "ready", "chat-2": "ready"}
    machine.services = (service("chat-1"),)
    machine.wall += 60
    assert await states() == {"chat-1": "ready", "chat-2": "gone"}
    machine.wall += 1
    assert await states() == {"chat-1": "ready"}


async def test_shows_the_service_that_was_asked_for_only() -> None:
    feed = Machine(service("chat-1")).feed(only="other")
    await feed.look()
    assert feed.frame("", "").fleet.services == ()


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        pytest.param("/", None, 200, id="the page"),
        pytest.param("/console.js", "localhost:9", 200, id="localhost"),
        pytest.param("/vendor/preact.mjs", "[::1]", 200, id="IPv6"),
        pytest.param("/", "weir.example", 421, id="another name"),
        pytest.param("/events", "127.0.0.1.example:80", 421, id="a name like an address"),
        pytest.param("/vendor/../server.py", None, 404, id="a path out of the page"),
        pytest.param("/vendor/LICENSE.htm", None, 404, id="not of the page"),
    ],
)
async def test_answers_local_names(path: str, host: str | None, status: int) -> None:
    headers = {"Host": host} if host else {}
    async with (
        opened(Machine().feed()) as (session, url),
        session.get(url + path, headers=headers) as got,
    ):
        assert got.status == status
        assert "default-src 'none'" in got.headers["Content-Security-Policy"]


def url_token() -> UrlToken:
    return UrlToken("secret", lambda: 1000.0)


async def test_a_token_is_asked_for_and_begins_a_session() -> None:
    async with opened(Machine().feed(), url_token()) as (session, url):
        assert await status(session, url, "/?token=wrong") == 401
        assert await status(session, url, "/console.js") == 401
        async with session.get(url + "/?token=secret", headers={"Host": "weir.example"}) as got:
            assert got.status == 200
            assert 'content="0; url=/"' in await got.text()
            cookie = got.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Strict", f"Max-Age={SESSION_S}"} <= set(cookie.split("; "))
        assert "secret" not in cookie
        assert [await status(session, url, each) for each in ("/", "/console.js")] == [200, 200]
        async with session.post(url + "/") as got:
            assert got.status == 405


async def test_a_cookie_of_other_bytes_is_refused() -> None:
    async with opened(Machine().feed(), url_token()) as (_, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"GET / HTTP/1.0\r\nHost: x\r\nCookie: weir-console=\xff\xfe\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.readline()).split()[1] == b"401"
        writer.close()
        await writer.wait_closed()


TOKEN = "a token of enough characters"


@dataclass
class Entrance:
    """A console with a login, and its clock."""

    file: Path
    now: float = 1000.0

    def login(self) -> Login:
        self.file.write_text(TOKEN + "\n")
        return Login(self.file, lambda: self.now)


@pytest.fixture
async def entrance(tmp_path: Path) -> Entrance:
    return Entrance(tmp_path / "token")


async def log_in(session: aiohttp.ClientSession, url: str, token: str) -> aiohttp.ClientResponse:
    answer = await session.post(url + "/login", data={"token": token}, allow_redirects=False)
    await answer.read()
    return answer


async def status(session: aiohttp.ClientSession, url: str, path: str) -> int:
    async with session.get(url + path, allow_redirects=False) as answer:
        return answer.status


async def test_a_login_opens_the_page_until_it_is_over(entrance: Entrance) -> None:
    async with opened(Machine().feed(), entrance.login()) as (session, url):
        assert [await status(session, url, each) for each in ("/", "/events", "/request?id=1")] == [
            200, 401, 401,
        ]  # fmt: skip
        async with session.get(url) as leading:
            assert 'content="0; url=/login"' in await leading.text()
        assert [await status(session, url, each) for each in ("/login", "/healthz")] == [200, 200]
        answer = await log_in(session, url, TOKEN)
        cookie = answer.headers["Set-Cookie"]
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        assert await status(session, url, "/console.js") == 200
        assert await status(session, url, "/login") == 303  # it is logged in already
        entrance.now += SESSION_S
        assert await status(session, url, "/console.js") == 401


async def test_a_token_that_was_changed_ends_a_session_and_its_stream(entrance: Entrance) -> None:
    feed = Machine(service("chat-1")).feed()
    await feed.look()
    async with opened(feed, entrance.login()) as (session, url):
        await log_in(session, url, TOKEN)
        async with session.get(url + "/events") as stream:
            await event(stream)
            await event(stream)
            entrance.file.write_text("another token of the same length")
            await feed.look()
            async with asyncio.timeout(20):
                with pytest.raises(aiohttp.ClientError):
                    await stream.content.readline()
        assert await status(session, url, "/console.js") == 401


async def test_a_logout_ends_its_session_and_its_streams_alone(entrance: Entrance) -> None:
    feed = Machine(service("chat-1")).feed()
    await feed.look()
    async with (
        opened(feed, entrance.login()) as (session, url),
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as other,
    ):
        for each in (session, other):  # at one instant: two sessions all the same
            await log_in(each, url, TOKEN)
        (kept,) = session.cookie_jar
        async with session.get(url + "/events") as mine, other.get(url + "/events") as theirs:
            for stream in (mine, theirs):
                assert [(await event(stream))[0] for _ in range(2)] == ["history", "frame"]
            async with session.post(url + "/logout", allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (303, "/login")
                cookie = answer.headers["Set-Cookie"]
            assert {"Max-Age=0", "HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
            await feed.look()
            assert (await event(theirs))[0] == "frame"
            async with asyncio.timeout(20):
                with pytest.raises(aiohttp.ClientError):
                    await mine.content.readline()
        stolen = {"Cookie": f"{kept.key}={kept.value}"}
        async with session.get(url + "/console.js", headers=stolen) as answer:
            assert answer.status == 401
        assert await status(other, url, "/console.js") == 200


async def test_what_has_no_session_ends_none(entrance: Entrance) -> None:
    async with opened(Machine().feed(), entrance.login()) as (session, url):
        async with session.post(url + "/logout") as answer:
            assert (answer.status, answer.cookies) == (401, {})
        await log_in(session, url, TOKEN)
        assert await status(session, url, "/logout") == 404  # a link ends none


async def test_sessions_that_were_ended_are_forgotten_when_they_are_over(
    entrance: Entrance,
) -> None:
    login = entrance.login()
    async with opened(Machine().feed(), login) as (session, url):
        for _ in range(3):
            await log_in(session, url, TOKEN)
            async with session.post(url + "/logout", allow_redirects=False):
                pass
            assert len(login._sessions._ended) == 1
            entrance.now += SESSION_S


@pytest.mark.parametrize(
    ("access", "said"),
    [
        pytest.param(ThisMachine(), "no", id="nothing to log out of"),
        pytest.param(url_token(), "yes", id="a session"),
    ],
)
async def test_a_page_knows_whether_there_is_a_logout(access: Access, said: str) -> None:
    async with opened(Machine().feed(), access) as (session, url):
        await status(session, url, "/?token=secret")
        async with session.get(url) as page:
            assert f'data-logout="{said}"' in await page.text()


@pytest.mark.parametrize(
    ("held", "given", "code"),
    [
        pytest.param(TOKEN, "", 401, id="nothing"),
        pytest.param(TOKEN, TOKEN[:-1], 401, id="a part of it"),
        pytest.param(TOKEN, "\udcff", 401, id="no text"),
        pytest.param("short", "short", 503, id="a token that is too short"),
        pytest.param(TOKEN, "x" * 5000, 413, id="far more than a token"),
    ],
)
@pytest.mark.parametrize("charset", ["utf-8", "none-such"])
async def test_a_login_is_refused(
    entrance: Entrance, held: str, given: str, code: int, charset: str
) -> None:
    async with opened(Machine().feed(), entrance.login()) as (session, url):
        entrance.file.write_text(held)
        sent = b"token=" + given.encode(errors="surrogateescape")
        form = {"Content-Type": f"application/x-www-form-urlencoded; charset={charset}"}
        async with session.post(url + "/login", data=sent, headers=form) as answer:
            assert (answer.status, answer.cookies) == (code, {})


async def test_many_wrong_tokens_pause_the_logins_of_their_address(entrance: Entrance) -> None:
    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.9", 0))
    async with (
        opened(Machine().feed(), entrance.login()) as (session, url),
        aiohttp.ClientSession(connector=elsewhere) as other,
    ):
        codes = [(await log_in(session, url, "wrong")).status for _ in range(WRONG_A_MINUTE)]
        assert codes == [401] * WRONG_A_MINUTE
        paused = await log_in(session, url, TOKEN)
        assert (paused.status, paused.headers["Retry-After"]) == (429, "60")
        assert (await log_in(other, url, TOKEN)).status == 303
        entrance.now += 60
        assert (await log_in(session, url, TOKEN)).status == 303


async def test_wrong_tokens_of_many_addresses_pause_all_logins(entrance: Entrance) -> None:
    login = entrance.login()
    wrong = ((f"10.0.0.{number}", entrance.now) for number in range(WRONG_OF_ALL))
    login._wrong.extend(wrong)
    async with opened(Machine().feed(), login) as (session, url):
        assert (await log_in(session, url, TOKEN)).status == 429


async def begin_login(port: int, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a login without the last byte of its form."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body[:-1])
    )
    await writer.drain()
    return reader, writer


async def test_forms_that_end_at_once_are_no_more_guesses(entrance: Entrance) -> None:
    async with opened(Machine().feed(), entrance.login()) as (session, url), asyncio.timeout(60):
        port = urlsplit(url).port or 0
        begun = [await begin_login(port, b"token=wrong") for _ in range(WRONG_A_MINUTE + 3)]
        # By its answer, all of them have begun.
        await status(session, url, "/healthz")
        codes = []
        for reader, writer in begun:
            writer.write(b"g")
            codes.append(int((await reader.readline()).split()[1]))
            writer.close()
        assert codes == [401] * WRONG_A_MINUTE + [429] * 3


async def test_a_form_that_does_not_end_is_not_waited_for(entrance: Entrance) -> None:
    entrance.login()
    login = Login(entrance.file, lambda: entrance.now, form_within_s=0.05)
    async with opened(Machine().feed(), login) as (_, url), asyncio.timeout(60):
        reader, writer = await begin_login(urlsplit(url).port or 0, b"token=wrong")
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()


@pytest.mark.parametrize(
    ("headers", "is_secure"),
    [
        pytest.param({}, False, id="plain"),
        pytest.param({"X-Forwarded-Proto": "https"}, True, id="behind TLS"),
        pytest.param({"X-Forwarded-Proto": "HTTPS, http"}, True, id="behind two proxies"),
    ],
)
async def test_a_cookie_is_kept_to_https_where_the_browser_uses_it(
    entrance: Entrance, headers: dict[str, str], is_secure: bool
) -> None:
    async with opened(Machine().feed(), entrance.login()) as (session, url):
        answer = await session.post(
            url + "/login", data={"token": TOKEN}, headers=headers, allow_redirects=False
        )
        assert ("Secure" in answer.headers["Set-Cookie"].split("; ")) == is_secure


@pytest.mark.parametrize(
    "cookie",
    [
        *("", ".", "..", "9999999999.", "9999999999.ab.", "9999999999.ab.00"),
        *("9" * 5000 + ".ab.00", "\u0661.ab.00", "x.y.z"),
    ],
)
async def test_a_cookie_that_was_made_up_is_no_session(entrance: Entrance, cookie: str) -> None:
    async with opened(Machine().feed(), entrance.login()) as (session, url):
        headers = {"Cookie": f"weir-console={cookie}"}
        async with session.get(url + "/events", headers=headers) as answer:
            assert answer.status == 401


async def test_a_request_is_looked_for_where_it_may_be() -> None:
    async with opened(Machine().feed()) as (session, url):
        async with session.get(url + "/request?service=chat&id=r-1") as got:
            (report,) = await got.json()
            assert (report["pod"], report["requests"][0]["tenant"]) == ("chat", "team-a")
        assert await status(session, url, "/request?service=chat") == 400


def sizes(view: View) -> dict[str, int]:
    return {name: len(data) for name, data in view.events()}


async def test_a_frame_of_a_large_fleet_holds_what_changed() -> None:
    names = [f"chat-{number:03}" for number in range(100)]
    machine = Machine(service(*names))
    feed = machine.feed()
    await feed.look()
    with feed.viewed("", "") as view:
        whole = sizes(view)["frame"]
        await feed.look()
        same = sizes(view)["frame"]
        changed = tuple(replace(e, phase="draining") for e in machine.services[0].replicas[:3])
        machine.services = (
            replace(machine.services[0], replicas=(*changed, *machine.services[0].replicas[3:-1])),
        )
        machine.wall += GONE_SHOWN_S + 1
        await feed.look()
        (_, data) = next(each for each in view.events() if each[0] == "frame")
        fleet = json.loads(data)["fleet"]
    assert ([row["name"] for row in fleet["replicas"]], fleet["left"]) == (names[:3], names[-1:])
    assert (whole > 20_000, same < 2_000) == (True, True)


async def test_a_viewer_of_the_first_service_gets_the_next_ones_history_when_it_ends() -> None:
    machine = Machine(service("chat-1"), replace(service("code-1"), name="code"))
    feed = machine.feed()
    await feed.look()
    with feed.viewed("", "") as view:
        assert [name for name, _ in view.events()] == ["history", "frame"]
        machine.services = machine.services[1:]
        machine.wall += 1
        await feed.look()
        (history, frame) = [json.loads(data) for _, data in view.events()]
    assert [moment["at_s"] for moment in history] == [1000.0, 1001.0]
    assert frame["fleet"]["service"] == "code"
    assert [row["name"] for row in frame["fleet"]["replicas"]] == ["code-1"]


async def test_frames_are_rare_while_there_is_no_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "IDLE_S", 3600.0)
    machine = Machine(service("chat-1"))
    feed = Feed(machine.read, 0.001, 5.0)
    running = asyncio.create_task(feed.run())
    async with asyncio.timeout(60):
        await feed.after(0)
        await asyncio.sleep(0.1)
        assert machine.looks == 1
        with feed.viewed("", ""):
            await feed.after(5)
    running.cancel()
    await asyncio.wait({running})


async def test_the_history_of_rare_frames_is_no_longer_than_that_of_others() -> None:
    machine = Machine(service("chat-1"))
    feed = machine.feed()
    for _ in range(40):
        await feed.look()
        machine.wall += IDLE_S
    assert len(feed.history("")) == HISTORY_S / IDLE_S + 1


async def test_it_is_known_which_replicas_are_looked_at() -> None:
    feed = Machine(service("chat-1", "chat-2")).feed()
    await feed.look()
    with feed.viewed("", ""), feed.viewed("chat", "chat-2"), feed.viewed("other", ""):
        assert feed.watched() == {Watched("chat", "chat-1"), Watched("chat", "chat-2")}
    assert feed.watched() == set()


async def test_ends_while_a_viewer_looks(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(30), serving(tmp_path, ConsoleOptions(port=0)) as (url, _):
            got = await session.get(url + "events")
            await event(got)
        got.close()


async def test_only_an_address_that_was_chosen_has_a_token(tmp_path: Path) -> None:
    async with serving(tmp_path, ConsoleOptions(port=0)) as (url, _):
        assert url.startswith("http://127.0.0.1:")
        assert "token" not in url
    async with serving(tmp_path, ConsoleOptions(host="127.0.0.2", port=0)) as (url, _):
        assert "/?token=" in url


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path, ConsoleOptions(port=0)) as (url, _):
        options = ConsoleOptions(port=urlsplit(url).port or 0)
        with pytest.raises(MachineUnfit, match=r"cannot listen on .*: --port"):
            async with serving(tmp_path, options):
                pass


@pytest.mark.parametrize(
    ("buckets", "want"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"1": 0, "+Inf": 0}, None, id="no observation"),
        pytest.param({"1": 100, "2": 100, "+Inf": 100}, 0.99, id="in the first"),
        pytest.param({"1": 0, "2": 100, "+Inf": 100}, 1.99, id="in the second"),
        pytest.param({"1": 0, "2": 0, "+Inf": 100}, 2.0, id="above the last"),
    ],
)
def test_a_percentile_comes_from_the_buckets(buckets: dict[str, float], want: Any) -> None:
    page = {Series("x_bucket", (("le", bound),)): float(n) for bound, n in buckets.items()}
    assert quantile(page, 0.99) == (want if want is None else pytest.approx(want))


def test_the_vendored_files_are_what_the_lock_says() -> None:
    lock = json.loads((PAGE / "vendor/package-lock.json").read_text())["packages"]
    vendored = json.loads((PAGE / "vendor/vendored.json").read_text())
    for name, package in vendored.items():
        locked = lock[f"node_modules/{name}"]
        assert (package["version"], package["integrity"]) == (
            locked["version"],
            locked["integrity"],
        )
        for file, digest in package["files"].items():
            found = hashlib.sha256((PAGE / "vendor" / file).read_bytes()).hexdigest()
            assert found == digest, f"{file} is not what `make console` copied"
    assert vendored.keys() == lock[""]["dependencies"].keys()

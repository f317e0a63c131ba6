"""Access to the console: for this machine, for a URL with its token, or after a login."""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections import deque
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qs

from aiohttp import web

SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""
COOKIE: Final = "weir-console"
LOGIN_PATH: Final = "/login"
LOGOUT_PATH: Final = "/logout"
HEALTH_PATH: Final = "/healthz"
SHORTEST_TOKEN: Final = 16
"""Characters."""
SESSION_S: Final = 12 * 3600
MOST_ENDED: Final = 10_000
"""Sessions that were ended by hand and are remembered as long as their cookies would be good."""
WRONG_A_MINUTE: Final = 10
"""Wrong tokens of one address in a minute, after which none of it is looked at for a time."""
WRONG_OF_ALL: Final = 1000
"""The same of all addresses: at this pace, a token is not guessed."""
FORM_WITHIN_S: Final = 10.0
"""How long the form may take to arrive."""
_MINUTE_S: Final = 60.0
_DOMAIN: Final = b"weir console session 2"
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WRONG_HOST: Final = "this console answers to localhost only; open the URL that it printed\n"
_NO_TOKEN: Final = "open the URL that weir console printed; it has the token\n"
_LOGGED_OUT: Final = "logged out; the URL that weir console printed logs in again\n"
_LOG_IN: Final = "log in first\n"
_LEADING: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={to}">
<title>Weir console</title><a href="{to}">Open the console</a></html>
"""
_BEFORE_LOGIN: Final = frozenset({LOGIN_PATH, HEALTH_PATH, "/console.css", "/icon.svg"})


class Access(Protocol):
    """Decides it for each request."""

    @property
    def has_logout(self) -> bool:
        """Whether there is a session that the page can end."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that may not look; None where it may."""

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add pages of its own."""


class ThisMachine:
    """Answers to local names, so that no other site's name leads here."""

    has_logout: Final = False

    def refusal(self, request: web.Request) -> web.Response | None:
        """Refuse another name."""
        if _host_name(request) in _LOCAL_NAMES:
            return None
        return web.Response(status=421, text=_WRONG_HOST, headers=SECURITY)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add nothing."""


class Sessions:
    """Logins that go on.

    Each is a cookie with its end, its name, and a proof that it was made with the token. So another
    token ends every session. Of sessions that were ended by hand the names are kept here; a console
    that starts again has forgotten them, and the browsers have no cookie of them.

    Args:
        wall: Unix time, in seconds.
        left: Makes the answer to what has logged out.
    """

    def __init__(self, wall: Callable[[], float], left: Callable[[], web.Response]) -> None:
        self._wall = wall
        self._left = left
        self._ended: dict[str, int] = {}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the way out."""
        router.add_post(LOGOUT_PATH, self._log_out)

    def begin(self, request: web.Request, response: web.Response, token: str) -> None:
        """Have the browser keep a new session."""
        said = f"{self._wall() + SESSION_S:.0f}.{secrets.token_hex(8)}"
        _keep(request, response, f"{said}.{_proof(token, said)}", SESSION_S)

    def goes_on(self, request: web.Request, token: str) -> bool:
        """Tell whether a request has a session that was made with this token."""
        said, _, shown = request.cookies.get(COOKIE, "").rpartition(".")
        ends, _, name = said.partition(".")
        if not token or not ends.isdecimal() or not ends.isascii() or len(ends) > 12:
            return False
        is_real = _same(shown, _proof(token, said))
        return is_real and self._wall() < int(ends) and name not in self._ended

    async def _log_out(self, request: web.Request) -> web.Response:
        """End the session, which the request has: others do not get here."""
        ends, name, _ = request.cookies[COOKIE].split(".")
        now = self._wall()
        self._ended = {each: end_s for each, end_s in self._ended.items() if end_s > now}
        self._ended[name] = int(ends)
        if len(self._ended) > MOST_ENDED:
            self._ended.pop(next(iter(self._ended)))
        response = self._left()
        _keep(request, response, "", 0)
        return response


class UrlToken:
    """Answers to what has the token of the URL that was printed, or a session that it began.

    Args:
        token: That token.
        wall: Unix time, in seconds.
    """

    has_logout: Final = True

    def __init__(self, token: str, wall: Callable[[], float]) -> None:
        self._token = token
        self._sessions = Sessions(wall, lambda: web.Response(text=_LOGGED_OUT, headers=SECURITY))

    def refusal(self, request: web.Request) -> web.Response | None:
        """Refuse without the token; keep it out of the address bar and the history."""
        shown = request.query.get("token", "")
        if not shown:
            if self._sessions.goes_on(request, self._token):
                return None
        elif _same(shown, self._token):
            response = _leading("/")
            self._sessions.begin(request, response, self._token)
            return response
        return web.Response(status=401, text=_NO_TOKEN, headers=SECURITY)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the way out."""
        self._sessions.add_to(router)


class Login:
    """Answers to what has logged in with a token that is in a file.

    Args:
        token_file: Has the token; it is read each time, for a Secret's file changes.
        wall: Unix time, in seconds.
        form_within_s: How long the form may take to arrive.
    """

    has_logout: Final = True

    def __init__(
        self, token_file: Path, wall: Callable[[], float], form_within_s: float = FORM_WITHIN_S
    ) -> None:
        self._file = token_file
        self._wall = wall
        self._sessions = Sessions(wall, lambda: _to(LOGIN_PATH))
        self._form_within_s = form_within_s
        self._wrong: deque[tuple[str, float]] = deque(maxlen=WRONG_OF_ALL)
        self._page = (files("weir_cli.console") / "page" / "login.html").read_text()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the form, the way out, and the probe."""
        self._sessions.add_to(router)
        router.add_get(LOGIN_PATH, self._form)
        router.add_post(LOGIN_PATH, self._log_in)
        router.add_get(HEALTH_PATH, self._health)

    def refusal(self, request: web.Request) -> web.Response | None:
        """Lead to the form what has no session."""
        if request.path in _BEFORE_LOGIN or self._sessions.goes_on(request, self._token()):
            return None
        if request.path != "/":
            return web.Response(status=401, text=_LOG_IN, headers=SECURITY)
        return _leading(LOGIN_PATH)

    async def _health(self, _request: web.Request) -> web.Response:
        well = bool(self._token())
        text = "ok\n" if well else f"{self._file} has no token of {SHORTEST_TOKEN} characters\n"
        return web.Response(status=200 if well else 503, text=text, headers=SECURITY)

    async def _form(self, request: web.Request) -> web.Response:
        if self._sessions.goes_on(request, self._token()):
            return _to("/")
        return self._shown("")

    async def _log_in(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(self._form_within_s):
                given = await _given(request)
        except TimeoutError:
            return self._shown("The token did not arrive in time.", 408)
        # Nothing is awaited from here on: many forms that end at once are looked at one by one.
        address = request.remote or ""
        wait_s = self._pause_s(address)
        if wait_s:
            refused = self._shown("Too many wrong tokens. Try again in a minute.", 429)
            refused.headers["Retry-After"] = str(math.ceil(wait_s))
            return refused
        token = self._token()
        if not token:
            return self._shown(f"The console has no token of {SHORTEST_TOKEN} characters.", 503)
        if not _same(given, token):
            self._wrong.append((address, self._wall()))
            return self._shown("That is not the token.", 401)
        response = _to("/")
        self._sessions.begin(request, response, token)
        return response

    def _shown(self, complaint: str, status: int = 200) -> web.Response:
        body = self._page.replace("{complaint}", complaint)
        return web.Response(status=status, text=body, content_type="text/html", headers=SECURITY)

    def _pause_s(self, address: str) -> float:
        """Return for how long no login of an address is looked at."""
        mine = [at_s for each, at_s in self._wrong if each == address][-WRONG_A_MINUTE:]
        first = [mine[0]] if len(mine) == WRONG_A_MINUTE else []
        if len(self._wrong) == WRONG_OF_ALL:
            first.append(self._wrong[0][1])
        return max(0.0, max(first, default=-math.inf) + _MINUTE_S - self._wall())

    def _token(self) -> str:
        """Return the token; empty where there is none that is long enough."""
        try:
            token = self._file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""
        return token if len(token) >= SHORTEST_TOKEN else ""


async def _given(request: web.Request) -> str:
    """Return what the form has in the place of the token."""
    body = await request.read()
    try:
        return parse_qs(body.decode(), max_num_fields=8).get("token", [""])[0].strip()
    except ValueError:  # it is no text
        return ""


def _proof(token: str, said: str) -> str:
    return hmac.new(token.encode(), _DOMAIN + _bytes_of(said), "sha256").hexdigest()


def _same(shown: str, right: str) -> bool:
    """Compare in a time that does not tell where they differ."""
    return hmac.compare_digest(_bytes_of(shown), right.encode())


def _bytes_of(shown: str) -> bytes:
    # aiohttp reads bytes of a header that are no UTF-8 as surrogates.
    return shown.encode(errors="surrogatepass")


def _to(path: str) -> web.Response:
    return web.Response(status=303, headers={**SECURITY, "Location": path})


def _leading(to: str) -> web.Response:
    """Return a page that leads on by itself.

    A browser that follows a link of another site shows no cookie of SameSite=Strict, through all
    redirects. Where a page of this site leads, it does.
    """
    text = _LEADING.replace("{to}", to)
    return web.Response(text=text, content_type="text/html", headers=SECURITY)


def _keep(request: web.Request, response: web.Response, value: str, age_s: int) -> None:
    """Have the browser keep the session's cookie, or drop it."""
    # Each proxy on the way may add its own; the first one is the browser's.
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme).partition(",")[0]
    is_https = scheme.strip().lower() == "https"
    response.set_cookie(
        COOKIE, value, max_age=age_s, httponly=True, samesite="Strict", secure=is_https
    )


def _host_name(request: web.Request) -> str:
    """Return the name by which the server is asked, without the port."""
    name, colon, port = request.host.rpartition(":")
    return name if colon and port.isdecimal() else request.host

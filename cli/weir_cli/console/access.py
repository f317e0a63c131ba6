"""Access to the console: for this machine, for a URL with its token, or after a login."""

from __future__ import annotations

import asyncio
import hmac
import math
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
HEALTH_PATH: Final = "/healthz"
SHORTEST_TOKEN: Final = 16
"""Characters."""
SESSION_S: Final = 12 * 3600
WRONG_A_MINUTE: Final = 10
"""Wrong tokens of one address in a minute, after which none of it is looked at for a time."""
WRONG_OF_ALL: Final = 1000
"""The same of all addresses: at this pace, a token is not guessed."""
FORM_WITHIN_S: Final = 10.0
"""How long the form may take to arrive."""
_MINUTE_S: Final = 60.0
_DOMAIN: Final = b"weir console session 1"
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WRONG_HOST: Final = "this console answers to localhost only; open the URL that it printed\n"
_NO_TOKEN: Final = "open the URL that weir console printed; it has the token\n"
_LOG_IN: Final = "log in first\n"
_BEFORE_LOGIN: Final = frozenset({LOGIN_PATH, HEALTH_PATH, "/console.css", "/icon.svg"})


class Access(Protocol):
    """Decides it for each request."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that may not look; None where it may."""

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add pages of its own."""


class ThisMachine:
    """Answers to local names, so that no other site's name leads here."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Refuse another name."""
        if _host_name(request) in _LOCAL_NAMES:
            return None
        return web.Response(status=421, text=_WRONG_HOST, headers=SECURITY)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add nothing."""


class UrlToken:
    """Answers to what has the token of the URL that was printed.

    Args:
        token: That token.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def refusal(self, request: web.Request) -> web.Response | None:
        """Refuse without the token; keep it in a cookie, not in the address bar and the history."""
        shown = request.query.get("token", "")
        if not _same(shown or request.cookies.get(COOKIE, ""), self._token):
            return web.Response(status=401, text=_NO_TOKEN, headers=SECURITY)
        if not shown:
            return None
        return _logged_in(request, self._token)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add nothing."""


class Login:
    """Answers to what has logged in with a token that is in a file.

    The session is a cookie with its end and a proof that it was made with the token. So another
    token ends every session, and no session is kept here.

    Args:
        token_file: Has the token; it is read each time, for a Secret's file changes.
        wall: Unix time, in seconds.
        form_within_s: How long the form may take to arrive.
    """

    def __init__(
        self, token_file: Path, wall: Callable[[], float], form_within_s: float = FORM_WITHIN_S
    ) -> None:
        self._file = token_file
        self._wall = wall
        self._form_within_s = form_within_s
        self._wrong: deque[tuple[str, float]] = deque(maxlen=WRONG_OF_ALL)
        self._page = (files("weir_cli.console") / "page" / "login.html").read_text()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the form and the probe."""
        router.add_get(LOGIN_PATH, self._form)
        router.add_post(LOGIN_PATH, self._log_in)
        router.add_get(HEALTH_PATH, self._health)

    def refusal(self, request: web.Request) -> web.Response | None:
        """Lead to the form what has no session."""
        if request.path in _BEFORE_LOGIN or self._has_session(request):
            return None
        if request.path != "/":
            return web.Response(status=401, text=_LOG_IN, headers=SECURITY)
        return web.Response(status=303, headers={**SECURITY, "Location": LOGIN_PATH})

    async def _health(self, _request: web.Request) -> web.Response:
        well = bool(self._token())
        text = "ok\n" if well else f"{self._file} has no token of {SHORTEST_TOKEN} characters\n"
        return web.Response(status=200 if well else 503, text=text, headers=SECURITY)

    async def _form(self, _request: web.Request) -> web.Response:
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
        ends = f"{self._wall() + SESSION_S:.0f}"
        return _logged_in(request, f"{ends}.{_proof(token, ends)}", SESSION_S)

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

    def _has_session(self, request: web.Request) -> bool:
        ends, _, shown = request.cookies.get(COOKIE, "").partition(".")
        token = self._token()
        if not token or not ends.isdecimal() or not ends.isascii() or len(ends) > 12:
            return False
        return _same(shown, _proof(token, ends)) and self._wall() < int(ends)

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


def _proof(token: str, ends: str) -> str:
    return hmac.new(token.encode(), _DOMAIN + ends.encode(), "sha256").hexdigest()


def _same(shown: str, right: str) -> bool:
    """Compare in a time that does not tell where they differ."""
    # aiohttp reads bytes of a header that are no UTF-8 as surrogates.
    return hmac.compare_digest(shown.encode(errors="surrogatepass"), right.encode())


def _logged_in(request: web.Request, value: str, age_s: int | None = None) -> web.Response:
    """Return the answer that leads to the page, with the session's cookie."""
    response = web.Response(status=303, headers={**SECURITY, "Location": "/"})
    # Each proxy on the way may add its own; the first one is the browser's.
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme).partition(",")[0]
    is_https = scheme.strip().lower() == "https"
    response.set_cookie(
        COOKIE, value, max_age=age_s, httponly=True, samesite="Strict", secure=is_https
    )
    return response


def _host_name(request: web.Request) -> str:
    """Return the name by which the server is asked, without the port."""
    name, colon, port = request.host.rpartition(":")
    return name if colon and port.isdecimal() else request.host

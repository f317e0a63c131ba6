"""Cross-origin requests of browsers, answered as vLLM's own middleware (Starlette's) answers them.

A preflight never carries a key, so it is answered before anything asks for one. Answers that come
from the engine have these headers already; those of the sidecar get them here.
"""

from __future__ import annotations

from typing import Final

from weir_core.wire.cors import Cors
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.frontend.headers import RequestHead

_ALL_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY")
_ALWAYS_ALLOWED: Final = frozenset(
    {"Accept", "Accept-Language", "Content-Language", "Content-Type"}
)
_MAX_AGE_S: Final = "600"
_PREFLIGHT_VARY: Final = ", ".join(
    [
        "Origin",
        "Access-Control-Request-Method",
        "Access-Control-Request-Headers",
        "Access-Control-Request-Private-Network",
    ]
)


class CrossOrigin:
    """Answers browsers by a service's rules.

    Args:
        rules: What the engine is told.
    """

    def __init__(self, rules: Cors) -> None:
        self._origins = frozenset(rules.origins)
        self._any_origin = "*" in self._origins
        self._any_header = "*" in rules.headers
        self._methods = _ALL_METHODS if "*" in rules.methods else rules.methods
        self._headers = sorted(_ALWAYS_ALLOWED | set(rules.headers))
        self._lower_headers = frozenset(header.lower() for header in self._headers)
        self._credentials = rules.credentials

    def headers(self, origin: str | None) -> dict[str, str]:
        """Return the headers to add to an answer to a request of this `Origin`."""
        headers = {"Vary": "Origin"}
        if origin is None:
            return headers
        allowed = self._origin_for(origin)
        if allowed is not None:
            headers["Access-Control-Allow-Origin"] = allowed
        if self._credentials:
            headers["Access-Control-Allow-Credentials"] = "true"
        return headers

    def preflight(self, head: RequestHead) -> Answer | None:
        """Return the answer to a preflight; None where the request is none."""
        origin, method = head.origin, head.header(b"access-control-request-method")
        if origin is None or method is None:
            return None
        wanted = head.header(b"access-control-request-headers")
        headers = self._preflight_headers(origin, wanted)
        refused = []
        if self._origin_for(origin) is None:
            refused.append("origin")
        if method not in self._methods:
            refused.append("method")
        if wanted is not None and not self._allows(wanted):
            refused.append("headers")
        if head.header(b"access-control-request-private-network") is not None:
            refused.append("private-network")
        if refused:
            text = "Disallowed CORS " + ", ".join(refused)
            return Answer(400, text.encode(), headers=headers)
        return Answer(200, b"OK", headers=headers)

    def _preflight_headers(self, origin: str, wanted: str | None) -> dict[str, str]:
        headers = {
            **self.headers(origin),
            "Vary": _PREFLIGHT_VARY,
            "Access-Control-Allow-Methods": ", ".join(self._methods),
            "Access-Control-Max-Age": _MAX_AGE_S,
        }
        if not self._any_header:
            headers["Access-Control-Allow-Headers"] = ", ".join(self._headers)
        elif wanted is not None:
            headers["Access-Control-Allow-Headers"] = wanted
        return headers

    def _origin_for(self, origin: str) -> str | None:
        """Return what Access-Control-Allow-Origin says to this origin, None where nothing."""
        if self._any_origin:
            return origin if self._credentials else "*"
        return origin if origin in self._origins else None

    def _allows(self, wanted: str) -> bool:
        if self._any_header:
            return True
        return all(name.strip() in self._lower_headers for name in wanted.lower().split(","))

"""A mixed load on a service of several replicas, and what became of each of its requests.

Streams and plain answers, three classes, short and long prompts and answers, on kept and on fresh
connections. Nothing is tried again: what a client library would hide behind its retries is to be
seen here. Each connection is told apart by the replica that took it, because a request whose
client is connected to a replica that is killed is lost with its connection, whatever the others do.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from urllib.parse import urlsplit

from weir_sim.mock_wire import TOKEN_TEXT

REQUEST_WITHIN_S = 90.0
CLASSES = ("interactive", "standard", "standard", "batch", "batch", "batch")
CLIENTS = 18
"""More than three engines of `SLOTS` take at once, so that something always waits."""
SLOTS = 4
_AGAIN_S = 0.1


class Ending(StrEnum):
    """How a request ended, as its client saw it."""

    WHOLE = "whole"
    REFUSED = "refused"
    """An answer with an error status."""
    UNANSWERED = "unanswered"
    """The connection ended without a byte of an answer."""
    BROKEN = "broken"
    """The answer began and broke off."""


@dataclass(frozen=True)
class Seen:
    """One request, as its client saw it.

    Attributes:
        sent_s: When it was sent, in seconds since the load began.
        class_name: The class it asked for.
        ingress: Address of the pod that took its connection.
        stream: Whether it asked for a stream.
        ending: How it ended.
        replica: The pod whose engine answered, as the answer says; empty where none did.
        words: What was wrong.
    """

    sent_s: float
    class_name: str
    ingress: str
    stream: bool
    ending: Ending
    replica: str
    words: str


class Load:
    """The clients, and what they have seen so far; read it from any thread.

    Args:
        url: Of the service, or of one pod.
        model: What to ask for.
        ingress_of: Tells which pod took the connection from a local port.
    """

    def __init__(self, url: str, model: str, ingress_of: Callable[[int], str]) -> None:
        self.seen: list[Seen] = []
        self.unconnected: list[str] = []
        """Connections that could not be opened: nothing was sent on them."""
        self._url = urlsplit(url)
        self._model = model
        self._ingress_of = ingress_of
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number,), name=f"client {number}")
            for number in range(CLIENTS)
        ]

    def now_s(self) -> float:
        """Return the seconds since the load began."""
        return time.monotonic() - self._began

    def answers(self, since_s: float = 0.0) -> Counter[str]:
        """Return how many of the requests that were sent since then each pod answered whole."""
        return Counter(
            each.replica
            for each in list(self.seen)
            if each.sent_s >= since_s and each.ending is Ending.WHOLE
        )

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Send no more, and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=REQUEST_WITHIN_S + 30)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def _client(self, number: int) -> None:
        rng, keeps = random.Random(number), number % 4 < 2
        class_name = CLASSES[number % len(CLASSES)]
        connection, ingress = None, ""
        for turn in itertools.count():
            if self._stop.is_set():
                break
            if connection is None:
                connection, ingress = self._connect()
                if connection is None:
                    self._stop.wait(_AGAIN_S)
                    continue
            body = self._body(rng, stream=(number + turn) % 3 != 0)
            sent_s = self.now_s()
            how = _ask(connection, class_name, body, keeps=keeps)
            self.seen.append(Seen(sent_s, class_name, ingress, bool(body["stream"]), *how))
            if not keeps or connection.sock is None:  # http.client closes what is not to stay
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _connect(self) -> tuple[HTTPConnection | None, str]:
        port = self._url.port or 80
        connection = HTTPConnection(str(self._url.hostname), port, timeout=REQUEST_WITHIN_S)
        try:
            connection.connect()
        except OSError as error:
            self.unconnected.append(f"at {self.now_s():.1f} s: {error}")
            return None, ""
        return connection, self._ingress_of(connection.sock.getsockname()[1])

    def _body(self, rng: random.Random, *, stream: bool) -> dict[str, object]:
        words = rng.choice((1, 20, 20, 2000))
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": "Count. " * words}],
            "max_tokens": rng.choice((2, 8, 8, 40)),
            "ignore_eos": True,
            "stream": stream,
        }


def _ask(
    connection: HTTPConnection, class_name: str, body: dict[str, object], *, keeps: bool
) -> tuple[Ending, str, str]:
    """Send one request; return how it ended, which replica answered, and what was wrong."""
    headers = {
        "Content-Type": "application/json",
        "Connection": "keep-alive" if keeps else "close",
        "x-weir-class": class_name,
        "x-weir-explain": "1",
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
    except (HTTPException, OSError) as error:
        connection.close()
        return Ending.UNANSWERED, "", f"{type(error).__name__}: {error}"
    replica = json.loads(answer.headers.get("x-weir-explain", "{}")).get("replica", "")
    text, is_whole = _read(answer)
    if answer.status != 200:
        return Ending.REFUSED, replica, f"status {answer.status}: {text[:300]}"
    if not is_whole:
        connection.close()
    if is_whole and _has_all(body, text):
        return Ending.WHOLE, replica, ""
    return Ending.BROKEN, replica, f"...{text[-300:]!r}"


def _read(answer: HTTPResponse) -> tuple[str, bool]:
    """Return an answer's text, and whether HTTP says that it is all."""
    try:
        return answer.read().decode(errors="replace"), True
    except IncompleteRead as error:
        return error.partial.decode(errors="replace"), False
    except (HTTPException, OSError) as error:
        return f"{type(error).__name__}: {error}", False


def _has_all(body: dict[str, object], text: str) -> bool:
    """Tell whether an answer has all the tokens that were asked for, and its last word."""
    if body["stream"]:
        return text.endswith("data: [DONE]\n\n") and text.count(TOKEN_TEXT) == body["max_tokens"]
    return bool(json.loads(text)["usage"]["completion_tokens"] == body["max_tokens"])


@contextmanager
def loaded(url: str, model: str, ingress_of: Callable[[int], str]) -> Iterator[Load]:
    """Keep the clients busy for the length of the context; afterwards all of them are done."""
    load = Load(url, model, ingress_of)
    load.start()
    try:
        yield load
    finally:
        load.end()

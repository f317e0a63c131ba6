"""What the sidecars of a service count, pod by pod, while pods come and go.

The counters of a pod end with it, so all pods are read again and again. A pod that leaves by itself
stands still between its last request and its end, for as long as its containers take to stop, so
the last page that was read of it is complete.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx

from e2e.service import NAMESPACE, Service
from weir_core.api.labels import ADMIN_PORT

SAMPLE = re.compile(r"^(weir_\w+)(?:\{([^}]*)\})? ([\d.e+-]+)$", re.MULTILINE)
_EVERY_S = 0.25
_LIST_EVERY = 8
"""Which pods there are changes seldom, and asking for them costs more than their pages."""
_OUTCOME = re.compile(r'outcome="(\w+)"')


class Page:
    """What one sidecar counted: its page for Prometheus, at one instant."""

    def __init__(self, text: str = "") -> None:
        self._samples = [
            (name, labels, float(value)) for name, labels, value in SAMPLE.findall(text)
        ]

    def total(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        return sum(value for found, _, value in self._samples if found == name)

    def outcomes(self) -> Counter[str]:
        """Return how many requests ended how."""
        found: Counter[str] = Counter()
        for name, labels, value in self._samples:
            match = _OUTCOME.search(labels)
            if name == "weir_requests_total" and match is not None:
                found[match[1]] += int(value)
        return found


class Counts:
    """The newest page of each pod, by its address, beside the one at the beginning."""

    def __init__(self, service: Service) -> None:
        self.pages: dict[str, Page] = {}
        self._service = service
        self._stop = threading.Event()
        self._addresses: list[str] = []
        self.look()
        self._first = dict(self.pages)

    def outcomes(self, address: str) -> Counter[str]:
        """Return how the requests at a pod have ended since the beginning."""
        found = self.pages[address].outcomes()
        found.subtract(self._first.get(address, Page()).outcomes())
        return +found

    def sum(self, name: str) -> float:
        """Return by how much a counter rose, over all pods; one that restarted counts from 0."""
        rose = 0.0
        for address, page in self.pages.items():
            before = self._first.get(address, Page()).total(name)
            rose += page.total(name) - (before if page.total(name) >= before else 0.0)
        return rose

    def look(self) -> None:
        """Read the page of every pod there is, of those that leave, too."""
        pods = self._service.target.kubectl.list("pods", NAMESPACE, self._service.selector)
        self._addresses = [pod["status"].get("podIP", "") for pod in pods]
        self._read()

    def _read(self) -> None:
        for address in filter(None, self._addresses):
            with suppress(httpx.HTTPError):  # it starts, is gone, or is frozen
                page = httpx.get(f"http://{address}:{ADMIN_PORT}/metrics", timeout=2).text
                self.pages[address] = Page(page)

    def follow(self) -> None:
        """Look again and again until told to stop."""
        for turn in itertools.count(1):
            if self._stop.wait(_EVERY_S):
                return
            if turn % _LIST_EVERY:
                self._read()
            else:
                self.look()

    def stop(self) -> None:
        """Have `follow` return."""
        self._stop.set()


@contextmanager
def counting(service: Service) -> Iterator[Counts]:
    """Follow what the pods count for the length of the context."""
    counts = Counts(service)
    with ThreadPoolExecutor(1) as threads:
        follows = threads.submit(counts.follow)
        try:
            yield counts
        finally:
            counts.stop()
    follows.result()

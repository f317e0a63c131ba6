"""What the sidecars of a service count, pod by pod, while pods come and go.

The counters of a pod end with it, so all pods are read again and again. The last page that was read
of a pod that has gone may lack its last requests.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx

from e2e.service import NAMESPACE, Service
from weir_core.api.labels import ADMIN_PORT

SAMPLE = re.compile(r"^(weir_\w+)(?:\{([^}]*)\})? ([\d.e+-]+)$", re.MULTILINE)
_READ_EVERY_S = 0.2
_LIST_EVERY_S = 1.0
_MOST_PODS = 16
"""All that are there during one scenario, one after the other."""
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
        """Read the page of every pod there is now."""
        for address in self._addresses():
            self._read(address)

    def follow(self, pool: ThreadPoolExecutor) -> None:
        """Read the pages again and again, each in a thread of its own, until told to stop."""
        readers: dict[str, Future[None]] = {}
        while not self._stop.wait(_LIST_EVERY_S):
            for address in self._addresses():
                if address not in readers:
                    readers[address] = pool.submit(self._follow, address)
        for reader in readers.values():
            reader.result()

    def stop(self) -> None:
        """Have `follow` return."""
        self._stop.set()

    def _follow(self, address: str) -> None:
        while not self._stop.wait(_READ_EVERY_S):
            self._read(address)

    def _addresses(self) -> list[str]:
        """Return where the pods are, those that leave among them."""
        pods = self._service.target.kubectl.list("pods", NAMESPACE, self._service.selector)
        return [pod["status"]["podIP"] for pod in pods if "podIP" in pod["status"]]

    def _read(self, address: str) -> None:
        with suppress(httpx.HTTPError):  # it starts, is gone, or is frozen
            page = httpx.get(f"http://{address}:{ADMIN_PORT}/metrics", timeout=2).text
            self.pages[address] = Page(page)


@contextmanager
def counting(service: Service) -> Iterator[Counts]:
    """Follow what the pods count for the length of the context."""
    counts = Counts(service)
    with ThreadPoolExecutor(_MOST_PODS) as pool:
        follows = pool.submit(counts.follow, pool)
        try:
            yield counts
        finally:
            counts.stop()
    follows.result()

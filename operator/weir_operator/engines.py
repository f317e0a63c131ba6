"""How the engines order requests, as their sidecars tell: part of each pass.

An engine decides it once, when it starts, and its pod has no right to tell the API server. So a
pass asks the sidecar of each Ready pod, once per start of its engine, and remembers the answer.
Whoever does not answer is unknown, not wrong: a network that keeps the operator from the pods is
no fault of theirs. Nothing is kept beyond the process; a new operator asks again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import aiohttp

from weir_core.api import labels
from weir_core.errors import EngineUnavailable
from weir_core.units import Seconds
from weir_core.wire.addresses import host_and_port
from weir_core.wire.sidecar_state import SidecarState
from weir_core.wire.state_access import authorization
from weir_core.wire.steps import Facts
from weir_operator.observed import Said
from weir_operator.views import Pod

log = logging.getLogger(__name__)

ANSWER_WITHIN: Final = Seconds(2.0)
"""In seconds, for all sidecars of a service together: they are asked side by side."""
ASK_AGAIN: Final = Seconds(60.0)
"""In seconds, after silence: passes can follow each other closely, and each would wait for it."""
AT_ONCE: Final = 64
"""Connections. Whoever does not get one in time is asked in a later pass."""
LONGEST_ANSWER: Final = 8 << 20
"""In bytes. The loads of 1,000 replicas with 32 classes each are 3.4 MB; what answers there is not
trusted to be a sidecar."""

Ask = Callable[[str, str, Sequence[str]], Awaitable[Facts]]
"""Takes a pod's address and name, and the keys of its service's sidecars; raises
`EngineUnavailable`, saying why, when it is not told."""

Page = Callable[[str, str, str, Sequence[str]], Awaitable[bytes]]
"""Takes a page's path and the same; returns the page."""


class _OfAPod(Protocol):
    @property
    def pod(self) -> str:
        """The pod that says it."""


T = TypeVar("T", bound=_OfAPod)

_Start = tuple[str, str]
"""`Pod.engine_start`."""


@dataclass(frozen=True)
class _Heard:
    said: Said
    at: float


class Engines:
    """What the engines of each service said.

    Args:
        ask: Asks one sidecar.
        clock: Seconds that only move forward.
    """

    def __init__(self, ask: Ask, clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._heard: dict[tuple[str, str], dict[_Start, _Heard]] = {}

    async def said(
        self, service: tuple[str, str], pods: Sequence[Pod], keys: Sequence[str]
    ) -> dict[str, Said]:
        """Return what the engine of each Ready pod is, or why that is not known, by pod.

        Args:
            service: Namespace and name.
            pods: Its pods.
            keys: Those of its sidecars, by which they know the operator.
        """
        ready = {pod.engine_start: pod for pod in pods if pod.is_ready}
        before = self._heard.get(service, {})
        known = {start: before[start] for start in ready if self._stands(before.get(start))}
        missing = [start for start in ready if start not in known]
        answers = await asyncio.gather(*(self._one(ready[start], keys) for start in missing))
        known |= dict(zip(missing, answers, strict=True))
        self._heard[service] = known
        return {ready[start].name: heard.said for start, heard in known.items()}

    def forget(self, service: tuple[str, str]) -> None:
        """Forget a service that is gone."""
        self._heard.pop(service, None)

    def _stands(self, heard: _Heard | None) -> bool:
        if heard is None:
            return False
        return isinstance(heard.said, Facts) or self._clock() < heard.at + ASK_AGAIN

    async def _one(self, pod: Pod, keys: Sequence[str]) -> _Heard:
        name, address = pod.name, pod.status.pod_ip
        said: Said
        try:
            said = await self._ask(address, name, keys)
        except EngineUnavailable as error:
            log.warning("pod %s does not tell how its engine orders requests: %s", name, error)
            said = str(error)
        return _Heard(said, self._clock())


def facts_by(page: Page) -> Ask:
    """Return what asks real sidecars what their engines are."""
    return partial(_facts, page)


@asynccontextmanager
async def pages(
    port: int = labels.ADMIN_PORT,
    within: Seconds = ANSWER_WITHIN,
    at_once: int = AT_ONCE,
    wall: Callable[[], float] = time.time,
) -> AsyncIterator[Page]:
    """Read pages of real sidecars while the context lasts.

    Args:
        port: Theirs.
        within: Seconds for an answer.
        at_once: Connections.
        wall: Unix time, in seconds.
    """

    async def page(path: str, address: str, pod: str, keys: Sequence[str]) -> bytes:
        return await _page(
            http, host_and_port(address, port), path, authorization(keys, pod, wall())
        )

    connector = aiohttp.TCPConnector(limit=at_once, force_close=True)
    limit = aiohttp.ClientTimeout(total=within)  # the wait for a connection included
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as http:
        yield page


async def _page(http: aiohttp.ClientSession, where: str, path: str, shown: str) -> bytes:
    url, headers = f"http://{where}{path}", {"Authorization": shown}
    try:
        async with http.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise EngineUnavailable(f"{where} answered {answer.status}")
            return await _bounded(answer.content)
    except TimeoutError as error:
        raise EngineUnavailable(f"{where} did not answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable(f"{where}: {error}") from error
    except ValueError as error:
        raise _not_a_sidecar(where, error) from error


def _not_a_sidecar(address: str, error: Exception) -> EngineUnavailable:
    return EngineUnavailable(f"{address} did not answer as a sidecar: {error}")


async def told_by(
    page: Page, path: str, read: Callable[[bytes], T], address: str, pod: str, keys: Sequence[str]
) -> T:
    """Return what the sidecar of a pod says on a page of its own.

    Args:
        page: Gets pages.
        path: The page's.
        read: Reads it; raises `ValueError` where it is not one.
        address: The pod's.
        pod: The pod's name.
        keys: Those of its service's sidecars.

    Raises:
        EngineUnavailable: It is not told, or the address is another pod's by now.
    """
    try:
        told = read(await page(path, address, pod, keys))
    except (ValueError, RecursionError) as error:  # of JSON that is nested deeply
        raise _not_a_sidecar(address, error) from error
    if told.pod != pod:
        raise EngineUnavailable(f"{address} is {told.pod} by now")
    return told


async def _facts(page: Page, address: str, pod: str, keys: Sequence[str]) -> Facts:
    state = await told_by(page, "/state", SidecarState.decode, address, pod, keys)
    if state.scheduling is None:
        raise EngineUnavailable(f"{address} has met no engine yet")
    return state.scheduling.engine


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    whole = bytearray()
    async for piece in content.iter_any():
        whole += piece
        if len(whole) > LONGEST_ANSWER:
            raise ValueError(f"more than {LONGEST_ANSWER} bytes")
    return bytes(whole)

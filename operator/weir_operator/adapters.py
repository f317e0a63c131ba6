"""Which adapters the replicas of a service have, as their sidecars tell.

A pass asks the sidecar of each Ready pod once per start of its engine and per list of adapters. One
that lacks an adapter is asked again between passes, ever more seldom, and a pass is asked for when
its answer has changed. A sidecar with all of them is not asked again, nor is any of a service
without adapters. Nothing is kept beyond the process; a new operator asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from weir_core.errors import EngineUnavailable
from weir_core.wire.policies import AdapterEntry
from weir_core.wire.sidecar_state import ADAPTER_COMING, ADAPTER_READY, SidecarState
from weir_operator.engines import Page, told_by
from weir_operator.observed import Lacks
from weir_operator.views import Pod

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""Between two looks for sidecars that are to be asked again."""
AGAIN_S: Final = (2.0, 60.0)
"""The shortest and the longest wait before a sidecar is asked again."""
_OF_THE_TIME: Final = 0.25
"""Part of the time for which an adapter has been missing that its sidecar is left alone."""

Service = tuple[str, str]
"""Namespace and name."""

AskState = Callable[[str, str, Sequence[str]], Awaitable[SidecarState]]
"""Takes a pod's address and name, and the keys of its service's sidecars; raises
`EngineUnavailable`, saying why, when it is not told."""

_Asked = tuple[str, str, tuple[AdapterEntry, ...]]
"""One start of an engine, and the adapters it should have."""


def state_by(page: Page) -> AskState:
    """Return what asks real sidecars for their state."""
    return partial(told_by, page, "/state", SidecarState.decode)


@dataclass
class _Heard:
    """What one sidecar said last."""

    pod: Pod
    lacks: Lacks | str
    since: float
    again_at: float


@dataclass
class _Known:
    """One service, as the last pass saw it."""

    adapters: tuple[AdapterEntry, ...]
    keys: Sequence[str]
    heard: dict[_Asked, _Heard]


class Adapters:
    """What the sidecars of each service said.

    Args:
        ask: Asks one sidecar.
        clock: Seconds that only move forward.
        changed: Asks for a pass over a service.
    """

    def __init__(
        self, ask: AskState, clock: Callable[[], float], changed: Callable[[Service], None]
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._changed = changed
        self._known: dict[Service, _Known] = {}

    async def lacks(
        self,
        service: Service,
        adapters: tuple[AdapterEntry, ...],
        pods: Sequence[Pod],
        keys: Sequence[str],
    ) -> dict[str, Lacks | str]:
        """Return what each Ready pod lacks of the adapters, or why that is not known, by pod.

        Args:
            service: Namespace and name.
            adapters: Those that its sidecars are told of.
            pods: Its pods.
            keys: Those of its sidecars, by which they know the operator.
        """
        if not adapters:
            self.forget(service)
            return {}
        ready = {(*pod.engine_start, adapters): pod for pod in pods if pod.is_ready}
        before = self._known.get(service)
        heard = {} if before is None else {k: v for k, v in before.heard.items() if k in ready}
        known = self._known[service] = _Known(adapters, keys, heard)
        missing = {asked: pod for asked, pod in ready.items() if asked not in heard}
        answers = await asyncio.gather(*(self._one(known, pod) for pod in missing.values()))
        now = self._clock()
        for (asked, pod), said in zip(missing.items(), answers, strict=True):
            heard[asked] = _Heard(pod, said, now, now + AGAIN_S[0])
        return {each.pod.name: each.lacks for each in heard.values()}

    def forget(self, service: Service) -> None:
        """Forget a service that is gone."""
        self._known.pop(service, None)

    async def run(self) -> None:
        """Ask again those that lack something, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception:  # the operator would end with this task
                log.exception("could not ask for adapters")

    async def look(self) -> None:
        """Ask again those that lack something and have had time to get it."""
        for service, known in list(self._known.items()):
            now = self._clock()
            due = [one for one in known.heard.values() if one.lacks and now >= one.again_at]
            answers = await asyncio.gather(*(self._one(known, one.pod) for one in due))
            before = [one.lacks for one in due]
            for one, said in zip(due, answers, strict=True):
                wait_s = max(AGAIN_S[0], (now - one.since) * _OF_THE_TIME)
                one.lacks, one.again_at = said, now + min(AGAIN_S[1], wait_s)
            if answers != before and service in self._known:
                self._changed(service)

    async def _one(self, known: _Known, pod: Pod) -> Lacks | str:
        try:
            state = await self._ask(pod.status.pod_ip, pod.name, known.keys)
        except EngineUnavailable as error:
            log.warning("pod %s does not tell which adapters it has: %s", pod.name, error)
            return str(error)
        return _lacking(state, known.adapters)


def _lacking(state: SidecarState, adapters: Sequence[AdapterEntry]) -> Mapping[str, str]:
    """Return the adapters that a replica does not have, each with why."""
    found = {}
    for each in adapters:
        said = state.adapters.get(each.name, ADAPTER_COMING)
        # A sidecar hears of a new source a moment later than the operator.
        is_new = state.adapter_sources.get(each.name, each.uri) != each.uri
        if is_new or said != ADAPTER_READY:
            found[each.name] = ADAPTER_COMING if is_new else said
    return found

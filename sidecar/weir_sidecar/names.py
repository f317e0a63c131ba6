"""The names that the engine beside this sidecar serves: aliases of its model, and adapters.

The document says which there should be, and may change at any time; the engine begins with none.
What differs is put right over the engine's socket, again after each start of it. An engine gets
requests once it has its names, so a replica that restarts refuses none of them.

An adapter is loaded when its files are there, which another container of the pod fetches. One that
is removed is unloaded when no request here asks for it any more, and a while later than it was
removed: other sidecars may be told of it later. That holds for one that was removed while no
sidecar ran, too. New weights under a name take the place of the old
ones in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from weir_core.api.labels import ALIASES_PATH
from weir_core.errors import EngineUnavailable
from weir_core.wire.adapters import (
    Aliases,
    Fetched,
    FetchedAdapter,
    LoadAdapter,
    ModelList,
    UnloadAdapter,
)
from weir_core.wire.policies import PolicyDocument
from weir_core.wire.sidecar_state import (
    ADAPTER_COMING,
    ADAPTER_HAS_NO_ROOM,
    ADAPTER_READY,
    ADAPTER_RENEWED,
)
from weir_sidecar.registry import Registry
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.upstreams.connections import Connections, Reply

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Between two looks at what was fetched."""
LINGER_S: Final = 5.0
"""From an adapter's removal to the first try to unload it."""
DRAINED_WITHIN_S: Final = 300.0
"""Requests that wait for longer do not keep an adapter from being unloaded or replaced."""
MET_WITHIN_S: Final = 300.0
"""An engine that lacks an adapter for longer gets requests all the same."""
TRY_AGAIN_S: Final = (5.0, 300.0)
"""The first and the longest wait after a load that failed; each is twice the one before."""
ANSWER_WITHIN_S: Final = 120.0
"""The engine reads an adapter from its disk meanwhile."""
LONGEST_ANSWER: Final = 1 << 20

OURS_FILE: Final = "adapters-declared.json"
"""Beside what was fetched: the names of all adapters that were declared, and may be loaded."""

NOTHING_FETCHED: Final = FetchedAdapter()


@dataclass
class _AtEngine:
    """What the engine is believed to serve."""

    aliases: tuple[str, ...]
    paths: dict[str, str]
    """Of its adapters, by name."""


@dataclass
class _Failure:
    """Loads of an adapter that failed one after the other."""

    path: str
    why: str
    count: int
    again_at: float


@dataclass
class Shown:
    """What the request path goes by; the owner of the requests holds it.

    Attributes:
        lacking: Adapters that are declared and not served here yet.
        removed: Adapters that are served here, and not declared any more.
        models: What `/v1/models` says while no engine can be asked; empty refuses.
    """

    lacking: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    models: bytes = b""


class Names:
    """Keeps one engine's names.

    Args:
        connections: To the engine.
        registry: Tells which names requests ask for.
        fetched: The file in which the other container says what it has.
        slots: Adapters that the engine has room for.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        connections: Connections,
        registry: Registry,
        fetched: Path,
        slots: int,
        clock: Callable[[], float],
    ) -> None:
        self._connections = connections
        self._registry = registry
        self._file = fetched
        self._slots = slots
        self._clock = clock
        self._seldom = Seldom(clock)
        self._aliases: tuple[str, ...] = ()
        self._uris: dict[str, str] = {}
        self._known: _AtEngine | None = None
        self._is_sure = False
        """The engine has answered all that it was asked since its names were asked for."""
        self._notes = fetched.with_name(OURS_FILE)
        self._ours: set[str] = _read_notes(self._notes)
        """Adapters that this process, or one before it, has seen declared."""
        self._noted = frozenset(self._ours)
        """Those in the file."""
        self._leaving: dict[str, float] = {}
        """Since when those that the engine serves are to be unloaded."""
        self._failures: dict[str, _Failure] = {}
        self._fetched = Fetched()
        self._answers_since: float | None = None
        self._takes_aliases = True
        self._is_met = False
        """The engine that answers has, or had, what can be had of its names."""
        self._is_idle = not self._ours
        """Nothing was ever declared, so the engine is not asked."""
        self._wake = asyncio.Event()
        self.shown = Shown()
        self.on_met: Callable[[], None] = lambda: None
        """Called when the engine has what can be had of its names."""

    # ---- what others tell

    def apply(self, document: PolicyDocument) -> None:
        """Make these its names."""
        self._aliases = document.aliases
        self._uris = {each.name: each.uri for each in document.adapters}
        self._ours |= self._uris.keys()
        self._is_idle = self._is_idle and not (self._aliases or self._uris)
        self._note_ours()
        self._show()
        self._wake.set()

    def engine_answers(self) -> bool:
        """Hear that the engine answers; tell whether it has its names."""
        if self._answers_since is None:
            self._answers_since = self._clock()
            self._wake.set()
        self._is_met = self._is_met or self._is_idle
        return self._is_met

    def engine_gone(self) -> None:
        """Hear that the engine is gone, and its names with it."""
        self._answers_since = self._known = None
        self._takes_aliases = True
        self._is_met = False
        self._failures.clear()
        self._leaving.clear()

    def states(self) -> dict[str, str]:
        """Return each declared adapter with `ready`, or with why it is not."""
        return {name: self._why_lacking(name) or ADAPTER_READY for name in self._uris}

    @property
    def sources(self) -> Mapping[str, str]:
        """The uri of each declared adapter."""
        return self._uris

    # ---- the engine

    async def run(self) -> None:
        """Put right what differs, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            await self.look()

    async def look(self) -> None:
        """Put right what differs, once."""
        self._wake.clear()
        if self._is_idle:
            return
        self._read_fetched()
        if self._answers_since is not None:
            try:
                await self._put_right()
            except EngineUnavailable as error:
                self._is_sure = False  # it is asked at the next look
                self._seldom.warn(log, "the engine's names are unknown", {"error": str(error)})
        if not self._is_met and self._has_its_names():
            self._is_met = True
            self.on_met()
        self._show()

    async def _put_right(self) -> None:
        known = self._known
        if known is None or not self._is_sure:
            known = await self._ask_names()
            if self._answers_since is None:  # it has gone meanwhile
                return
            self._known, self._is_sure = known, True
        if set(known.aliases) != set(self._aliases) and self._takes_aliases:
            await self._tell_aliases(known)
        # While the engine answers, it may go, and the document may change.
        await self._unload_all(known)
        await self._load_all(known)

    async def _unload_all(self, known: _AtEngine) -> None:
        self._ours &= {*self._uris, *known.paths}
        self._note_ours()
        to_go = [name for name in known.paths if self._is_to_go(name, known)]
        now = self._clock()
        self._leaving = {name: self._leaving.get(name, now) for name in to_go}
        for name in to_go:
            if self._known is not known:
                return
            if self._is_to_go(name, known) and self._has_drained(name, now):
                await self._unload(known, name)

    async def _load_all(self, known: _AtEngine) -> None:
        for name in list(self._uris):
            if self._known is known and self._is_due(name, known):
                await self._load(known, name)
                self._show()
                if self._wake.is_set():  # what has changed goes first
                    return

    async def _ask_names(self) -> _AtEngine:
        reply = await self._connections.get("/v1/models", timeout_s=ANSWER_WITHIN_S)
        try:
            listed = ModelList.decode(reply.body).data
        except ValueError as error:
            raise EngineUnavailable(f"/v1/models: {error}") from error
        return _AtEngine(
            aliases=tuple(card.id for card in listed if card.parent is None)[1:],
            paths={card.id: card.root or "" for card in listed if card.parent is not None},
        )

    async def _tell_aliases(self, known: _AtEngine) -> None:
        reply = await self._ask("PUT", ALIASES_PATH, Aliases(self._aliases))
        if reply.status in (404, 405):
            self._takes_aliases = False
            log.error("the engine is no Weir engine, and takes no aliases while it runs")
        elif reply.status >= 300:
            told = {"status": reply.status, "error": _message_of(reply)}
            self._seldom.warn(log, "the engine refuses its aliases", told)
        else:
            known.aliases = self._aliases
            log.info("aliases are in force", extra={"aliases": list(self._aliases)})

    def _is_to_go(self, name: str, known: _AtEngine) -> bool:
        """Tell whether an adapter was removed, or new weights for it are there."""
        if name in self._uris:
            path = self._source(name).path
            return bool(path) and path != known.paths[name]
        return name in self._ours

    def _has_drained(self, name: str, now: float) -> bool:
        """Tell whether an adapter that is to go may go now."""
        passed_s = now - self._leaving[name]
        # vLLM serves an adapter rather than an alias of its name.
        if passed_s >= DRAINED_WITHIN_S or not self._is_met or name in self._aliases:
            return True
        # Of one that gets new weights, newcomers are refused from the look before on.
        is_kept = name in self._uris
        lingers = name not in self.shown.lacking if is_kept else passed_s < LINGER_S
        return not lingers and not self._registry.asking_for(name)

    async def _unload(self, known: _AtEngine, name: str) -> None:
        reply = await self._ask("POST", "/v1/unload_lora_adapter", UnloadAdapter(name))
        if reply.status not in (200, 404):  # 404: it is not there
            told = {"adapter": name, "error": _message_of(reply)}
            self._seldom.warn(log, "adapter not unloaded", told)
            return
        known.paths.pop(name, None)
        self._leaving.pop(name, None)
        log.info("adapter unloaded", extra={"adapter": name})

    def _is_due(self, name: str, known: _AtEngine) -> bool:
        """Tell whether an adapter is to be loaded now."""
        if name not in self._uris or name in known.paths or not self._slots:
            return False
        path, failure = self._source(name).path, self._failures.get(name)
        if not path:
            return False
        return failure is None or failure.path != path or self._clock() >= failure.again_at

    async def _load(self, known: _AtEngine, name: str) -> None:
        path = self._source(name).path
        reply = await self._ask("POST", "/v1/load_lora_adapter", LoadAdapter(name, path))
        if reply.status == 200:
            known.paths[name] = path
            self._failures.pop(name, None)
            log.info("adapter loaded", extra={"adapter": name, "path": path})
            return
        before = self._failures.get(name)
        count = 1 if before is None or before.path != path else before.count + 1
        wait_s = min(TRY_AGAIN_S[1], TRY_AGAIN_S[0] * 2.0 ** min(count - 1, 16))
        why = _message_of(reply)
        self._failures[name] = _Failure(path, why, count, self._clock() + wait_s)
        log.error("adapter not loaded", extra={"adapter": name, "error": why, "again_s": wait_s})

    async def _ask(self, method: str, path: str, told: msgspec.Struct) -> Reply:
        return await self._connections.ask(
            method,
            path,
            body=msgspec.json.encode(told),
            timeout_s=ANSWER_WITHIN_S,
            limit_bytes=LONGEST_ANSWER,
        )

    # ---- what is known

    def _has_its_names(self) -> bool:
        """Tell whether the engine has what can be had of its names now."""
        if self._answers_since is None:
            return False
        if self._clock() - self._answers_since >= MET_WITHIN_S:
            return True
        if self._known is None or not self._is_sure:
            return False
        has_aliases = set(self._known.aliases) == set(self._aliases) or not self._takes_aliases
        return has_aliases and not any(self._is_awaited(name) for name in self._uris)

    def _is_awaited(self, name: str) -> bool:
        """Tell whether an adapter is not there and has not failed either."""
        is_lacking = bool(self._why_lacking(name))
        return is_lacking and self._slots > 0 and not self._failure_of(name)

    def _failure_of(self, name: str) -> str:
        failure = self._failures.get(name)
        return self._source(name).error or (failure.why if failure is not None else "")

    def _why_lacking(self, name: str) -> str:
        """Return why an adapter is not served; empty where it is."""
        if self._known is not None and name in self._known.paths:
            # One whose new weights have to wait until the old ones are not used.
            is_old = name in self._leaving and self._is_to_go(name, self._known)
            return ADAPTER_RENEWED if is_old else ""
        if not self._slots:
            return ADAPTER_HAS_NO_ROOM
        return self._failure_of(name) or ADAPTER_COMING

    def _source(self, name: str) -> FetchedAdapter:
        return self._fetched.sources.get(self._uris[name], NOTHING_FETCHED)

    def _show(self) -> None:
        """Tell the request path; while the engine is gone, what was there is expected back."""
        if self._is_met:
            self.shown.lacking = frozenset(filter(self._why_lacking, self._uris))
            self.shown.removed = frozenset(self._ours.difference(self._uris, self._aliases))

    def _note_ours(self) -> None:
        """Write down which adapters are ours: an engine outlives its sidecar."""
        if self._ours == self._noted:
            return
        fresh = self._notes.with_name(f".{self._notes.name}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(sorted(self._ours)))
            fresh.replace(self._notes)
        except OSError as error:  # it is written again with the next change
            self._seldom.warn(log, "adapters cannot be noted", {"error": str(error)})
            return
        self._noted = frozenset(self._ours)

    def _read_fetched(self) -> None:
        try:
            self._fetched = Fetched.decode(self._file.read_bytes())
        except FileNotFoundError:
            self._fetched = Fetched()
        except (OSError, ValueError) as error:  # it is read again at the next look
            self._seldom.warn(log, "what was fetched cannot be read", {"error": str(error)})


def _read_notes(file: Path) -> set[str]:
    """Return the adapters that a sidecar before this one has seen declared."""
    try:
        return set(msgspec.json.decode(file.read_bytes(), type=list[str]))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", file, error)
        return set()


def _message_of(reply: Reply) -> str:
    """Return what the engine says is wrong, on one line."""
    try:
        error = msgspec.json.decode(reply.body)["error"]
        words = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        words = f"status {reply.status}"
    return " ".join(words.split())[:300]

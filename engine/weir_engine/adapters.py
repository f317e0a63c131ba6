"""`weir-engine adapters`: fetches adapters while the pod runs.

Runs as the pod's `adapters` container, where the engine has room for any. The document that the
sidecars are told names the adapters; each is fetched by `weir-engine fetch` in a process of its
own, with this container's variables and credentials, and a file tells the sidecar what is there.
The sidecar has the engine load it. What is fetched stays: an engine may still read it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from weir_core.api.labels import (
    ADAPTERS_FILE,
    ENV_ENGINE_CONFIG,
    ENV_POLICIES_DIR,
    POLICIES_DIR,
    POLICIES_FILE,
)
from weir_core.api.model import Source
from weir_core.errors import InvalidSpec
from weir_core.wire.adapters import Fetched, FetchedAdapter
from weir_core.wire.engine import MOUNTED, EngineConfig, local_path, locate
from weir_core.wire.policies import PolicyDocument
from weir_engine import settings
from weir_engine.transfer import say

LOOK_S: Final = 1.0
"""Between two looks at the document."""
AT_ONCE: Final = 4
"""Downloads side by side."""
FETCHED_WITHIN_S: Final = 3600.0
"""A download that takes longer is ended, and begun again."""
ENDS_WITHIN_S: Final = 5.0
"""Longest end of a download that is told to end."""
TRY_AGAIN_S: Final = (5.0, 300.0)
"""The first and the longest wait after a failure; each is twice the one before."""
LONGEST_LINE: Final = 1 << 16
"""In bytes; a longer line of a download's is cut."""


def keep_fetching(environment: Mapping[str, str]) -> None:
    """Fetch what the document names, for ever."""
    paths = settings.read_paths(environment)
    document = Path(environment.get(ENV_POLICIES_DIR) or POLICIES_DIR, POLICIES_FILE)
    told = Path(paths.run_dir, ADAPTERS_FILE)
    asyncio.run(Adapters(document, told, paths.model_dir, environment).run())


class Adapters:
    """Fetches the sources of a document's adapters.

    Args:
        document: What the sidecars are told.
        told: Where the sidecar reads what is there.
        model_dir: Where weights are kept.
        environment: Of the downloads.
    """

    def __init__(
        self, document: Path, told: Path, model_dir: str, environment: Mapping[str, str]
    ) -> None:
        self._document = document
        self._told = told
        self._model_dir = model_dir
        self._environment = environment
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._sources: dict[str, FetchedAdapter] = {}
        self._written = b""
        self._trouble = ""
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Follow the document until SIGTERM."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        while not ended.is_set():
            self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await ended.wait()
        await self.close()

    def look(self) -> None:
        """Begin to fetch what is new, and tell the sidecar what is there."""
        try:
            wanted = {each.uri for each in self._named()}
        except FileNotFoundError:  # what was there stays, as it does for the sidecar
            return
        except (OSError, ValueError) as error:  # it is read again at the next look
            self._complain(f"the document of adapters cannot be read: {error}")
            return
        for uri in self._tasks.keys() - wanted:
            task = self._tasks.pop(uri)
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._sources.pop(uri, None)
        for uri in wanted - self._tasks.keys():
            self._tasks[uri] = asyncio.create_task(self._until_there(uri), name=uri)
        self._tell()

    async def close(self) -> None:
        """End every download."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._ending, return_exceptions=True)

    def _named(self) -> tuple[Source, ...]:
        found = PolicyDocument.decode(self._document.read_bytes())
        return tuple(Source(uri=each.uri) for each in found.adapters)

    async def _until_there(self, uri: str) -> None:
        """Fetch one source, again after a while where that fails."""
        wait_s = TRY_AGAIN_S[0]
        while True:
            try:
                async with self._places:
                    found = await self._fetched(uri)
            except (InvalidSpec, OSError) as error:
                found = FetchedAdapter(error=str(error))
            self._sources[uri] = found
            if found.path:
                return
            say(f"{uri}: {found.error}; trying again in {wait_s:g} s")
            await asyncio.sleep(wait_s)
            wait_s = min(TRY_AGAIN_S[1], 2.0 * wait_s)

    async def _fetched(self, uri: str) -> FetchedAdapter:
        """Fetch one source once; return where it is, or why it is not there."""
        source = Source(uri=uri)
        path = local_path(source, self._model_dir)
        error = ""
        if locate(source).scheme not in MOUNTED:
            error = await self._run_fetch(source)
        elif not await asyncio.to_thread(Path(path).is_dir):
            error = f"nothing at {path}; is its volume mounted?"
        return FetchedAdapter(error=error) if error else FetchedAdapter(path=path)

    async def _run_fetch(self, source: Source) -> str:
        """Run a download to its end; return its last words where it failed."""
        config = EngineConfig(name="adapter", source=source)
        told = config.model_dump_json(by_alias=True, exclude_defaults=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "weir_engine", "fetch"),
            env={**self._environment, ENV_ENGINE_CONFIG: told},
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(FETCHED_WITHIN_S):
                last = await _relay(process.stderr)
                code = await process.wait()
        except TimeoutError:
            return f"took longer than {FETCHED_WITHIN_S:g} s"
        finally:
            await _end(process)
        return "" if code == 0 else last or f"the download ended with code {code}"

    def _tell(self) -> None:
        """Write what is there in one step: the sidecar reads the old or the new."""
        found = Fetched(self._sources).encode()
        if found == self._written and self._told.exists():
            self._trouble = ""
            return
        fresh = self._told.with_name(f".{self._told.name}.new")
        try:
            fresh.write_bytes(found)
            fresh.replace(self._told)
        except OSError as error:  # it is written again at the next look
            self._complain(f"the sidecar cannot be told of adapters: {error}")
            return
        self._written, self._trouble = found, ""

    def _complain(self, trouble: str) -> None:
        """Say what is wrong, once while each look finds it."""
        if trouble != self._trouble:
            say(trouble)
        self._trouble = trouble


async def _relay(stderr: asyncio.StreamReader) -> str:
    """Pass on what a download says; return its last line."""
    last = b""
    while True:
        try:
            line = await stderr.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            line = await stderr.read(error.consumed)
        except asyncio.IncompleteReadError as error:
            line = error.partial
        if not line:
            return last.decode(errors="replace").removeprefix("weir-engine: ")
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        last = line.strip() or last


async def _end(process: asyncio.subprocess.Process) -> None:
    """See to it that a download has ended."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(ENDS_WITHIN_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

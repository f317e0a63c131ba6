"""The engine model in real time: steps take as long on the clock as the model says.

Instants are planned, not measured: a step begins where the one before it ended, so what this
process itself needs does not make the modelled engine slower, as long as the machine keeps up.
How far the clock ran away is counted (`behind_s`), because then it did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from weir_core.api import labels
from weir_core.sched.types import EngineKind
from weir_core.wire.policies import EngineMode
from weir_core.wire.priority import due_s_of, rank_of
from weir_core.wire.steps import Facts, Step, encode_step
from weir_sim.engine_model import EngineModel, Job, StepEnd
from weir_sim.profiles import EngineProfile
from weir_sim.weir_engine_model import WeirEngineModel, make_engine_model

_MAX_DATAGRAM_BYTES: Final = 1 << 16


@dataclass(slots=True, eq=False)
class Stream:
    """One request's tokens on their way to its handler.

    Attributes:
        tokens: Generated and not yet taken.
        done: No more will come.
    """

    job: Job
    wire_id: str
    tokens: int = 0
    seen: int = 0
    done: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self) -> int:
        """Return the tokens since the last call, at least one unless `done`."""
        await self.news.wait()
        self.news.clear()
        taken, self.tokens = self.tokens, 0
        return taken

    def give(self, generated: int, *, done: bool = False) -> None:
        """Hand over everything up to the `generated`-th token."""
        if generated > self.seen or done:
            self.tokens += generated - self.seen
            self.seen = generated
            self.done = done
            self.news.set()


class StepClock:
    """Runs an engine model; `run` is its loop.

    Args:
        profile: How long steps take.
        kind: How requests are ordered.
        run_dir: Where the facts are written, the step log's socket is looked for and that of
            modes is bound, as Weir's plug-in for vLLM does it; None tells nobody.
        prefix_caching: Jobs name the blocks of their prompts.
    """

    def __init__(
        self,
        profile: EngineProfile,
        kind: EngineKind,
        run_dir: Path | None,
        *,
        prefix_caching: bool = False,
    ) -> None:
        self.model = make_engine_model(profile, kind, shared_tokens=profile.block_tokens)
        self.behind_s = 0.0
        self._kind = kind
        self._streams: dict[str, Stream] = {}
        self._work = asyncio.Event()
        self._serial = 0
        self._log = _StepLog(run_dir / labels.STEPS_SOCKET) if run_dir else None
        self._modes: _Modes | None = None
        if run_dir is not None:
            self._modes = _Modes(run_dir / labels.MODE_SOCKET)
            facts = Facts(
                kind=kind.value,
                max_num_seqs=profile.max_num_seqs,
                max_num_batched_tokens=profile.max_num_batched_tokens,
                kv_capacity_tokens=profile.kv_tokens,
                block_tokens=profile.block_tokens,
                prefix_caching=prefix_caching,
            )
            (run_dir / labels.FACTS_FILE).write_bytes(facts.encode())

    def submit(
        self,
        prompt_tokens: int,
        output_tokens: int,
        priority: int,
        wire_id: str,
        blocks: Sequence[int] = (),
    ) -> Stream:
        """Queue a request.

        Args:
            prompt_tokens: Of its prompt.
            output_tokens: That it will generate.
            priority: vLLM's, lower first.
            wire_id: Its `x-request-id`.
            blocks: Whole KV blocks of its prompt, equal for equal beginnings.
        """
        self._serial += 1
        rank, due_s = -priority, math.inf
        if self._kind is EngineKind.WEIR:
            rank = rank_of(priority)
            due_s = due_s_of(priority) or math.inf
        job = Job(
            request_id=f"j{self._serial}",
            rank=rank,
            arrival_s=float(self._serial),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            due_s=due_s,
            hash_ids=blocks,
        )
        stream = self._streams[job.request_id] = Stream(job, wire_id)
        self.model.add(job)
        self._work.set()
        return stream

    def cancel(self, stream: Stream) -> None:
        """Drop a request whose client left; one that has ended is ignored."""
        if self._streams.pop(stream.job.request_id, None) is not None:
            self.model.cancel(stream.job)

    async def run(self) -> None:
        """Step for ever."""
        loop = asyncio.get_running_loop()
        while True:
            at = loop.time()
            while (duration_s := self._begin()) is not None:
                at += duration_s
                await asyncio.sleep(max(0.0, at - loop.time()))
                self.behind_s = max(self.behind_s, loop.time() - at)
                self._deliver(self.model.end())
            self._work.clear()
            await self._work.wait()

    def _begin(self) -> float | None:
        if self._modes is not None and isinstance(self.model, WeirEngineModel):
            mode = self._modes.newest()
            if mode is not None:
                self.model.change(mode.for_steps())
        return self.model.begin()

    def _deliver(self, end: StepEnd) -> None:
        if self._log is not None:
            started = [
                self._streams[job.request_id]
                for job in end.first_tokens
                if job.request_id in self._streams
            ]
            self._log.send(self.model, end, started)
        for job in self.model.decodes():
            self._streams[job.request_id].give(self.model.generated(job))
        for job in end.finished:
            self._streams.pop(job.request_id).give(job.output_tokens, done=True)


class _Modes:
    """Datagrams from the sidecar; the newest holds."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))

    def newest(self) -> EngineMode | None:
        newest = None
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self._socket.recv(_MAX_DATAGRAM_BYTES)
                with contextlib.suppress(msgspec.DecodeError):
                    newest = msgspec.json.decode(datagram, type=EngineMode)
        return newest

    def __del__(self) -> None:
        self._socket.close()


class _StepLog:
    """Datagrams to whoever listens; nobody waits for a reader."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, model: EngineModel, end: StepEnd, started: Sequence[Stream]) -> None:
        record = end.record
        step = Step(
            seq=model.counts.steps,
            duration_s=record.duration_s,
            prefill_tokens=record.prefill_tokens,
            decodes=record.decodes,
            prefill_context=record.prefill_context,
            decode_context=record.decode_context,
            running=model.running,
            waiting=model.waiting,
            kv_free_tokens=model.kv.available * model.profile.block_tokens,
            started=tuple(stream.wire_id for stream in started),
            prompts=tuple((stream.job.prompt_tokens, stream.job.cached) for stream in started),
        )
        with contextlib.suppress(OSError):
            self._socket.sendto(encode_step(step), self._path)

    def __del__(self) -> None:
        self._socket.close()

"""A fleet: a gateway before replicas that know each other by a document with peers and a key."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.fuzz import policies
from bench.fuzz.clients import Client
from bench.fuzz.engine import WHOLE, kind_of
from bench.fuzz.network import SimulatedLoop
from bench.fuzz.replica import GatewayHost, Host, Replica
from bench.fuzz.strangers import Stranger, haunt, knock
from bench.fuzz.subject import Subject, look
from weir_core.wire.policies import PolicyDocument

_PATIENCE_S: Final = 30.0
"""After this the fleet has to be whole again, once all is well."""
_KEYS: Final = tuple(f"{number:02x}" * 32 for number in range(1, 9))


class FleetSubject(Subject):
    """A gateway and two or three replicas."""

    CLIENTS = 260
    DISTURBANCES = 30

    def __init__(self, loop: SimulatedLoop, rng: random.Random, scratch: Path) -> None:
        super().__init__(loop, rng, scratch)
        self._replicas = [
            Replica(loop, f"r{at}", f"127.0.1.{at}", rng, scratch / f"r{at}")
            for at in range(1, rng.choice((3, 4)))
        ]
        self.gateway = GatewayHost(loop, "gateway", "127.0.0.1", rng, scratch / "gateway")
        self._keys: tuple[str, ...] = (_KEYS[0],)
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: list[Stranger] = []
        self._is_calm = False
        self._breaks = rng.random() < 0.6
        """Hosts may be killed or cut off, and connections break."""
        self._haunts = rng.random() < 0.4
        """There are ghosts: processes that have the key and are no sidecars."""
        loop.calm = not self._breaks
        document = self._document(rng)
        for host in self.hosts:
            policies.write(host.settings, document.encode())

    @property
    def hosts(self) -> list[Host]:
        """All hosts."""
        return [*self._replicas, self.gateway]

    def _document(self, rng: random.Random, keys: tuple[str, ...] = ()) -> PolicyDocument:
        peers = tuple(replica.entry for replica in self._replicas)
        return msgspec.structs.replace(
            policies.document(rng), peers=peers, peer_keys=keys or self._keys
        )

    # What happens meanwhile.

    def connect(self, rng: random.Random) -> None:
        """Let a client connect, mostly to the gateway."""
        hosts = [host for host in self.hosts if host.door is not None]
        if not hosts:
            return
        host = hosts[-1] if rng.random() < 0.5 else rng.choice(hosts)
        assert host.door is not None
        client = Client(rng, self.loop, host.door)
        client.is_far = True
        self.clients.append((client, host.process))

    def disturb(self, rng: random.Random) -> None:
        """Let something happen that no client does."""
        happenings: dict[Callable[[random.Random, Host], None], float] = {
            self._tell: 20, self._trouble: 14, self._step: 14, self._look_at: 8, self._drain: 4,
            self._rotate: 5, self._knock: 10,
            self._haunt: 12 * self._haunts, self._kill: 6 * self._breaks,
            self._cut_off: 6 * self._breaks, self._reset: 8 * self._breaks,
        }  # fmt: skip
        happen = rng.choices(list(happenings), list(happenings.values()))[0]
        happen(rng, rng.choice(self.hosts))

    def _tell(self, rng: random.Random, host: Host) -> None:
        """Write a document to one host, or to all."""
        document = self._document(rng)
        if self._breaks and rng.random() < 0.3:
            document = msgspec.structs.replace(document, peers=document.peers[:1])
        written = document.encode()
        if rng.random() < 0.15:
            written = policies.broken_document(rng)
        for each in [host] if rng.random() < 0.5 else self.hosts:
            policies.write(each.settings, written)

    def _trouble(self, rng: random.Random, _: Host) -> None:
        rng.choice(self._replicas).trouble(rng)

    def _step(self, rng: random.Random, _: Host) -> None:
        rng.choice(self._replicas).step(rng)

    def _look_at(self, rng: random.Random, host: Host) -> None:
        look(self.loop, rng, host)

    def _drain(self, rng: random.Random, host: Host) -> None:  # noqa: ARG002
        """Drain a process, and begin another when it has ended."""
        if host.runs and not host.process.leaves:
            host.drain()
            self._spawn(self._replace(host, host.process.app.drain.run()))

    async def _replace(self, host: Host, last: Coroutine[Any, Any, Any]) -> None:
        process = host.process
        await last
        if host.process is process and host.runs:
            await host.stop()
            await host.start()

    def _rotate(self, rng: random.Random, host: Host) -> None:
        """Bring another key, to one before the others; both are valid, or the new one alone."""
        new = rng.choice(_KEYS)
        both: tuple[str, ...] = (new, *self._keys[:1])
        self._keys = both if not self._breaks or rng.random() < 0.5 else (new,)
        document = self._document(rng)
        policies.write(host.settings, document.encode())
        for other in self.hosts:
            self.loop.call_later(
                rng.choice((0.0, 0.5, 2.0)), policies.write, other.settings, document.encode()
            )

    def _knock(self, rng: random.Random, host: Host) -> None:
        stranger = knock(self.loop, rng, host)
        if stranger is not None:
            self._strangers.append(stranger)

    def _haunt(self, rng: random.Random, host: Host) -> None:
        self._spawn(haunt(self.loop, rng, host, self._keys[0]))

    def _kill(self, rng: random.Random, host: Host) -> None:
        if host.runs and not self._is_calm:
            self._spawn(self._kill_and_start(host, rng.choice((0.0, 0.1, 1.0, 3.0))))

    async def _kill_and_start(self, host: Host, down_s: float) -> None:
        if not host.runs:
            return
        await host.kill()
        await asyncio.sleep(down_s)
        await host.start()

    def _cut_off(self, rng: random.Random, host: Host) -> None:
        """Let no byte pass to or from a host, for a while."""
        if not self._is_calm:
            self.loop.cut_off.add(host.address)
            self.loop.call_later(
                rng.choice((0.1, 0.8, 2.0, 5.0)), self.loop.cut_off.discard, host.address
            )

    def _reset(self, rng: random.Random, _: Host) -> None:
        """Break a few connections between hosts."""
        links = list(self.loop.links)
        for link in rng.sample(links, min(len(links), rng.choice((1, 3, 20)))):
            link.reset()

    def _spawn(self, happening: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(happening)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end.

    def calm(self) -> None:
        """Let all be well from now on, so that everything ends."""
        super().calm()
        self._is_calm = self.loop.calm = True
        self.loop.cut_off.clear()
        self._tell_all()
        self.loop.call_later(3.0, self._tell_all)  # a late one may have replaced it

    def _tell_all(self) -> None:
        written = self._document(self._rng_of_end()).encode()
        for host in self.hosts:
            policies.write(host.settings, written)

    def _rng_of_end(self) -> random.Random:
        return random.Random(1)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight."""
        return not self._tasks and super().is_quiet

    async def settle(self) -> None:
        """Wait until the fleet is whole again."""
        waited_s = 0.0
        while waited_s < _PATIENCE_S and not self._is_whole:
            await asyncio.sleep(1.0)
            waited_s += 1.0
        if not self._is_whole:
            for host in self.hosts:
                states = [(one["name"], one["state"]) for one in host.process.parts.peers.states()]
                self.faults.append(f"{host.name} has not found all others: {states}")
        await super().settle()

    @property
    def _is_whole(self) -> bool:
        """Whether each sidecar may send requests to each other replica."""
        return all(
            host.process.parts.peers.usable == len(self._replicas) - isinstance(host, Replica)
            for host in self.hosts
        )

    def wrong(self) -> Iterator[str]:
        """Yield what is wrong once all is over."""
        yield from super().wrong()
        for stranger in self._strangers:
            yield from stranger.wrong()
        yield from self._wrong_counts()

    def _wrong_counts(self) -> Iterator[str]:
        """Yield what does not add up over the fleet."""
        forwards, executed, retries = Counter[str](), 0, 0
        for process in self.processes:
            forwards.update(process.forwards())
            executed += process.executed
            retries += int(process.parts.metrics.engine_retries._value.get())
        if executed > forwards.total() + retries:
            yield f"{executed} requests were executed for others, of {dict(forwards)}"
        if self._breaks:
            return
        gone = sum(count for name, count in self.outcomes().items() if name in _GONE)
        unsent = forwards["lost"] + gone
        if forwards.total() - unsent > executed:
            yield f"{executed} requests were executed for others, of {dict(forwards)}"
        members = [one for each in self.processes for one in each.parts.peers._known]
        unacknowledged = sum(len(member.unacknowledged) for member in members)
        if unacknowledged > unsent:
            yield f"{unacknowledged} requests are not acknowledged, {unsent} were not sent"
        counts = Counter[int]()
        for replica in self._replicas:
            counts.update(replica.engine.executed)
        again = [each for each, count in counts.items() if count > 1 and kind_of(each) in WHOLE]
        # A replica or an engine that ends may have answered: what is lost before its first byte
        # is asked again, elsewhere or on a fresh connection.
        if len(again) > forwards["lost"] + retries:
            lost = f"{forwards['lost']} were lost, {retries} sent again on a fresh connection"
            yield f"requests {again} were executed twice, {lost}"


_GONE: Final = frozenset({"client_gone", "client_slow", "cut_by_shutdown"})
"""Outcomes of requests that may have ended on their way to another sidecar."""

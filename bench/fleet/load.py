"""The load generator: clients that come at their instants, and go on when they are answered.

It runs in a process of its own, which reads an `Order` from a file and writes `Answers` to another.
Requests go to the ports in turn, each to the next one: as kube-proxy spreads them over replicas.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from bench.fleet.chats import Chat, answered
from bench.peers.load import Answer, Exchange, chat_body


class Order(msgspec.Struct, frozen=True):
    """One measurement of one target.

    Attributes:
        drain_s: After the last client came; what is open then is closed.
        explain: Weir's sidecars are asked to explain what they do.
    """

    ports: list[int]
    drain_s: float
    chats: list[Chat]
    explain: bool = False


class Sent(msgspec.Struct, frozen=True):
    """One request and what became of it.

    Attributes:
        at_s: When it was sent.
        chat: Whose request it is: the conversation's `text_seed`.
        turn: Of its conversation, from 0.
        explained: What a sidecar said of it.
    """

    at_s: float
    chat: str
    turn: int
    answer: Answer
    explained: str = ""


class Answers(msgspec.Struct, frozen=True):
    """All requests of one order.

    Attributes:
        late_s: How far behind its plan the load generator was at worst.
        seconds: How long it took.
    """

    sent: list[Sent]
    late_s: float
    seconds: float


class _Run:
    def __init__(self, order: Order, session: aiohttp.ClientSession) -> None:
        self._order = order
        self._session = session
        self._ports: Iterator[int] = itertools.cycle(order.ports)
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self.sent: list[Sent] = []
        self.late_s = 0.0

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self._loop.time() - self._start

    async def all(self) -> None:
        """Have all clients come, and wait for the drain."""
        tasks: list[asyncio.Task[None]] = []
        for chat in self._order.chats:
            await asyncio.sleep(max(0.0, chat.at_s - self.seconds))
            self.late_s = max(self.late_s, self.seconds - chat.at_s)
            tasks.append(asyncio.create_task(self._chat(chat)))
        if tasks:
            _, open_tasks = await asyncio.wait(tasks, timeout=self._order.drain_s)
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _chat(self, chat: Chat) -> None:
        """Send turn after turn; one that is not answered to its end is the last."""
        said = chat.opening()
        for number, (turn, message) in enumerate(zip(chat.turns, chat.messages(), strict=True)):
            await asyncio.sleep(turn.think_s)
            said.append(message)
            body = chat_body(chat.class_name, said)
            exchange = Exchange(chat.class_name, body, explain=self._order.explain)
            at_s = self.seconds
            closed = True
            try:
                url = f"http://127.0.0.1:{next(self._ports)}/v1/chat/completions"
                await exchange.run(self._session, url)
                closed = False
            finally:
                answer = exchange.answer(closed=closed)
                self.sent.append(Sent(at_s, chat.text_seed, number, answer, exchange.explained))
            if not answer.complete:
                return
            said.append(answered(answer.tokens))


async def measure(order: Order) -> Answers:
    """Have all clients come, wait for the drain, and return what came."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        run = _Run(order, session)
        await run.all()
        return Answers(run.sent, run.late_s, run.seconds)


def main() -> None:
    """Do what the first argument's file orders, and write to the second's."""
    order, answers = map(Path, sys.argv[1:])
    found = uvloop.run(measure(msgspec.json.decode(order.read_bytes(), type=Order)))
    answers.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()

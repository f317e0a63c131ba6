"""Requests at given instants, whatever became of the earlier ones, and what came of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import aiohttp

PATH: Final = "/v1/completions"
Hears = Literal["header", "priority", "nothing"]
_WORDS: Final = ("the ", "fox ", "names ", "his ", "warm ", "song ")


@dataclass(frozen=True, slots=True)
class Shape:
    """The requests of one class.

    Attributes:
        share: Fraction of all requests.
        words: Least and most words of a prompt.
        output_tokens: Least and most tokens of an answer.
        target_s: Time to first token that counts as on time.
    """

    name: str
    share: float
    words: tuple[int, int]
    output_tokens: tuple[int, int]
    target_s: float


MIX: Final = (
    Shape("interactive", 0.2, (40, 200), (16, 48), 1.0),
    Shape("standard", 0.5, (100, 500), (16, 64), 5.0),
    Shape("batch", 0.3, (400, 1500), (32, 128), 60.0),
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to be sent.

    Attributes:
        at_s: When, from the start.
        seed: Of its prompt: no two share a prefix, which the engine would not compute again.
    """

    at_s: float
    shape: Shape
    words: int
    output_tokens: int
    seed: int


@dataclass(slots=True)
class Result:
    """What came of one request; instants are seconds from the start.

    Attributes:
        status: The HTTP status; 0 is no answer at all.
        whole: The answer came to its end.
    """

    class_name: str
    sent_s: float
    target_s: float
    status: int = 0
    first_token_s: float | None = None
    end_s: float = 0.0
    whole: bool = False
    retry_after: str = ""
    reason: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, of answers that began."""
        return None if self.first_token_s is None else self.first_token_s - self.sent_s

    @property
    def on_time(self) -> bool:
        """Whether the answer came whole, with its first token on time."""
        return self.whole and self.ttft_s is not None and self.ttft_s <= self.target_s


def poisson(rate: float, duration_s: float, rng: random.Random) -> list[Arrival]:
    """Return a Poisson stream of the mix, `rate` requests a second."""
    arrivals: list[Arrival] = []
    at_s = rng.expovariate(rate)
    while at_s < duration_s:
        arrivals.append(draw(at_s, rng))
        at_s += rng.expovariate(rate)
    return arrivals


def draw(at_s: float, rng: random.Random) -> Arrival:
    """Return one request of the mix."""
    shape = rng.choices(MIX, [each.share for each in MIX])[0]
    words, output_tokens = rng.randint(*shape.words), rng.randint(*shape.output_tokens)
    return Arrival(at_s, shape, words, output_tokens, rng.getrandbits(32))


class Client:
    """Sends requests to one address.

    Args:
        session: Its connections.
        url: The address.
        hears: How the other side is told each request's class: in Weir's header, as vLLM's
            `priority`, or not at all.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, hears: Hears) -> None:
        self._session = session
        self._url = url + PATH
        self._model = model
        self._hears = hears
        self._start = time.monotonic()

    async def play(
        self, arrivals: Sequence[Arrival], progress: Callable[[int], None]
    ) -> list[Result]:
        """Send each request at its instant; return when all have ended."""
        self._start = time.monotonic()
        tasks: list[asyncio.Task[Result]] = []
        for number, arrival in enumerate(arrivals):
            await asyncio.sleep(max(0.0, arrival.at_s - self._now()))
            tasks.append(asyncio.create_task(self.send(arrival)))
            progress(number + 1)
        return list(await asyncio.gather(*tasks))

    async def keep_busy(self, at_once: int, duration_s: float, rng: random.Random) -> float:
        """Keep `at_once` requests in flight; return how many a second were answered whole."""
        self._start = time.monotonic()
        results: list[Result] = []

        async def one_after_another() -> None:
            while self._now() < duration_s:
                results.append(await self.send(draw(0.0, rng)))

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        # The tail, in which the engine runs half empty, and the ramp do not count.
        counted = [r for r in results if r.whole and duration_s / 4 <= r.end_s <= duration_s]
        return len(counted) / (duration_s * 3 / 4)

    async def send(self, arrival: Arrival) -> Result:
        """Send one request and read its answer to the end."""
        shape = arrival.shape
        result = Result(shape.name, self._now(), shape.target_s)
        headers = {"x-llm-d-inference-objective": shape.name} if self._hears == "header" else {}
        body = {
            "model": self._model,
            "prompt": "".join(random.Random(arrival.seed).choices(_WORDS, k=arrival.words)),
            "max_tokens": arrival.output_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        if self._hears == "priority":
            body["priority"] = MIX.index(shape)  # vLLM's polarity: lower is more important
        try:
            async with self._session.post(self._url, json=body, headers=headers) as response:
                await self._read(response, result)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            result.reason = type(error).__name__
        result.end_s = self._now()
        return result

    async def _read(self, response: aiohttp.ClientResponse, result: Result) -> None:
        result.status = response.status
        if response.status != 200:
            result.retry_after = response.headers.get("Retry-After", "")
            result.reason = response.headers.get("x-llm-d-request-dropped-reason", "")
            await response.read()
            return
        last = b""
        async for piece in response.content.iter_any():
            if result.first_token_s is None:
                result.first_token_s = self._now()
            last = (last + piece)[-64:]
        result.whole = b"data: [DONE]" in last

    def _now(self) -> float:
        return time.monotonic() - self._start

"""The load of a fleet: conversations of several turns, or single requests of three classes.

Each turn sends the conversation so far, as a client does. A conversation begins with one of a few
system prompts and a long first message. All of it is drawn by the seed, so it is equal for all
targets; what a target answers decides only when the next turn comes.

Load 1 is what the engines complete when their batches never empty, measured with the engine model
itself. For conversations this is with each of them at one engine, which has all but its newest
message cached: no router can do better.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from bench.peers.load import chat_body
from weir_core.sched.types import EngineKind
from weir_sim.engine_model import Job
from weir_sim.experiments import capacity_per_s
from weir_sim.profiles import PROFILES, EngineProfile
from weir_sim.step_engine import parse
from weir_sim.weir_engine_model import make_engine_model
from weir_sim.workload import (
    BYTES_PER_TOKEN,
    STANDARD_MIX,
    LengthModel,
    WorkloadSpec,
    generate,
)

PROFILE: Final = "a100-8b"
SPEEDS: Final = {"equal": (1.0, 1.0, 1.0, 1.0), "unequal": (1.0, 0.8, 0.6, 0.4)}
"""Of the four engines, relative to the profile."""

TURNS: Final = 4
_SYSTEM_PROMPTS: Final = 4
_SYSTEM_TOKENS: Final = 600
_FIRST: Final = LengthModel(3000.0, 9000.0, 48.0, 200.0, most_output_tokens=256)
_LATER: Final = LengthModel(400.0, 1500.0, 48.0, 200.0, most_output_tokens=256)
_THINK_S: Final = 1.0
"""Mean pause between an answer and the next turn."""
_MIX: Final = LengthModel(2000.0, 8000.0, 64.0, 256.0, most_output_tokens=256)
_COST_TOKENS: Final = 100
_ANSWER: Final = " token"
_AT_ONCE: Final = 48
_SATURATED_CHATS: Final = 160
Kind = Literal["chats", "mix", "cost"]


class Turn(msgspec.Struct, frozen=True):
    """One message of the client.

    Attributes:
        tokens: Of the message.
        output_tokens: Of the answer, which the engine alone knows before.
        think_s: From the end of the answer before it.
    """

    tokens: int
    output_tokens: int
    think_s: float = 0.0


class Chat(msgspec.Struct, frozen=True):
    """One client.

    Attributes:
        at_s: When it sends its first message.
        text_seed: Of what it says.
        system: Which system prompt it has; None has none.
    """

    at_s: float
    class_name: str
    text_seed: str
    turns: list[Turn]
    system: int | None = None

    def opening(self) -> list[dict[str, str]]:
        """Return what stands before its first message."""
        if self.system is None:
            return []
        text = _text(random.Random(f"system-{self.system}"), _SYSTEM_TOKENS)
        return [{"role": "system", "content": text}]

    def messages(self) -> Iterator[dict[str, str]]:
        """Yield the client's message of each turn."""
        rng = random.Random(self.text_seed)
        for turn in self.turns:
            text = f"[[{turn.output_tokens}]] {_text(rng, turn.tokens)}"
            yield {"role": "user", "content": text}


def answered(tokens: int) -> dict[str, str]:
    """Return an answer of so many tokens as a message of the conversation."""
    return {"role": "assistant", "content": _ANSWER * tokens}


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Attributes:
        ratio: Offered rate over capacity.
        window_s: Clients come until then.
        warm_s: Requests that are sent earlier count for nothing but CPU and hits.
        drain_s: After the last client came, until what is open is closed.
        output_tokens: Of each answer, of a load of kind `cost`.
    """

    name: str
    kind: Kind
    ratio: float
    window_s: float
    warm_s: float
    drain_s: float
    output_tokens: int = 0


LOADS: Final = {
    load.name: load
    for load in (
        Load("chats 0.7x", "chats", 0.7, 45.0, 12.0, 10.0),
        Load("chats 0.9x", "chats", 0.9, 45.0, 12.0, 10.0),
        Load("mix 2x", "mix", 2.0, 60.0, 0.0, 4.0),
        Load("answers of 1", "cost", 2.0, 12.0, 0.0, 3.0, output_tokens=1),
        Load("answers of 64", "cost", 2.0, 12.0, 0.0, 3.0, output_tokens=64),
    )
}


class Capacity:
    """What the engines complete in a second, each at speed 1."""

    def __init__(self) -> None:
        profile = PROFILES[PROFILE]
        chats = saturated_turns_per_s(profile)
        self._per_s: dict[Kind, float] = {
            "chats": chats,
            "mix": capacity_per_s(profile, _spec(1.0, 1.0)),
            "cost": chats,
        }

    def per_s(self, load: Load, speeds: Sequence[float]) -> float:
        """Return the requests per second that engines of these speeds complete."""
        return sum(speeds) * self._per_s[load.kind]

    def clients(self, load: Load, speeds: Sequence[float], seed: int) -> list[Chat]:
        """Return all clients of a run, in order of arrival."""
        rate = load.ratio * self.per_s(load, speeds)
        if load.kind == "mix":
            return _mix(rate, load.window_s, seed)
        turns = 1 if load.kind == "cost" else TURNS
        rng = random.Random(f"{load.kind}-{seed}")
        found: list[Chat] = []
        instant = rng.expovariate(rate / turns)
        while instant < load.window_s:
            name = f"{seed}-{len(found)}"
            if load.kind == "cost":
                turn = Turn(_COST_TOKENS, load.output_tokens)
                found.append(Chat(instant, "interactive", name, [turn]))
            else:
                found.append(chat(instant, name, rng))
            instant += rng.expovariate(rate / turns)
        return found


def chat(at_s: float, name: str, rng: random.Random) -> Chat:
    """Draw one conversation."""
    turns = [Turn(*_FIRST.draw(rng))]
    turns += [Turn(*_LATER.draw(rng), rng.expovariate(1 / _THINK_S)) for _ in range(TURNS - 1)]
    return Chat(at_s, "standard", name, turns, rng.randrange(_SYSTEM_PROMPTS))


def saturated_turns_per_s(profile: EngineProfile) -> float:
    """Return the turns per second of one engine whose batch never empties.

    Measured between the 20th and the 80th percentile of ends, so that neither filling up nor
    running empty counts.
    """
    engine = make_engine_model(profile, EngineKind.FCFS, shared_tokens=profile.block_tokens)
    rng = random.Random("saturated")
    waiting = [chat(0.0, f"saturated-{n}", rng) for n in range(_SATURATED_CHATS)]
    left: dict[str, Iterator[Job]] = {}
    ends: list[float] = []

    def begin() -> None:
        if waiting:
            name = f"c{len(waiting)}"
            left[name] = _jobs(waiting.pop(), name, profile.block_tokens)
            engine.add(next(left[name]))

    for _ in range(_AT_ONCE):
        begin()
    while engine.begin() is not None:
        for job in engine.end().finished:
            ends.append(engine.counts.busy_s)
            name = job.request_id.partition(" ")[0]
            following = next(left[name], None)
            if following is None:
                begin()
            else:
                engine.add(following)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return (last - first) / (ends[last] - ends[first])


def _jobs(one: Chat, name: str, block_tokens: int) -> Iterator[Job]:
    said = one.opening()
    for number, message in enumerate(one.messages()):
        said.append(message)
        wanted = parse("chat", chat_body(one.class_name, said))
        blocks = wanted.blocks(block_tokens)
        request_id = f"{name} {number}"
        yield Job(request_id, 0, 0.0, wanted.prompt_tokens, wanted.output_tokens, hash_ids=blocks)
        said.append(answered(wanted.output_tokens))


def _mix(rate: float, window_s: float, seed: int) -> list[Chat]:
    return [
        Chat(
            each.arrival_s,
            each.class_name,
            f"mix-{seed}-{each.request_id}",
            [Turn(each.prompt_tokens, each.output_tokens)],
        )
        for each in generate(_spec(rate, window_s), seed)
    ]


def _spec(rate: float, duration_s: float) -> WorkloadSpec:
    return WorkloadSpec(rate, duration_s, streams=STANDARD_MIX, lengths=_MIX)


def _text(rng: random.Random, tokens: int) -> str:
    """Return text of so many tokens, like no other."""
    size = BYTES_PER_TOKEN * tokens
    return rng.randbytes(size // 2 + 1).hex()[:size]

"""Which prompts get a step's prefill tokens: by class, then deadline, then what is left.

Prompts that were begun and prompts that wait are one line. So a request of a higher class goes
before a lower one's half-computed prompt, which keeps its KV blocks and sits the step out, or
gets what the higher one leaves. Because chunks are cut to a step's budget, an arrival waits for
at most the one step that runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weir_core.step.budget import Budget


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with tokens left to compute.

    Attributes:
        rank: Its class's.
        urgency: Class and deadline in one number, most urgent lowest; see `wire.priority`.
        left: Tokens still to compute.
        done: Tokens before them that are computed, or will be found in the prefix cache.
        waits: It has no slot yet; the engine's own queue decides when it is admitted.
    """

    request_id: str
    rank: int
    urgency: int
    left: int
    done: int = 0
    waits: bool = False

    @property
    def key(self) -> tuple[int, bool, int, str]:
        """Return its place: of equals, what was begun first, and the shortest of those."""
        return (self.urgency, self.waits, self.left, self.request_id)


def divide(prompts: Iterable[Prompt], budget: Budget) -> dict[str, int]:
    """Return the tokens that each prompt gets in this step, 0 included.

    What waiting prompts would take is set aside from those behind them and stays in `budget`,
    because only the engine knows which of them it can admit.
    """
    chunks, set_aside = serve(prompts, budget)
    give_back(set_aside, budget)
    return chunks


def serve(
    prompts: Iterable[Prompt], budget: Budget
) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """Return what each prompt gets, and of waiting ones (tokens, tokens before them) apart."""
    chunks = {}
    set_aside = []
    for prompt in sorted(prompts, key=lambda one: one.key):
        chunk = chunks[prompt.request_id] = budget.take(prompt.left, prompt.done)
        if prompt.waits:
            set_aside.append((chunk, prompt.done))
    return chunks, set_aside


def give_back(set_aside: Iterable[tuple[int, int]], budget: Budget) -> None:
    """Put what was set aside back into the budget."""
    for chunk, done in set_aside:
        budget.spend(-chunk, done)

"""How much of the engine's time each request took: its share of the steps that computed it.

A step's time is divided equally among the tokens that it computed. A prompt is charged when the
step log tells that it is complete, by the mean time of the prompt tokens that are not charged yet;
an answer when it ends, by the mean time of a token in the steps meanwhile. So neither a step nor a
token costs anything for each request that runs.
"""

from __future__ import annotations


class Rank:
    """The steps of one data-parallel rank so far.

    Attributes:
        steps: How many.
        token_s: The time of one token of each of them, together.
        prompt_s: The time of prompt tokens that no request was charged for yet.
        prompt_tokens: How many these are.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.token_s = self.prompt_s = 0.0
        self.prompt_tokens = 0


class Share:
    """What the engine did for one request.

    Args:
        sequences: Its answers.

    Attributes:
        prompt_tokens: Of its prompts, as the engine counted them.
        cached_tokens: Of these, found in the prefix cache.
        engine_s: Its share of the steps' time.
    """

    def __init__(self, sequences: int) -> None:
        self.prompt_tokens = self.cached_tokens = 0
        self.engine_s = 0.0
        self._sequences = sequences
        self._prompts = 0
        self._rank: Rank | None = None
        self._steps = 0
        self._token_s = 0.0

    def start(self, rank: Rank, prompt_tokens: int, cached_tokens: int) -> None:
        """Charge for a prompt that is complete, and for an answer from here on.

        Args:
            rank: Computed it.
            prompt_tokens: Of the prompt.
            cached_tokens: Of these, found in the prefix cache.
        """
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        computed = min(prompt_tokens - cached_tokens, rank.prompt_tokens)
        if computed > 0:
            seconds = rank.prompt_s * computed / rank.prompt_tokens
            rank.prompt_s -= seconds
            rank.prompt_tokens -= computed
            self.engine_s += seconds
        self._prompts += 1
        if self._rank is None:
            self._rank, self._steps, self._token_s = rank, rank.steps, rank.token_s

    def stop(self, output_tokens: int | None) -> None:
        """Charge for the answer, which has ended.

        Args:
            output_tokens: Of all of its sequences; None is one of each sequence in each step.
        """
        rank, self._rank = self._rank, None
        if rank is None:
            return
        steps = rank.steps - self._steps
        if steps <= 0:
            return
        tokens = steps * self._sequences
        if output_tokens is not None:  # the first of each prompt came with its prompt
            tokens = max(0, min(tokens, output_tokens - self._prompts))
        self.engine_s += (rank.token_s - self._token_s) * tokens / steps

    def lose(self) -> None:
        """Charge for what was computed in vain: the request is computed again from the start."""
        self.stop(None)
        self.prompt_tokens = self.cached_tokens = self._prompts = 0


class StepShares:
    """Divides the steps of an engine among the requests."""

    def __init__(self) -> None:
        self._ranks: dict[int, Rank] = {}

    def on_step(self, number: int, duration_s: float, prompt_tokens: int, decodes: int) -> Rank:
        """Divide a step's time among its tokens; return the rank that computed it.

        Args:
            number: Of the data-parallel rank. Each of them is a part of the replica.
            duration_s: Of the step.
            prompt_tokens: That it computed.
            decodes: Sequences that got a token.
        """
        rank = self._ranks.get(number)
        if rank is None:
            rank = self._ranks[number] = Rank()
        tokens = prompt_tokens + decodes
        rank.steps += 1
        if tokens > 0:
            token_s = duration_s / len(self._ranks) / tokens
            rank.token_s += token_s
            rank.prompt_s += token_s * prompt_tokens
            rank.prompt_tokens += prompt_tokens
        return rank

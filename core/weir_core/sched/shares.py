"""How much of the engine's time each request took: its share of the steps that computed it.

A step's time is divided equally among the tokens that it computed. A prompt is charged when the
step log tells that it is complete, by the mean time of the prompt tokens that are not charged yet;
an answer when it ends, by the mean time of a token in the steps meanwhile. What prefills computed
besides, after a preemption or of a prompt that was given up, is charged when the step log tells of
the answer's end. So neither a step nor a token costs anything for each request that runs.
"""

from __future__ import annotations

from weir_core.sched.types import End


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
    """What the engine did for one attempt at a request.

    Args:
        sequences: Its answers.

    Attributes:
        prompt_tokens: Of its prompts, as the engine counted them.
        cached_tokens: Of these, found in the prefix cache.
        output_tokens: Of its answers that ended, as the engine told.
        ends: How many answers these are.
        reasons: Why they ended.
        engine_s: Its share of the steps' time.
    """

    def __init__(self, sequences: int) -> None:
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.ends = 0
        self.reasons: tuple[str, ...] = ()
        self.engine_s = 0.0
        self._sequences = sequences
        self._prefills = 0
        self._charged_tokens = self._ended_tokens = 0
        self._ended_prefills = self._ended_prompt = self._ended_cached = 0
        self._rank: Rank | None = None
        self._steps = 0
        self._token_s = 0.0
        self._ran_steps = 0
        self._ran_token_s = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether the engine told that all of its answers have ended."""
        return self.ends >= self._sequences

    def start(self, rank: Rank, prompt_tokens: int, cached_tokens: int) -> None:
        """Charge for a prompt that is complete, and for an answer from here on.

        Args:
            rank: Computed it.
            prompt_tokens: Of the prompt.
            cached_tokens: Of these, found in the prefix cache.
        """
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self._prefills += 1
        self._charge_prefill(rank, prompt_tokens - cached_tokens)
        if self._rank is None:
            self._rank, self._steps, self._token_s = rank, rank.steps, rank.token_s

    def end(self, rank: Rank, end: End) -> None:
        """Take what the engine tells of one answer that has ended.

        Its prefills may have computed more than the prompt, if it was preempted, or only a part.
        """
        self.ends += 1
        if end.reason not in self.reasons:
            self.reasons = (*self.reasons, end.reason)
        self.output_tokens += end.output_tokens
        self._ended_prompt += end.prompt_tokens
        self._ended_cached += end.cached_tokens
        self._ended_tokens += end.prefill_tokens
        self._ended_prefills += end.prefills
        self._charge_prefill(rank, self._ended_tokens - self._charged_tokens)
        if self.has_ended:
            self.prompt_tokens, self.cached_tokens = self._ended_prompt, self._ended_cached
            self._prefills = self._ended_prefills
            self.stop()

    def stop(self) -> None:
        """Note that the answer has ended; `charge` tells how long it was."""
        rank, self._rank = self._rank, None
        if rank is not None:
            self._ran_steps = rank.steps - self._steps
            self._ran_token_s = rank.token_s - self._token_s

    def charge(self, output_tokens: int | None) -> None:
        """Charge for the answer, which has ended.

        Args:
            output_tokens: Of all of its sequences; None is one of each sequence in each step.
        """
        self.stop()
        steps, self._ran_steps = self._ran_steps, 0
        if steps <= 0:
            return
        tokens = steps * self._sequences
        if output_tokens is not None:  # each prefill brought one, too
            tokens = max(0, min(tokens, output_tokens - self._prefills))
        self.engine_s += self._ran_token_s * tokens / steps

    def _charge_prefill(self, rank: Rank, tokens: int) -> None:
        tokens = min(tokens, rank.prompt_tokens)
        if tokens > 0:
            seconds = rank.prompt_s * tokens / rank.prompt_tokens
            rank.prompt_s -= seconds
            rank.prompt_tokens -= tokens
            self._charged_tokens += tokens
            self.engine_s += seconds


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
        rank = self.rank(number)
        tokens = prompt_tokens + decodes
        rank.steps += 1
        if tokens > 0:
            token_s = duration_s / len(self._ranks) / tokens
            rank.token_s += token_s
            rank.prompt_s += token_s * prompt_tokens
            rank.prompt_tokens += prompt_tokens
        return rank

    def rank(self, number: int) -> Rank:
        """Return the data-parallel rank of that number."""
        rank = self._ranks.get(number)
        if rank is None:
            rank = self._ranks[number] = Rank()
        return rank

"""How well a replica would serve a request, in milliseconds of that replica's own speed.

Five parts: the wait up to the first token; a charge for prefix tokens that another replica holds
and this one has to compute again; a charge for the decodes beside which the answer would run; one
for scarce slots or KV room; the hop. Every time comes from what the replica measured of itself, so
replicas of different speeds need no configuration.

The charge for decodes has two parts. One goes by the square of the step time over the class's own
TPOT target, so interactive requests spread and batch fills: it keeps a class with a tight target
away from busy batches, and is next to nothing for one with a loose target. The other counts
sequences, in light steps of that replica.
"""

from __future__ import annotations

from typing import Final

from weir_core.route.types import Ask, Candidate, LoadVector

_RECOMPUTE_FACTOR: Final = 8.0
"""Charge for a prefix token that is computed again, in prompt tokens, where the replica is busy:
the work delays others, and a second copy drives out what others would have found."""
_IDLE_SHARE: Final = 0.5
"""Part of that charge where it is idle: the copy drives out just as much."""
_PATIENT_TPOT_S: Final = 0.5
"""A class without a TPOT target is judged as if it had this one."""
_DECODE_FACTOR: Final = 0.1
"""Part of an answer's decode time that counts where decodes are just as fast as they must be."""
_COUNT_FACTOR: Final = 0.3
"""Light steps charged for each sequence at the replica. Waits are predictions, and equal replicas
predict differently; counts are exact, and keep equal replicas equally full."""
_TPOT_SHARE: Final = 0.28
"""Most of a TPOT target that a light step may take. The gate of a slower replica lets nothing
of a lower rank in while such a request is there, so it would have the replica for itself."""
_LOWEST_TPOT_SHARE: Final = 0.8
"""The same for a class below which nothing comes: then the replica may be its own."""


class View:
    """What a router knows of one replica when it judges a request.

    Attributes:
        load: Its load vector.
        hop_s: The way there and back.
        age_s: Age of the vector.
        wait_s: Predicted time in the request pool for the class of the request.
        ahead_tokens: Prompt tokens that the engine computes before the request's.
        waiting: Requests in the request pool that are served before it.
        waiting_tokens: KV room that they take.
        sent_tokens: Prompt tokens that were sent there, are not in the vector and go first.
        sent_sequences: Slots that what was sent takes.
        sent_kv_tokens: KV room that it takes.
    """

    def __init__(
        self, load: LoadVector, class_name: str, hop_s: float = 0.0, age_s: float = 0.0
    ) -> None:
        self.load = load
        self.hop_s = hop_s
        self.age_s = age_s
        self.wait_s = 0.0
        self.ahead_tokens = self.waiting = self.waiting_tokens = 0
        for each in load.classes:
            if each.name == class_name:
                self.wait_s, self.ahead_tokens = each.wait_s, each.ahead_tokens
                self.waiting, self.waiting_tokens = each.waiting, each.waiting_tokens
                break
        self.sent_tokens = 0
        self.sent_sequences = 0
        self.sent_kv_tokens = 0

    @property
    def sequences(self) -> int:
        """Return the sequences that run before it or beside it."""
        return self.load.sequences + self.waiting + self.sent_sequences

    @property
    def sequences_left(self) -> int:
        """Return the slots that are left to it; negative where there are too few."""
        return self.load.sequences_left - self.waiting - self.sent_sequences

    @property
    def kv_tokens_left(self) -> int:
        """Return the KV room that is left to it; negative where there is too little."""
        return self.load.kv_tokens_left - self.waiting_tokens - self.sent_kv_tokens


def judge(ask: Ask, replica: str, view: View, cached: int, missed: int) -> Candidate:
    """Return how well `replica` would serve `ask`.

    Args:
        ask: The request.
        replica: Name of the replica.
        view: What is known of it.
        cached: Prompt tokens that it has cached.
        missed: Prompt tokens that another replica has cached beyond these.
    """
    load = view.load
    ahead = view.ahead_tokens + view.sent_tokens
    tokens = ahead + max(1, ask.prompt_tokens - cached)
    steps = tokens // max(1, load.step_tokens) + 1
    # What has shown nothing for so long is expected to take as long again.
    wait_s = load.overdue_s + view.wait_s + steps * load.step_s + tokens * load.token_s
    answer_s = ask.output_tokens / max(1, ask.sequences) * load.step_s
    recompute_s = 0.0
    if missed > 0:
        busy = min(1.0, max(_IDLE_SHARE, ahead / max(1, load.step_tokens)))
        recompute_s = _RECOMPUTE_FACTOR * busy * missed * load.token_s
    decode_s = _DECODE_FACTOR * answer_s * crowding(ask, load.step_s)
    decode_s += _COUNT_FACTOR * load.light_step_s * view.sequences
    room_s = scarcity(ask, view) * answer_s
    return Candidate(
        replica=replica,
        score_ms=1e3 * (wait_s + recompute_s + decode_s + room_s + view.hop_s),
        wait_ms=1e3 * wait_s,
        recompute_ms=1e3 * recompute_s,
        decode_ms=1e3 * decode_s,
        room_ms=1e3 * room_s,
        hop_ms=1e3 * view.hop_s,
        feasible=(ask.left_s is None or wait_s + view.hop_s <= ask.left_s) and suits(ask, load),
        age_ms=1e3 * view.age_s,
        cached_tokens=cached,
    )


def is_better(one: Candidate, other: Candidate) -> bool:
    """Return whether `one` is to be preferred; feasible first, then the lower score."""
    if one.feasible != other.feasible:
        return one.feasible
    return one.score_ms < other.score_ms


def suits(ask: Ask, load: LoadVector) -> bool:
    """Return whether the replica is fast enough for the request's class beside other classes."""
    if ask.tpot_target_s is None:
        return True
    share = _LOWEST_TPOT_SHARE if ask.is_lowest else _TPOT_SHARE
    return load.light_step_s <= share * ask.tpot_target_s


def crowding(ask: Ask, step_s: float) -> float:
    """Return near 0 where decodes are far faster than the request needs, 1 where just so fast."""
    target_s = _PATIENT_TPOT_S if ask.tpot_target_s is None else ask.tpot_target_s
    ratio = step_s / target_s
    return ratio * ratio


def scarcity(ask: Ask, view: View) -> float:
    """Return 0 where room abounds, and 1 where the request has to wait for an answer to end."""
    slots = max(1, ask.sequences)
    room = ask.prompt_tokens + ask.output_tokens
    slot_share = slots / max(slots, view.sequences_left)
    room_share = room / max(room, view.kv_tokens_left)
    share = max(slot_share, room_share)
    return share * share

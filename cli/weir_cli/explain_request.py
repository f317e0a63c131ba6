"""Where a request is, or how it ended, of what the sidecars of its service say. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from weir_cli.explain_facts import Explanation, Finding, Health, Unseen
from weir_core.sched.gate import Block
from weir_core.wire.request_state import EndedState, RequestReport, RequestState, Runs, Waits

_LACKS: Final = {
    Block.ENGINE.value: "the engine is away, and the request waits for its return",
    Block.PREFILL.value: "the engine has enough prompts of this class and above to compute",
    Block.SLOT.value: "the engine has no free slot for it",
    Block.KV.value: "the engine's KV cache has no room for it",
    Block.DECODES.value: "more decodes would make steps too long for a higher class",
}


def explain_request(
    request_id: str,
    name: str,
    where: str,
    reports: Sequence[RequestReport],
    unseen: tuple[Unseen, ...],
    logs: tuple[str, ...],
) -> Explanation:
    """Return what there is to say of the requests of one id.

    Args:
        request_id: The `x-request-id` of its answer.
        name: Of the service.
        where: The cluster's namespace, or the `weir up`.
        reports: What the sidecars said.
        unseen: Which did not.
        logs: Commands that look for a request that ended earlier.
    """
    found = [(report.pod, each) for report in reports for each in report.requests]
    over = [(report.pod, each) for report in reports for each in report.ended]
    over.sort(key=lambda each: (each[1].was_forwarded, each[1].ago_s))
    history = tuple(_how(pod, each) for pod, each in over)
    if over and not found:
        pod, last = over[0]
        verdict = f"request {request_id} ended at {pod} {last.ago_s:.1f} s ago: {_words(last)}"
        history += tuple(line for at, each in over for line in _compared(at, each))
        return Explanation(name, where, Health.HEALTHY, verdict, remarks=history, unseen=unseen)
    if not found:
        what = (
            f"no request {request_id} is in flight in {name}, or among the last that ended: it "
            "ended earlier, or never came here"
        )
        advice = (
            "A sidecar remembers some dozens of requests that ended. Of earlier ones there is a "
            "line in its access log, which is written where WEIR_ACCESS_LOG is 1."
        )
        gone = Finding("NotInFlight", what, (), advice, logs, "watch.md#usage")
        return Explanation(name, where, Health.UNKNOWN, what, (gone,), unseen=unseen)
    found.sort(key=lambda each: _nearness(each[1]))
    pod, nearest = found[0]
    verdict = f"request {request_id} {_place(pod, nearest)}"
    lines = tuple(line for at, each in found for line in _lines(at, each))
    return Explanation(name, where, Health.HEALTHY, verdict, remarks=(*lines, *history))


def _compared(pod: str, request: RequestState | EndedState) -> Iterator[str]:
    """Yield which replicas were candidates, the best first, and why one was chosen."""
    if not request.candidates:
        return
    ordered = sorted(request.candidates, key=lambda each: each.score_ms)
    scores = ", ".join(
        f"{each.replica} {each.score_ms:.0f} ms{'' if each.feasible else ' (late)'}"
        for each in ordered
    )
    chosen = request.forwarded_to or pod
    yield f"{pod}: chose {chosen} ({request.routed}) by the scores {scores}"


def _words(ended: EndedState) -> str:
    return "served" if ended.outcome == "ok" else ended.outcome.replace("_", " ")


def _how(pod: str, ended: EndedState) -> str:
    """Return how a request ended, in one line."""
    sent = f"forwarded to {ended.forwarded_to}, " if ended.forwarded_to else ""
    came = "another sidecar forwarded it here, " if ended.was_forwarded else ""
    first = "no first token" if ended.ttft_s is None else f"first token after {ended.ttft_s:.1f} s"
    return (
        f"{pod}: {came}{sent}class {ended.class_name}, tenant {ended.tenant or 'unknown'}, ended "
        f"{ended.ago_s:.1f} s ago after {ended.age_s:.1f} s, {first}: {_words(ended)}"
    )


def _nearness(request: RequestState) -> int:
    """Return how much a sidecar knows of a request: the one that executes it says the most."""
    if request.runs is not None:
        return 0
    return 1 if request.waits is not None else 2


def _place(pod: str, request: RequestState) -> str:
    if request.runs is not None:
        return f"is in the engine of {pod}: {_progress(request.runs)}"
    if request.waits is not None:
        waits = request.waits
        first = _in(waits.first_token_in_s) or "its first token cannot be predicted yet"
        return f"waits in {pod}, at place {waits.position}; {first}"
    if request.forwarded_to:
        return f"was forwarded by {pod} to {request.forwarded_to}"
    return f"is at {pod}, and neither waits nor is in the engine: it arrives, or only asks"


def _progress(runs: Runs) -> str:
    if runs.began:
        return f"it has begun; output tokens so far: {runs.output_tokens}"
    return _in(runs.first_token_in_s) or "its prompt is being computed"


def _in(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 0:
        return f"its first token is {-seconds:.1f} s later than predicted"
    return f"its first token is predicted in {seconds:.1f} s"


def _lines(pod: str, request: RequestState) -> Iterator[str]:
    yield (
        f"{pod}: class {request.class_name}, tenant {request.tenant or 'unknown'}, "
        f"here for {request.age_s:.1f} s"
    )
    if request.was_forwarded:
        yield f"{pod}: another sidecar forwarded it here"
    if request.forwarded_to:
        yield f"{pod}: forwarded it to {request.forwarded_to}"
    yield from _compared(pod, request)
    if request.tried:
        yield f"{pod}: it came back from {', '.join(request.tried)}"
    if request.requeues:
        yield f"{pod}: it lost its place and waited again; times: {request.requeues}"
    if request.waits is not None:
        yield from (f"{pod}: {line}" for line in _waiting(request.waits))
    if request.runs is not None:
        share = ", before a higher class by its minimum share" if request.runs.by_min_share else ""
        yield f"{pod}: it waited {request.runs.waited_s:.1f} s for its place{share}"


def _waiting(waits: Waits) -> Iterator[str]:
    ahead = ", ".join(f"{name} {number}" for name, number in waits.ahead.items())
    yield f"it has waited {waits.waited_s:.1f} s; ahead of it: {ahead or 'nothing'}"
    if waits.blocked_by:
        yield _LACKS.get(waits.blocked_by, f"the engine lacks {waits.blocked_by}")
    if waits.given_up_in_s is not None:
        yield f"it is refused when it still waits in {max(0.0, waits.given_up_in_s):.1f} s"

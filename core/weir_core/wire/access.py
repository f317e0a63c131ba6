"""The access log's line: what a sidecar says of a request that has ended. No prompts, no keys."""

from __future__ import annotations

from typing import Final

import msgspec

EVENT: Final = "access"
OTHER_MODELS: Final = "other"
"""Stands for the names of models that nothing serves: clients may send any."""


class AccessLine(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, rename={"class_name": "class"}
):
    """One request, in the sidecar that wrote the line.

    Attributes:
        time: When it ended, in UTC, as ISO 8601.
        event: Tells the line from others of the same log.
        request_id: What its client and the engine's log call it.
        service: Whose sidecar wrote the line.
        pool: Its pool.
        replica: Its pod.
        forwarded: Another sidecar sent the request here, and has a line of it, too.
        executed_by: The replica whose line has the tokens; empty where no engine was asked.
        tenant: Who is accounted for it; empty where it was refused before that was known.
        key: Name of the API key in the tenant's Secret; empty without one, or where forwarded.
        class_name: Its priority class.
        model: What it asked for, where that is served; else `OTHER_MODELS`. Empty for none.
        adapter: The same where it is a declared adapter.
        prompt_tokens: Of its prompts.
        cached_tokens: Of these, found in the prefix cache; None where there is no step log.
        output_tokens: Of its answers.
        exact: The tokens are the engine's own figures.
        queue_s: It waited so long for its place at the engine; None where it got none here.
        ttft_s: Arrival to the first token; None where none came.
        duration_s: Arrival to the end.
        engine_s: Its share of the steps' time; None where there is no step log.
        finish_reason: Why its answer ended inside the engine, as the step log tells: stop, length,
            abort, ...; several with commas, and empty where it does not tell.
        outcome: How it ended.
        status: What its client got; 0 is nothing.
    """

    time: str
    event: str = EVENT
    request_id: str = ""
    service: str = ""
    pool: str = ""
    replica: str = ""
    forwarded: bool = False
    executed_by: str = ""
    tenant: str = ""
    key: str = ""
    class_name: str = ""
    model: str = ""
    adapter: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    exact: bool = False
    queue_s: float | None = None
    ttft_s: float | None = None
    duration_s: float = 0.0
    engine_s: float | None = None
    finish_reason: str = ""
    outcome: str = ""
    status: int = 0

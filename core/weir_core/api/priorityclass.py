"""InferencePriorityClass: how important a request is, set by platform teams for the cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from weir_core.api.base import Duration, Integer, Model, Number, ObjectMeta, Switch


class InferencePriorityClassSpec(Model):
    """A class's importance and the promises made to it."""

    rank: Integer = Field(
        ge=-1000000,
        le=1000000,
        description="Importance; higher goes first. The only polarity inside Weir.",
    )
    weight: Annotated[Number, Field(ge=0.001, le=1000)] = Field(
        default=1.0, description="Share among classes of equal rank. Default: 1."
    )
    min_share: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Fraction of the engine this class is never starved below, 0 to 1. Default: 0.",
    )
    preemptible: Switch = Field(
        default=False,
        description="Whether a higher class may take this one's place before its first token. "
        "Default: false.",
    )
    ttft_target_ms: Annotated[Integer, Field(ge=1)] | None = Field(
        default=None, description="Target for time to first token, in milliseconds. Default: none."
    )
    tpot_target_ms: Annotated[Integer, Field(ge=1)] | None = Field(
        default=None,
        description="Target for the mean time per output token, in milliseconds. Default: none.",
    )
    max_queue_wait: Duration = Field(
        default="60s", description="Longest wait before a request is refused. Default: 60s."
    )
    shed: Literal["never", "predictive"] = Field(
        default="predictive",
        description="predictive: refuse early what cannot be on time; never: let it wait behind "
        "what can. Default: predictive.",
    )


class InferencePriorityClass(Model):
    """How important a request is and what it is promised."""

    api_version: Literal["serving.weir.dev/v1alpha1"] = "serving.weir.dev/v1alpha1"
    kind: Literal["InferencePriorityClass"] = "InferencePriorityClass"
    metadata: ObjectMeta
    spec: InferencePriorityClassSpec

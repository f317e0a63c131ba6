"""The engine of an InferenceService: vLLM's image, arguments, environment and parallelism."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from weir_core.api.base import FreeForm, Model, keyed_by, rules
from weir_core.api.engine_flags import FORBIDDEN

ARGUMENT_RULES = rules(
    (
        "self.all(a, !(a.split('=')[0].replace('_', '-') in ["
        + ", ".join(f"'{flag}'" for flag in FORBIDDEN)
        + "]))",
        "an argument is reserved for Weir (such as --port, --uds, --served-model-name, "
        "--api-key or a parallel size): use the fields of the spec",
    ),
)


class EnvVar(Model):
    """An environment variable of the engine."""

    name: str = Field(
        description="Name of the variable.", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253
    )
    value: str | None = Field(
        default=None, description="Its value. Default: none.", max_length=32768
    )
    value_from: FreeForm | None = Field(
        default=None,
        description="Where its value comes from, as in a pod, for example secretKeyRef. "
        "Default: none.",
    )


class Scheduling(Model):
    """How the engine divides each step between prefill and decode, and between classes."""

    mode: Literal["latency", "throughput", "custom"] = Field(
        default="latency",
        description="latency: decodes first; throughput: full steps, prefills first; custom: "
        "shares per class. Default: latency.",
    )
    class_shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="With mode custom: class name to its share of each step, 0 to 1. "
        "Default: none.",
    )
    tpot_floor_ms: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Never plan steps shorter than this, in milliseconds. Default: none.",
    )


class Parallelism(Model):
    """How one replica spreads over accelerators."""

    tensor: int = Field(
        default=1, ge=1, le=64, description="Tensor parallel size, in accelerators. Default: 1."
    )
    pipeline: int = Field(
        default=1, ge=1, le=64, description="Pipeline parallel size, in stages. Default: 1."
    )
    data: int = Field(
        default=1, ge=1, le=64, description="Data parallel size, in engine cores. Default: 1."
    )

    @property
    def size(self) -> int:
        """Accelerators that one replica needs."""
        return self.tensor * self.pipeline * self.data


class EngineSpec(Model):
    """The vLLM process of each replica."""

    image: str | None = Field(
        default=None, description="Container image. Default: the operator's.", max_length=512
    )
    args: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(
        default=(),
        description="Further arguments for `vllm serve`, one per item. Flags that would open a "
        "TCP port or break the sidecar's contract are refused. Default: none.",
        max_length=128,
        json_schema_extra=ARGUMENT_RULES,
    )
    env: tuple[EnvVar, ...] = Field(
        default=(),
        description="Further environment of the engine, and of the download. Default: none.",
        max_length=64,
        json_schema_extra=keyed_by("name"),
    )
    scheduling: Scheduling = Field(
        default=Scheduling(), description="How steps are divided. Default: mode latency."
    )
    parallelism: Parallelism = Field(
        default=Parallelism(), description="How a replica spreads over accelerators. Default: 1."
    )

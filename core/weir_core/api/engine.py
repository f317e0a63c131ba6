"""The engine of an InferenceService: vLLM's image, arguments, environment and parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from weir_core.api.base import (
    NAMES_DIFFER,
    Contradiction,
    FreeForm,
    Integer,
    Model,
    Number,
    Rule,
    check,
    keyed_by,
    none_of,
    rules,
    text,
)
from weir_core.api.engine_environment import PLUGINS, variable_rules, wrong_variable
from weir_core.api.engine_flags import NOT_A_FLAG, argument_rules, wrong_arguments

TWO_VALUES = "has a value and a valueFrom; leave one of them out"
SHARES_MISSING = (
    "mode custom divides each step by classShares, and there are none; write them, like "
    "classShares: {interactive: 0.7, batch: 0.3}, or another mode"
)
SHARES_UNUSED = "only mode custom heeds classShares; write mode: custom, or leave them out"

VariableName = Annotated[
    str,
    text(
        r"^[A-Za-z_][A-Za-z0-9_]*$",
        "is not the name of a variable; write letters, digits and underscores, like HF_HUB_OFFLINE",
        253,
    ),
]


class EnvVar(Model):
    """An environment variable of the engine."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *variable_rules(), Rule("!(has(self.value) && has(self.valueFrom))", TWO_VALUES)
        )
    )

    name: VariableName = Field(description="Name of the variable.")
    value: str | None = Field(
        default=None, description="Its value. Default: none.", max_length=32768
    )
    value_from: FreeForm | None = Field(
        default=None,
        description="Where its value comes from, as in a pod, for example secretKeyRef. "
        "Default: none.",
    )

    @model_validator(mode="after")
    def _may_be_set(self) -> EnvVar:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        value = (self.value or "") if self.value_from is None else None
        wrong = wrong_variable(self.name, value)
        if wrong is not None:
            yield Contradiction(("value" if self.name == PLUGINS else "name",), wrong)
        if self.value is not None and self.value_from is not None:
            yield Contradiction((), TWO_VALUES)


class Scheduling(Model):
    """How the engine divides each step between prefill and decode, and between classes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.mode) || self.mode != 'custom' || "
                "(has(self.classShares) && self.classShares.size() > 0)",
                SHARES_MISSING,
            ),
            Rule(
                "!has(self.classShares) || self.classShares.size() == 0 || "
                "(has(self.mode) && self.mode == 'custom')",
                SHARES_UNUSED,
                field=".classShares",
            ),
        )
    )

    mode: Literal["latency", "throughput", "custom"] = Field(
        default="latency",
        description="latency: decodes first; throughput: full steps, prefills first; custom: "
        "shares per class. Default: latency.",
    )
    class_shares: dict[str, Annotated[Number, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="With mode custom: class name to its share of each step, 0 to 1. "
        "Default: none.",
        max_length=32,
    )
    tpot_floor_ms: Annotated[Integer, Field(ge=1)] | None = Field(
        default=None,
        description="Never plan steps shorter than this, in milliseconds. Default: none.",
    )

    @model_validator(mode="after")
    def _shares_belong_to_custom(self) -> Scheduling:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        if self.mode == "custom" and not self.class_shares:
            yield Contradiction((), SHARES_MISSING)
        if self.mode != "custom" and self.class_shares:
            yield Contradiction(("classShares",), SHARES_UNUSED)


class Parallelism(Model):
    """How one replica spreads over accelerators, and over nodes."""

    tensor: Integer = Field(
        default=1, ge=1, le=64, description="Tensor parallel size, in accelerators. Default: 1."
    )
    pipeline: Integer = Field(
        default=1, ge=1, le=64, description="Pipeline parallel size, in stages. Default: 1."
    )
    data: Integer = Field(
        default=1, ge=1, le=64, description="Data parallel size, in engine cores. Default: 1."
    )
    nodes: Integer = Field(
        default=1,
        ge=1,
        le=64,
        description="Nodes that one replica spreads over, each with a pod of accelerator.count: "
        "tensor x pipeline is that count times the nodes. More than 1 needs LeaderWorkerSet in the "
        "cluster. Default: 1.",
    )

    @property
    def size(self) -> int:
        """Accelerators that one replica needs."""
        return self.tensor * self.pipeline * self.data


def _wrong_arguments(args: Sequence[str]) -> Iterator[Contradiction]:
    for index, message in wrong_arguments(args):
        yield Contradiction((index,), message)


Argument = Annotated[str, Field(max_length=4096, json_schema_extra=rules(*argument_rules()))]


FIT_FOR_VLLM = check(_wrong_arguments)
"""Validator of a list of arguments."""
BEGINS_WITH_A_FLAG = rules(
    Rule("self.size() == 0 || self[0].startsWith('-')", f"the first item {NOT_A_FLAG}")
)


class EngineSpec(Model):
    """The vLLM process of each replica."""

    image: str | None = Field(
        default=None, description="Container image. Default: the operator's.", max_length=512
    )
    args: Annotated[tuple[Argument, ...], FIT_FOR_VLLM] = Field(
        default=(),
        description="Further arguments for `vllm serve`, one per item. Flags that would open a "
        "TCP port or break the sidecar's contract are refused. Default: none.",
        max_length=128,
        json_schema_extra=BEGINS_WITH_A_FLAG,
    )
    env: Annotated[tuple[EnvVar, ...], NAMES_DIFFER] = Field(
        default=(),
        description="Further environment of the engine, and of the download. Variables that would "
        "break the sidecar's contract are refused. Default: none.",
        max_length=64,
        json_schema_extra=keyed_by("name"),
    )
    scheduling: Scheduling = Field(
        default=Scheduling(), description="How steps are divided. Default: mode latency."
    )
    parallelism: Parallelism = Field(
        default=Parallelism(), description="How a replica spreads over accelerators. Default: 1."
    )

"""What of the engine is a pool's own: two kinds of hardware may need two builds of vLLM.

It is laid over `spec.engine`: a pool's image takes the place of the service's, its arguments come
after those of the service (vLLM heeds the last), its variables take the place of those of the same
name, and of its sizes those that are written.

The bounds are narrower than those of the service: the API server multiplies the cost of a rule by
the number of pools.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from weir_core.api.base import Model, keyed_by
from weir_core.api.engine import ARGUMENT_RULES, EngineSpec, EnvVar, Parallelism
from weir_core.api.engine_flags import forbidden_flag


class PoolEngine(Model):
    """The vLLM process of a pool's replicas, where it differs from the service's."""

    image: str | None = Field(
        default=None, description="Container image. Default: the service's.", max_length=512
    )
    args: tuple[Annotated[str, Field(max_length=1024)], ...] = Field(
        default=(),
        description="Arguments for `vllm serve` after those of the service, one per item; of one "
        "that is given twice vLLM heeds the last. Default: none.",
        max_length=32,
        json_schema_extra=ARGUMENT_RULES,
    )
    env: tuple[EnvVar, ...] = Field(
        default=(),
        description="Environment of the engine and of the download, beside the service's and in "
        "place of its variables of the same name. Default: none.",
        max_length=32,
        json_schema_extra=keyed_by("name"),
    )
    parallelism: Parallelism = Field(
        default=Parallelism(),
        description="How a replica of the pool spreads over accelerators. Default: as the service "
        "says, size by size.",
    )

    @model_validator(mode="after")
    def _leaves_the_contract_alone(self) -> PoolEngine:
        refused = forbidden_flag(self.args)
        if refused is not None:
            index, flag, why = refused
            raise ValueError(f"args[{index}]: {flag} is reserved for Weir: {why}")
        return self

    def over(self, service: EngineSpec) -> EngineSpec:
        """Return the engine of the pool's replicas."""
        own = self.parallelism
        sizes = {size: getattr(own, size) for size in own.model_fields_set}
        variables = {each.name: each for each in (*service.env, *self.env)}
        return service.model_copy(
            update={
                "image": self.image or service.image,
                "args": (*service.args, *self.args),
                "env": tuple(variables.values()),
                "parallelism": service.parallelism.model_copy(update=sizes),
            }
        )

"""What the operator tells an engine container, as one JSON document in its environment.

The operator knows what the user asked for; the engine knows the machine it woke up on (GPU or
CPU, which vLLM). So the configuration carries wishes, and `weir_engine.launch` turns them into
vLLM's arguments where they will run.
"""

from __future__ import annotations

from weir_core.api.base import Model
from weir_core.api.inferenceservice import Adapter, Parallelism, Scheduling, Source


class EngineConfig(Model):
    """One engine's configuration; `model_dump_json(by_alias=True)` is the wire form."""

    name: str
    aliases: tuple[str, ...] = ()
    source: Source
    adapters: tuple[Adapter, ...] = ()
    args: tuple[str, ...] = ()
    scheduling: Scheduling = Scheduling()
    parallelism: Parallelism = Parallelism()
    accelerators: int = 0
    """Accelerators the pod was given; 0 is an engine on the CPU."""
    traces_endpoint: str | None = None
    """OTLP endpoint for vLLM's own spans, or None for no tracing."""

"""What an engine is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping

import pydantic

from weir_core.api.labels import ENV_ENGINE_CONFIG, ENV_MODEL_DIR, ENV_RUN_DIR, MODEL_DIR, RUN_DIR
from weir_core.errors import InvalidSpec
from weir_core.wire.engine import EngineConfig
from weir_engine.launch import Paths


def read_config(environment: Mapping[str, str]) -> EngineConfig:
    """Return the engine's configuration.

    Raises:
        InvalidSpec: It is missing, or not what it should be.
    """
    text = environment.get(ENV_ENGINE_CONFIG)
    if not text:
        raise InvalidSpec(
            ENV_ENGINE_CONFIG,
            'is not set; it holds the configuration as JSON, for example {"name": "tiny", '
            '"source": {"uri": "tiny://"}}',
        )
    try:
        return EngineConfig.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (ENV_ENGINE_CONFIG, *first["loc"]))
        raise InvalidSpec(where, first["msg"]) from error


def read_paths(environment: Mapping[str, str]) -> Paths:
    """Return the directories the engine shares with its pod."""
    return Paths(
        run_dir=environment.get(ENV_RUN_DIR) or RUN_DIR,
        model_dir=environment.get(ENV_MODEL_DIR) or MODEL_DIR,
    )

"""`weir-engine fetch`: brings the weights into the model directory, once.

Runs as the pod's `model` container, before the engine. Sources that are volumes are there
already; the others are made or downloaded beside their final place and moved there whole, so
that an engine never sees half a model and a second start finds it done.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from weir_core.api.inferenceservice import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import local_path, locate
from weir_engine import settings


def fetch(environment: Mapping[str, str]) -> None:
    """Bring every source of the configuration into the model directory."""
    config, paths = settings.read_config(environment), settings.read_paths(environment)
    for source in config.sources:
        _fetch_one(source, Path(local_path(source, paths.model_dir)))


def _fetch_one(source: Source, directory: Path) -> None:
    location = locate(source)
    match location.scheme:
        case "tiny":
            from weir_engine.tiny.model import prepare

            made = prepare(location.place, directory)
            _say(f"{source.uri}: {'made' if made else 'found'} at {directory}")
        case "pvc" | "file" | "oci":
            _say(f"{source.uri}: mounted at {directory}, nothing to fetch")
        case _:
            raise ModelUnavailable(f"{source.uri}: not implemented")


def _say(message: str) -> None:
    sys.stderr.write(f"weir-engine: {message}\n")

"""`weir-engine serve`: runs vLLM.

This process prepares the run directory and then becomes `weir_engine.first_process` (exec), whose
only child is vLLM: signals, exit codes and memory limits of the container are vLLM's own.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weir_core.api.labels import ENV_RUN_DIR, FACTS_FILE, MODE_SOCKET
from weir_core.errors import InvalidSpec, MachineUnfit, ModelUnavailable
from weir_core.wire.engine import MOUNTED, EngineConfig, local_path, locate
from weir_engine import group, launch, machine, settings
from weir_engine.first_process import listens
from weir_engine.launch import Paths
from weir_engine.remote_code import CACHE, cached, code_repositories
from weir_engine.vllm_metadata import with_path, write_vllm_metadata

MAX_SOCKET_PATH_BYTES: Final = 107
"""Longest path of a Unix socket that Linux takes."""
_OF_AN_ARTIFACT: Final = (
    "write an image with the model's files at its root, because containerd mounts an OCI artifact "
    "as an empty directory"
)


def serve(environment: Mapping[str, str]) -> None:
    """Replace this process by the one that runs vLLM; returns only by raising."""
    config, paths = settings.read_config(environment), settings.read_paths(environment)
    here = machine.detect()
    member = group.join(environment) if config.parallelism.nodes > 1 else None
    arguments = launch.serve_arguments(config, here, paths, member)
    _find_weights(config, paths)
    _refuse_draft(config, paths)
    if not {"HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_HOME"} & environment.keys():
        _find_code(config, paths)
    _prepare(paths)
    engine_environment = with_path(
        # The engine core writes its facts there.
        _code_cache(paths)
        | launch.environment(config, here, environment, member)
        | {ENV_RUN_DIR: paths.run_dir},
        write_vllm_metadata(Path(paths.run_dir)),
    )
    sys.stderr.write(f"weir-engine: {shlex.join(['vllm', *arguments])}\n")
    sys.stderr.flush()
    command = [sys.executable, "-m", "weir_engine.first_process", *arguments]
    os.execve(sys.executable, command, engine_environment)


def _find_weights(config: EngineConfig, paths: Paths) -> None:
    """Say which source is missing now, rather than let vLLM take the path for a name on the hub.

    Raises:
        ModelUnavailable: A directory of weights is not there, or nothing is in its volume.
    """
    for source, path, _ in config.directories(paths.model_dir):
        scheme = locate(source).scheme
        if not Path(path).is_dir():
            mounted = scheme in MOUNTED
            remedy = "is its volume mounted?" if mounted else "run `weir-engine fetch` first"
            raise ModelUnavailable(f"{source.uri}: nothing at {path}; {remedy}")
        if scheme in MOUNTED and os.access(path, os.R_OK) and _is_empty(path):
            remedy = _OF_AN_ARTIFACT if scheme == "oci" else "is it the right one?"
            raise ModelUnavailable(f"{source.uri}: the volume at {path} is empty; {remedy}")


def _is_empty(path: str) -> bool:
    with os.scandir(path) as entries:  # one is enough: volumes over a network take long for all
        return next(entries, None) is None


def _refuse_draft(config: EngineConfig, paths: Paths) -> None:
    """Refuse a draft model in the place of the model: vLLM would look for that on the hub.

    Raises:
        InvalidSpec: The source is the draft of another model.
    """
    try:
        path = Path(local_path(config.source, paths.model_dir), "config.json")
        verifier = json.loads(path.read_text())["speculators_config"]["verifier"]["name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        # Like most models, it is no draft; a configuration that cannot be read is vLLM's to name.
        return
    raise InvalidSpec(
        "spec.model.source.uri",
        f"{config.source.uri} is a draft model of {verifier}; write hf://{verifier} here, and "
        f"--spec-model={config.source.uri} in spec.engine.args",
    )


def _find_code(config: EngineConfig, paths: Paths) -> None:
    """Say which code is missing, rather than let transformers look for it on the hub.

    Raises:
        ModelUnavailable: It is in a repository that was not fetched.
    """
    for source, path, _ in config.directories(paths.model_dir):
        for repository in code_repositories(Path(path), config.args):
            if not cached(Path(paths.model_dir), repository).is_dir():
                mounted = locate(source).scheme in MOUNTED
                remedy = (
                    f"copy its modules beside the model, and take `{repository}--` out of auto_map"
                    if mounted
                    else "run `weir-engine fetch` first"
                )
                raise ModelUnavailable(
                    f"{source.uri}: the model's code is in another repository, {repository}, "
                    f"which is not here; {remedy}"
                )


def _code_cache(paths: Paths) -> dict[str, str]:
    """Return where the hub's client finds the code of other repositories, if any was fetched."""
    cache = Path(paths.model_dir, CACHE)
    return {"HF_HUB_CACHE": str(cache)} if cache.is_dir() else {}


def _prepare(paths: Paths) -> None:
    """Make the run directory, without what an earlier engine left there.

    Raises:
        MachineUnfit: An engine runs there already, or the path is too long for a socket.
    """
    if len(os.fsencode(paths.socket)) > MAX_SOCKET_PATH_BYTES:
        raise MachineUnfit(
            f"{paths.socket} is too long for a Unix socket ({MAX_SOCKET_PATH_BYTES} bytes); "
            "choose a shorter WEIR_RUN_DIR"
        )
    os.makedirs(paths.run_dir, exist_ok=True)
    if listens(paths.socket):
        raise MachineUnfit(f"another engine answers at {paths.socket}; stop it first")
    for name in (paths.socket, FACTS_FILE, MODE_SOCKET):
        Path(paths.run_dir, name).unlink(missing_ok=True)

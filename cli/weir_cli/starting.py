"""`weir init`: a first spec for a model, with resources that fit it and the reason of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from weir_cli.hub_size import weights_on_hub
from weir_cli.sizing import (
    GIB,
    WEIGHTS_SHARE,
    Needs,
    Weights,
    by_hand,
    needs_of_cpu,
    needs_with_gpus,
    parse_size,
    shown,
)
from weir_core.api.inferenceservice import InferenceService
from weir_core.api.model import FETCHED, Source
from weir_core.api.reading import read
from weir_core.api.service_name import MAX_LENGTH
from weir_core.errors import InvalidSpec
from weir_core.wire.engine import Location, locate

TINY_BYTES: Final = GIB // 8
"""More than the weights of any tiny:// model."""


@dataclass(frozen=True)
class Wishes:
    """What the user said beside the model.

    Attributes:
        weights: Size of the weights, as it is written; empty asks the hub.
        gpu_memory: Memory of one GPU, as it is written.
        cpu: Use no GPU.
    """

    weights: str = ""
    gpu_memory: str = "80GiB"
    cpu: bool = False


def spec_for(model: str, wishes: Wishes, environment: Mapping[str, str]) -> str:
    """Return the YAML of an InferenceService for a model, with comments.

    Args:
        model: ORG/MODEL of the hub, or a source's uri.
        wishes: What else the user said.
        environment: Where the hub is, and the token for it.

    Raises:
        InvalidSpec: What the user wrote cannot be.
        ModelUnavailable: The hub does not tell the size.
    """
    uri = model if "://" in model else f"hf://{model}"
    source = read(Source, {"uri": uri}, "MODEL")
    location = locate(source)
    weights = _weights(uri, location, wishes, environment)
    fetched = location.scheme in FETCHED
    gpu_bytes = parse_size("--gpu-memory", wishes.gpu_memory)
    on_cpu = wishes.cpu or location.scheme == "tiny"  # it is for machines without a GPU
    if on_cpu:
        needs = needs_of_cpu(weights, fetched=fetched)
    else:
        needs = needs_with_gpus(weights, gpu_bytes, fetched=fetched)
    text = "\n".join(_lines(uri, location, weights, needs, gpu_bytes)) + "\n"
    read(InferenceService, yaml.safe_load(text))  # nothing is printed that Weir would refuse
    return text


def write(text: str, path: Path, *, force: bool) -> None:
    """Write a spec to a file.

    Raises:
        InvalidSpec: The file is there, and is not to be replaced.
    """
    try:
        with path.open("w" if force else "x") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidSpec("--output", f"{path} exists; --force replaces it") from None


def _weights(
    uri: str, location: Location, wishes: Wishes, environment: Mapping[str, str]
) -> Weights:
    if wishes.weights:
        return by_hand(parse_size("--weights", wishes.weights))
    if location.scheme == "tiny":
        return by_hand(TINY_BYTES)
    if location.scheme == "hf":
        return weights_on_hub(location, environment)
    raise InvalidSpec("--weights", f"the size of {uri} is not known here; write it, like 16GiB")


def _lines(
    uri: str, location: Location, weights: Weights, needs: Needs, gpu_bytes: int
) -> list[str]:
    name = _name(location)
    return [
        "# A first spec, by `weir init`: `weir check FILE` checks it after an edit, `weir up FILE`",
        "# serves it on this machine, and `kubectl apply -f FILE` on a cluster.",
        "apiVersion: serving.weir.dev/v1alpha1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {_scalar(name)}",
        "spec:",
        "  model:",
        f'    name: {_scalar(name)} # what clients send as "model"',
        "    source:",
        f"      uri: {_scalar(uri)}",
        *(_SECRET if weights.restricted else ()),
        "  replicas: 1",
        *_engine(needs),
        "  pools:",
        *_pool(location, weights, needs, gpu_bytes),
        "  admission:",
        "    # Serves requests without an API key. Leave it out once there are tenants.",
        "    anonymousClass: standard",
    ]


_SECRET: Final = (
    "      # The hub gives it to accounts with access only. The Secret is made with:",
    "      #   kubectl create secret generic hf-token --from-literal=HF_TOKEN=...",
    "      # and under `weir up` it stands in the file, as kind: Secret.",
    "      secretRef:",
    "        name: hf-token",
)


def _engine(needs: Needs) -> list[str]:
    if needs.gpus < 2:
        return []
    return [
        "  engine:",
        "    parallelism:",
        "      # The GPUs of a pod hold the weights together. The number has to divide the model's",
        "      # attention heads; vLLM says so at the start where it does not.",
        f"      tensor: {needs.gpus}",
    ]


def _pool(location: Location, weights: Weights, needs: Needs, gpu_bytes: int) -> Sequence[str]:
    if location.scheme == "tiny":
        return _TINY_POOL  # what a pool asks for by default is enough for it
    return _gpu_pool(weights, needs, gpu_bytes) if needs.gpus else _cpu_pool(needs)


def _gpu_pool(weights: Weights, needs: Needs, gpu_bytes: int) -> list[str]:
    return [
        "    - name: gpu",
        "      accelerator:",
        f"        # Of {shown(gpu_bytes)} each. {shown(weights.size)} of weights take at most",
        f"        # {WEIGHTS_SHARE:.0%} of their memory; KV cache and activations have the rest.",
        f"        count: {needs.gpus}",
        "      resources:",
        "        requests:",
        f'          cpu: "{needs.cpus}" # each GPU has a process that keeps one processor busy',
        "          # For each GPU a process of vLLM, and the file of weights that it reads.",
        f"          memory: {needs.memory_gib}Gi",
        *_disk(needs),
    ]


def _cpu_pool(needs: Needs) -> list[str]:
    return [
        *_TINY_POOL,
        "      resources:",
        "        requests:",
        f'          cpu: "{needs.cpus}" # more compute tokens faster',
        *_disk(needs),
        "        limits:",
        "          # The weights, vLLM, and a quarter of it for the KV cache.",
        f"          memory: {needs.memory_gib}Gi",
    ]


_TINY_POOL: Final = (
    "    - name: cpu",
    "      accelerator:",
    "        count: 0 # the engine runs on the CPU",
)


def _disk(needs: Needs) -> list[str]:
    return [
        "          # On the node's disk: weights that are downloaded, and what vLLM compiles.",
        f"          ephemeral-storage: {needs.disk_gib}Gi",
    ]


def _name(location: Location) -> str:
    """Return a name for the service, and for clients: the model's last word."""
    words = f"{location.place}/{'' if location.scheme == 'hf' else location.path}"
    last = words.strip("/").rpartition("/")[2] or location.scheme
    plain = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    named = plain if re.match("[a-z]", plain) else f"m-{plain}"
    return named[:MAX_LENGTH].strip("-")


def _scalar(text: str) -> str:
    """Return text as YAML reads it as text."""
    try:
        return text if yaml.safe_load(text) == text and " #" not in text else json.dumps(text)
    except yaml.YAMLError:
        return json.dumps(text)

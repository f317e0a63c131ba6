"""What the operator tells an engine container, as one JSON document in its environment.

The operator knows what the user asked for; the engine knows the machine it woke up on (GPU or
CPU, which vLLM). So the configuration carries wishes, and `weir_engine.launch` turns them into
vLLM's arguments where they will run.

Where weights end up is said here too, once: the operator mounts what is a volume already
(`mount_of`), the engine downloads or generates the rest, and both find it at `local_path`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal, NamedTuple

from pydantic import ConfigDict

from weir_core.api.base import Model
from weir_core.api.engine import Parallelism
from weir_core.api.labels import MODEL_DIR
from weir_core.api.model import Adapter, Source
from weir_core.errors import InvalidSpec
from weir_core.wire.named_models import Named, named_models

MOUNTED: Final = ("pvc", "file", "oci")
"""Schemes whose weights are a volume of the pod; the others are fetched into the model dir."""


class EngineConfig(Model):
    """One engine's configuration; `model_dump_json(by_alias=True)` is the wire form.

    Fields this engine does not know are ignored: a pod keeps the template an older operator made.
    """

    model_config = ConfigDict(extra="ignore")

    name: str
    aliases: tuple[str, ...] = ()
    """Names that the engine has from its start; the sidecar tells it others while it runs."""
    source: Source
    adapters: tuple[Adapter, ...] = ()
    """Adapters that the engine has from its start, as templates of earlier operators name them."""
    adapter_slots: int = 0
    """Adapters that can be loaded while it runs."""
    adapter_rank: int = 16
    """Highest rank of these."""
    args: tuple[str, ...] = ()
    parallelism: Parallelism = Parallelism()
    accelerators: int = 0
    """Accelerators the pod was given; 0 is an engine on the CPU."""
    traces_endpoint: str | None = None
    """OTLP endpoint for vLLM's own spans, or None for no tracing."""
    compiled: str = ""
    """Folder of the model directory for what the engine compiles, to be made by the fetch."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source this engine reads: the model's, the adapters', those of its arguments."""
        adapters = (adapter.source for adapter in self.adapters)
        return (self.source, *adapters, *(named.source for named in self.named))

    def directories(self, model_dir: str = MODEL_DIR) -> tuple[Directory, ...]:
        """Return where each of the sources is found, in their order."""
        own = (self.source, *(adapter.source for adapter in self.adapters))
        return (
            *(Directory(source, local_path(source, model_dir), True) for source in own),
            *(Directory(one.source, named_path(one, model_dir), one.weights) for one in self.named),
        )

    @property
    def named(self) -> tuple[Named, ...]:
        """The models that the engine's arguments name beside the served one."""
        return named_models(self.args)


class Directory(NamedTuple):
    """Where an engine finds what a source holds."""

    source: Source
    path: str
    weights: bool
    """Whether weights are read there, or only a tokenizer or a configuration."""


class ModelMount(NamedTuple):
    """A volume with weights, to be mounted read-only and whole at `mount_path`.

    Two sources on one claim give equal mounts: mount each once.
    """

    kind: Literal["pvc", "file", "oci"]
    volume: str
    """The claim's name, the directory on the node, or the image's reference."""
    name: str
    """Name for the pod's volume, a DNS label; also the directory's name below the model dir."""
    sub_path: str
    """Where the weights are below `mount_path`, relative; empty when they are its root."""

    @property
    def mount_path(self) -> str:
        """Where the container sees the volume."""
        return f"{MODEL_DIR}/{self.name}"


class Location(NamedTuple):
    """A model uri, taken apart."""

    scheme: str
    place: str
    """ORG/MODEL, the bucket, the claim, the image, the absolute directory, or the tiny size."""
    path: str
    """What follows the place: a path in the repository, bucket or claim, without outer slashes."""
    revision: str | None
    """The revision after `@` of an hf:// uri."""


def locate(source: Source) -> Location:
    """Take `source.uri` apart.

    Raises:
        InvalidSpec: The uri names nothing that can exist.
    """
    scheme, _, rest = source.uri.partition("://")
    if ".." in rest.split("/"):
        raise InvalidSpec("source.uri", f"{source.uri} leaves its place with `..`; write it out")
    match scheme:
        case "file":
            if not rest.startswith("/"):
                raise InvalidSpec("source.uri", f"{source.uri} is not absolute; write file:///PATH")
            return Location(scheme, "/" + rest.strip("/"), "", None)
        case "hf":
            return _locate_on_hub(source.uri, rest)
        case "s3" | "gs" | "az" | "pvc":
            place, _, path = rest.partition("/")
            if not place:
                raise InvalidSpec("source.uri", f"{source.uri} names no bucket or claim")
            return Location(scheme, place, path.strip("/"), None)
        case _:
            return Location(scheme, rest, "", None)


def mount_of(source: Source) -> ModelMount | None:
    """Return the volume `source` is read from, or None when it is fetched instead."""
    location = locate(source)
    if location.scheme not in MOUNTED:
        return None
    kind: Literal["pvc", "file", "oci"] = location.scheme  # type: ignore[assignment]
    name = _slug(location.scheme, location.place)
    return ModelMount(kind, location.place, name, location.path)


def local_path(source: Source, model_dir: str = MODEL_DIR) -> str:
    """Return the directory that holds the weights of `source`, for an engine of `model_dir`."""
    location, mount = locate(source), mount_of(source)
    if mount is not None:
        return "/".join(part for part in (model_dir, mount.name, mount.sub_path) if part)
    if location.scheme == "tiny":
        return f"{model_dir}/tiny-{location.place}" if location.place else f"{model_dir}/tiny"
    return f"{model_dir}/{_slug(location.scheme, source.uri.partition('://')[2])}"


def named_path(named: Named, model_dir: str = MODEL_DIR) -> str:
    """Return the directory of a model that the engine's arguments name."""
    path = local_path(named.source, model_dir)
    # The same repository may be served elsewhere, with its weights, from the same directory.
    return path if named.weights else f"{path}-texts"


def _locate_on_hub(uri: str, rest: str) -> Location:
    place, _, revision = rest.partition("@")
    found = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)((?:/[\w. -]+)*)/?", place)
    if found is None:
        raise InvalidSpec("source.uri", f"{uri} is not hf://ORG/MODEL[/FOLDER][@REVISION]")
    return Location("hf", found[1], found[2].strip("/"), revision or None)


def _slug(scheme: str, text: str) -> str:
    """Return a readable DNS label for `text` that no other text of the scheme gets."""
    digest = hashlib.sha256(f"{scheme}://{text}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-40:].strip("-")
    return "-".join(part for part in (scheme, readable, digest) if part)

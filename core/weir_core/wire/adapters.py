"""What passes between the parts of a pod of the names that its engine serves.

The container that fetches adapters tells the sidecar what it has, in a file of the run directory.
The sidecar reads it, tells the engine its aliases, and has it load and unload adapters.
"""

from __future__ import annotations

import msgspec


class FetchedAdapter(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one source.

    Attributes:
        path: The directory that holds it; empty while there is none.
        error: Why there is none, or empty while it is fetched.
    """

    path: str = ""
    error: str = ""


class Fetched(msgspec.Struct, frozen=True):
    """Every source of an adapter, by its uri."""

    sources: dict[str, FetchedAdapter] = {}

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.encode(self, order="deterministic")

    @classmethod
    def decode(cls, data: bytes) -> Fetched:
        """Read the file.

        Raises:
            ValueError: It is not one.
        """
        return msgspec.json.decode(data, type=cls)


class Aliases(msgspec.Struct, frozen=True):
    """The further names of an engine's model, in place of those that it had."""

    aliases: tuple[str, ...] = ()


class ModelCard(msgspec.Struct, frozen=True):
    """One name that an engine serves, as its /v1/models lists it.

    Attributes:
        id: The name.
        root: The directory with the weights.
        parent: The model that an adapter is of; None of the model itself.
    """

    id: str
    root: str | None = None
    parent: str | None = None


class ModelList(msgspec.Struct, frozen=True):
    """An engine's answer to /v1/models."""

    data: tuple[ModelCard, ...]

    @classmethod
    def decode(cls, data: bytes) -> ModelList:
        """Read the answer.

        Raises:
            ValueError: It is not one.
        """
        return msgspec.json.decode(data, type=cls)


class LoadAdapter(msgspec.Struct, frozen=True):
    """What vLLM's /v1/load_lora_adapter takes."""

    lora_name: str
    lora_path: str


class UnloadAdapter(msgspec.Struct, frozen=True):
    """What vLLM's /v1/unload_lora_adapter takes."""

    lora_name: str

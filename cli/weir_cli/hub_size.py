"""How large a model of the Hugging Face hub is, by the hub's own client and without a download.

The environment is the client's, as in a pod: the token under any of its names (HF_TOKEN,
HF_TOKEN_PATH, the token file), HF_ENDPOINT for a mirror.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

from weir_cli.sizing import Weights
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import Location

TIMEOUT_S: Final = 30.0
BY_HAND: Final = "or give the size of the weights by hand: --weights 16GiB"

_FORMATS: Final = ("*-of-*.safetensors", "*.safetensors", "*.bin", "*.pt", "*.gguf")
"""Of several the first is loaded; the first of these is a model in parts."""
_OF_TRAINING: Final = ("training_args*", "optimizer*", "scheduler*", "rng_state*")
_OF_MISTRAL: Final = "consolidated*"
"""The same weights again, or the only ones."""


def weights_on_hub(location: Location, environment: Mapping[str, str]) -> Weights:
    """Return the size of a repository's weights.

    Raises:
        ModelUnavailable: The hub does not say; the message names what would help.
    """
    place = f"hf://{location.place}"
    try:
        import httpx2
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ModelUnavailable(
            f"{place}: the hub's client is not installed; pip install huggingface_hub, {BY_HAND}"
        ) from error
    try:
        model = HfApi(endpoint=environment.get("HF_ENDPOINT") or None).model_info(
            location.place, revision=location.revision, files_metadata=True, timeout=TIMEOUT_S
        )
    except (OSError, ValueError, httpx2.HTTPError) as error:  # ValueError: no name of a repository
        raise ModelUnavailable(f"{place}: {_explained(error)}, {BY_HAND}") from error
    sizes = {one.rfilename: one.size or 0 for one in model.siblings or ()}
    chosen = weight_files(sizes, location.path)
    if not sum(chosen):
        where = f"{place}/{location.path}".rstrip("/")
        raise ModelUnavailable(f"{where}: no weights are there; check the name, {BY_HAND}")
    return Weights(sum(chosen), max(chosen), bool(model.gated or model.private))


def weight_files(sizes: Mapping[str, int], folder: str) -> list[int]:
    """Return the sizes of the files of one folder that hold its weights, in one format."""
    start = f"{folder}/" if folder else ""
    names = [name.removeprefix(start) for name in sizes if name.startswith(start)]
    files = [name for name in names if "/" not in name]
    of_model = [n for n in files if not any(fnmatchcase(n, each) for each in _OF_TRAINING)]
    usual = [name for name in of_model if not fnmatchcase(name, _OF_MISTRAL)]
    for those in (usual, of_model):
        for pattern in _FORMATS:
            found = [sizes[start + name] for name in those if fnmatchcase(name, pattern)]
            if found:
                return found
    return []


def _explained(error: Exception) -> str:
    """Return what an error of the client means; its own words may quote a signed address."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    meanings: tuple[tuple[type[Exception], str], ...] = (
        (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set, so the hub is not asked; take it out"),
        (GatedRepoError, "its owner asks for consent; accept its terms on the hub, set HF_TOKEN"),
        (RepositoryNotFoundError, "no such model, or it is private; check the name, set HF_TOKEN"),
        (RevisionNotFoundError, "no such revision; check what follows @"),
        (HFValidationError, "is no name of a model on the hub; check it"),
    )
    known = next((meaning for kind, meaning in meanings if isinstance(error, kind)), None)
    if known is not None:
        return known
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}; try again later"
    return f"the hub cannot be reached ({type(error).__name__}); set HF_ENDPOINT for a mirror"

"""hf:// sources: a model of the Hugging Face hub, by the hub's own client.

The environment is the client's: HF_TOKEN (from the source's secretRef), HF_ENDPOINT for a mirror.
The revision is resolved once, so that all files are of one commit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import Location
from weir_engine.transfer import Interrupted, check_room, say

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

NEEDED: Final = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py")
"""What vLLM reads beside weights: configuration, tokenizer, chat template, code of the model."""

WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt")
"""Formats of weights, best first; only the best that a repository has is fetched."""

PARALLEL_FILES: Final = 8


def download(location: Location, directory: Path, environment: Mapping[str, str]) -> None:
    """Download the repository's files that an engine needs into `directory`.

    Raises:
        Interrupted: Trying again may help.
        ModelUnavailable: It cannot, and the message says what would.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        _download(location, directory, environment)
    except HfHubHTTPError as error:
        raise _explained(location, error) from error
    except (LocalEntryNotFoundError, httpx2.TransportError, ConnectionError, TimeoutError) as error:
        raise Interrupted(
            f"the hub cannot be reached ({error}); set HF_ENDPOINT if you use a mirror"
        ) from error
    # The client's notes for resuming; the engine has no use for them.
    shutil.rmtree(directory / ".cache", ignore_errors=True)


def wanted(names: Iterable[str]) -> list[str]:
    """Return the files an engine needs, of all those in a repository's root."""
    root = [name for name in names if "/" not in name]
    for weights in WEIGHTS:
        if any(fnmatch(name, weights) for name in root):
            patterns = (*NEEDED, weights)
            return [name for name in root if any(fnmatch(name, one) for one in patterns)]
    return []


def _download(location: Location, directory: Path, environment: Mapping[str, str]) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    endpoint = environment.get("HF_ENDPOINT") or None
    token: str | bool = environment.get("HF_TOKEN") or False
    model = HfApi(endpoint=endpoint, token=token).model_info(
        location.place, revision=location.revision, files_metadata=True, timeout=30
    )
    files = _files(location, model)
    check_room(directory, sum(files.values()))

    def one(name: str) -> None:
        hf_hub_download(
            location.place, name, revision=model.sha, local_dir=directory,
            endpoint=endpoint, token=token,
        )  # fmt: skip
        say(f"hf://{location.place}: {name} ({files[name] / 2**20:.1f} MiB)")

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        for _ in pool.map(one, files):
            pass


def _files(location: Location, model: ModelInfo) -> dict[str, int]:
    """Return the files to download with their sizes in bytes."""
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in model.siblings or ()}
    names = wanted(sizes)
    if not names:
        raise ModelUnavailable(
            f"hf://{location.place}: the repository holds no weights vLLM can read "
            f"({', '.join(WEIGHTS)})"
        )
    return {name: sizes[name] for name in names}


def _explained(location: Location, error: OSError) -> Exception:
    """Return what an answer of the hub means for the user."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    uri = f"hf://{location.place}"
    match error:
        case GatedRepoError():
            text = "its owner asks for consent; accept its terms on the hub, then set secretRef "
            return ModelUnavailable(f"{uri}: {text}to a Secret with HF_TOKEN")
        case RepositoryNotFoundError():
            text = "no such model, or it is private; check the name, or set secretRef to a Secret "
            return ModelUnavailable(f"{uri}: {text}with an HF_TOKEN that may read it")
        case RevisionNotFoundError():
            return ModelUnavailable(f"{uri}: no revision {location.revision}; check what follows @")
        case HfHubHTTPError() if error.response.status_code in {401, 403}:
            return ModelUnavailable(f"{uri}: the hub refuses HF_TOKEN; check the Secret's token")
        case _:
            return Interrupted(f"the hub answered {error}")

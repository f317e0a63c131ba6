"""hf:// sources: a model of the Hugging Face hub, by the hub's own client.

The environment is the client's: the token under any of its names (HF_TOKEN or
HUGGING_FACE_HUB_TOKEN from the source's secretRef, HF_TOKEN_PATH, the token file), HF_ENDPOINT for
a mirror. The revision is resolved once, so that all files are of one commit.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import Location
from weir_engine.repository_files import INDEX, NO_WEIGHTS, wanted
from weir_engine.transfer import Interrupted, check_room, progress

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S: Final = 60.0
"""Longest silence of the hub."""


def download(
    location: Location,
    directory: Path,
    environment: Mapping[str, str],
    load_format: str = "auto",
) -> Path:
    """Download the repository's files that vLLM reads into `directory`.

    Returns:
        Where the model is: `directory`, or the folder in it that the location names.

    Raises:
        Interrupted: Trying again may help.
        ModelUnavailable: It cannot, and the message says what would.
    """
    with _client_errors(location):
        return _download(location, directory, environment.get("HF_ENDPOINT") or None, load_format)


def download_code(
    repository: str, revision: str | None, cache: Path, environment: Mapping[str, str]
) -> Path:
    """Download the modules of a repository into a cache in the client's own form.

    Returns:
        Where they are in it.

    Raises:
        Interrupted: Trying again may help.
        ModelUnavailable: It cannot, and the message says what would.
    """
    from huggingface_hub import snapshot_download

    with _client_errors(Location("hf", repository, "", revision)):
        return Path(
            snapshot_download(
                repository, revision=revision, cache_dir=cache, allow_patterns=["*.py"],
                endpoint=environment.get("HF_ENDPOINT") or None,
            )
        )  # fmt: skip


@contextmanager
def _client_errors(location: Location) -> Iterator[None]:
    """Make the client ready, and say what its errors mean for the user."""
    import httpx2
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if constants.is_offline_mode():
        raise ModelUnavailable(
            f"{_uri(location)}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing can be "
            "fetched; take it out of spec.engine.env (the engine is offline without it)"
        )
    # Its own clients wait without a limit for some answers, and its warnings quote signed urls.
    set_client_factory(_client)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    except HfHubHTTPError as error:
        raise _explained(location, error) from error
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _explained(location, error.__cause__) from error
        raise _unreachable(error.__cause__ or error) from error
    except (httpx2.TransportError, ConnectionError, TimeoutError) as error:
        raise _unreachable(error) from error


def _download(location: Location, directory: Path, endpoint: str | None, load_format: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    # The client begins a file anew, so what a killed one left of it would only take the room.
    for stale in directory.rglob("*.incomplete"):
        stale.unlink()
    model = HfApi(endpoint=endpoint).model_info(
        location.place, revision=location.revision, files_metadata=True, timeout=TIMEOUT_S
    )
    folder = f"{location.path}/" if location.path else ""
    sizes = {
        one.rfilename.removeprefix(folder): one.size or 0
        for one in model.siblings or ()
        if one.rfilename.startswith(folder)
    }
    indexed = None
    if INDEX in sizes and load_format != NO_WEIGHTS:
        index = hf_hub_download(
            location.place, folder + INDEX, revision=model.sha, local_dir=directory,
            endpoint=endpoint,
        )  # fmt: skip
        indexed = set(json.loads(Path(index).read_text())["weight_map"].values())
    names = wanted(sizes, load_format, indexed)
    if not names:
        raise ModelUnavailable(_nothing(location, sizes, load_format))
    total = sum(sizes[name] for name in names)
    check_room(directory, total)
    with progress(_uri(location), directory, total):
        snapshot_download(
            location.place, revision=model.sha, local_dir=directory, endpoint=endpoint,
            allow_patterns=[_literally(folder + name) for name in names],
        )  # fmt: skip
    home = directory / location.path
    # Of a hub that is gone meanwhile, the client returns what there is.
    for name in names:
        path = home / name
        if not path.is_file() or path.stat().st_size != sizes[name]:
            raise Interrupted(f"{name} is not whole")
    # The client's notes for resuming; the engine has no use for them.
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    return home


def _client() -> httpx2.Client:
    import httpx2

    return httpx2.Client(follow_redirects=True, timeout=TIMEOUT_S)


def _literally(name: str) -> str:
    """Return a pattern that matches `name` and nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _nothing(location: Location, sizes: Mapping[str, int], load_format: str) -> str:
    uri = _uri(location)
    if location.path and not sizes:
        return f"{uri}: the repository has no such folder; check the path"
    if load_format == NO_WEIGHTS:
        return f"{uri}: the repository holds no tokenizer and no configuration"
    return f"{uri}: the repository holds no weights that vLLM reads (--load-format {load_format})"


def _uri(location: Location) -> str:
    return "/".join(part for part in (f"hf://{location.place}", location.path) if part)


def _unreachable(error: BaseException) -> Interrupted:
    return Interrupted(f"the hub cannot be reached ({error}); set HF_ENDPOINT if you use a mirror")


def _explained(location: Location, error: OSError) -> Exception:
    """Return what an answer of the hub means for the user."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    uri = _uri(location)
    match error:
        case GatedRepoError():
            text = "its owner asks for consent; accept its terms on the hub, then set secretRef "
            return ModelUnavailable(f"{uri}: {text}to a Secret with HF_TOKEN")
        case RepositoryNotFoundError():
            text = "no such model, or it is private; check the name, or set secretRef to a Secret "
            return ModelUnavailable(f"{uri}: {text}with an HF_TOKEN that may read it")
        case RevisionNotFoundError():
            return ModelUnavailable(
                f"{uri}: no revision {location.revision}; check what follows @ (a folder of the "
                "repository goes before it)"
            )
        case HfHubHTTPError() if error.response.status_code in {401, 403}:
            return ModelUnavailable(f"{uri}: the hub refuses HF_TOKEN; check the Secret's token")
        case HfHubHTTPError():
            # Its own message quotes the url, which may be a signed one.
            return Interrupted(f"the hub answered {error.response.status_code}")
        case _:
            return Interrupted(f"the hub answered {type(error).__name__}")

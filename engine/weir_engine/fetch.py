"""`weir-engine fetch`: brings the weights into the model directory, once.

Runs as the pod's `model` container, before the engine. Sources that are volumes are there
already; the others are made, or downloaded beside their final place and moved there whole, so
that an engine never sees half a model and a second start finds it done. What an interrupted
download left is used by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from weir_core.api.model import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import Location, locate
from weir_engine import settings
from weir_engine.launch import load_format_of
from weir_engine.remote_code import cached, code_repositories, code_revision
from weir_engine.repository_files import CHOICE, NO_WEIGHTS
from weir_engine.transfer import retry, say, size_of

LOCK_LIMIT_S: Final = 2 * 3600.0
"""Longest wait for another process that fetches the same weights."""

CHOICES_FILE: Final = ".weir-fetched.json"
"""Names the rules by which the files beside it were chosen, each with a load format."""

Download = Callable[[Location, Path, Mapping[str, str]], Path]
"""Bring what a location holds into a directory, which may have some of it already; return the
directory of the model itself."""


def fetch(environment: Mapping[str, str]) -> None:
    """Bring every source of the configuration into the model directory.

    Raises:
        InvalidSpec: An argument names a model in a way that cannot be fetched.
        ModelUnavailable: A source could not be had; the message says what to do.
    """
    config, paths = settings.read_config(environment), settings.read_paths(environment)
    load_format = load_format_of(config.args)
    if config.compiled:
        _make(Path(paths.model_dir, config.compiled))
    for source, path, weights in config.directories(paths.model_dir):
        try:
            _fetch_one(source, Path(path), environment, load_format if weights else NO_WEIGHTS)
            _fetch_code(Path(path), Path(paths.model_dir), config.args, environment)
        except OSError as error:
            raise ModelUnavailable(f"{source.uri}: {_disk_trouble(error)}") from error


def _make(folder: Path) -> None:
    """Make the folder of what the engine compiles: the kubelet would make it root's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelUnavailable(_disk_trouble(error)) from error


def _fetch_one(
    source: Source, directory: Path, environment: Mapping[str, str], load_format: str
) -> None:
    location = locate(source)
    match location.scheme:
        case "tiny":
            from weir_engine.tiny.model import prepare

            made = prepare(location.place, directory)
            say(f"{source.uri}: {'made' if made else 'found'} at {directory}")
        case "hf":
            from weir_engine import hub

            download = partial(hub.download, load_format=load_format)
            _download(source.uri, directory, download, environment, f"{CHOICE}:{load_format}")
        case "s3" | "gs" | "az":
            from weir_engine import bucket

            _download(source.uri, directory, bucket.download, environment, "")
        case _:
            say(f"{source.uri}: mounted at {directory}, nothing to fetch")


def _fetch_code(
    model: Path, models: Path, args: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Bring the code that a model takes from other repositories into the hub's cache."""
    revision = code_revision(args)
    for repository in code_repositories(model, args):
        place = cached(models, repository)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(place):
            uri = f"hf://{repository}"
            whole = place.with_name(f"{place.name}.{(revision or 'main').replace('/', '--')}.whole")
            if whole.exists():
                say(f"{uri}: code found at {place}")
                continue
            from weir_engine.hub import download_code

            retry(uri, partial(download_code, repository, revision, place.parent, environment))
            whole.touch()
            say(f"{uri}: code at {place}")


def _download(
    uri: str, directory: Path, download: Download, environment: Mapping[str, str], choice: str
) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(directory):
        choices = _choices(directory)
        if not directory.is_dir():
            _bring(uri, directory, download, environment, [choice] if choice else [])
        elif not choice or choice in choices:
            say(f"{uri}: found at {directory}")
        else:
            say(f"{uri}: found at {directory}, fetched by another rule; fetching what is missing")
            try:
                _bring(uri, directory, download, environment, [*choices, choice])
            except (ModelUnavailable, OSError) as error:
                say(f"{error}; going on with what is there")


def _bring(
    uri: str,
    directory: Path,
    download: Download,
    environment: Mapping[str, str],
    choices: Sequence[str],
) -> None:
    """Download beside the directory, beginning with what it holds, and put it in its place."""
    location = locate(Source(uri=uri))
    unfinished = directory.with_name(directory.name + ".partial")
    unfinished.mkdir(exist_ok=True)
    if directory.is_dir():
        # A file that changes is a new one, so an engine keeps those that it has open.
        shutil.rmtree(unfinished)
        shutil.copytree(directory, unfinished / location.path, copy_function=os.link)
    started = time.monotonic()
    model = retry(uri, lambda: download(location, unfinished, environment))
    if choices:
        written = model / CHOICES_FILE
        written.unlink(missing_ok=True)
        written.write_text(json.dumps(choices))
    replaced = directory.with_name(directory.name + ".replaced")
    if directory.is_dir():
        # A fetch that was killed between the two renames leaves one behind.
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(directory, replaced)
    os.rename(model, directory)
    shutil.rmtree(replaced, ignore_errors=True)
    # What lies around a folder of a repository.
    shutil.rmtree(unfinished, ignore_errors=True)
    took = time.monotonic() - started
    say(f"{uri}: {size_of(directory) / 2**20:.1f} MiB at {directory} in {took:.0f} s")


def _choices(directory: Path) -> list[str]:
    """Return by which rules the files of a directory were chosen."""
    try:
        found: list[str] = json.loads((directory / CHOICES_FILE).read_text())
    except FileNotFoundError:
        return []
    return found


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Keep other processes from fetching to the same directory meanwhile."""
    lock = directory.with_name(directory.name + ".lock")
    with lock.open("w") as file:
        deadline = time.monotonic() + LOCK_LIMIT_S
        waits = False
        while not _locked(file.fileno(), directory):
            if not waits:
                say(f"{directory}: another process fetches it; waiting")
                waits = True
            if time.monotonic() > deadline:
                raise ModelUnavailable(f"{directory}: another process still fetches it; stop it")
            time.sleep(0.5)
        yield


def _locked(descriptor: int, directory: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ModelUnavailable(
            f"{directory}: its file system locks no files ({error.strerror}), so replicas cannot "
            "share it; see what a cache needs in docs/engine.md"
        ) from error
    return True


def _disk_trouble(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"no room left at {error.filename or 'the model directory'}; give it more space"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return (
                f"may not write to {error.filename}; set WEIR_MODEL_DIR or the volume's fsGroup, "
                f"or give the node's directory to user {os.getuid()}"
            )
        case _:
            return str(error)

"""Two images in docker-archive form, written by hand because there is no registry to pull from.

`pause` holds a pod's namespaces. `host` is an empty skeleton of a userland: pods mount the host's
/usr, the checkout and the Python installation onto it, read-only, and so run this checkout's code
without an image build.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAUSE = "localhost/pause:1"
HOST = "localhost/host:1"

_HOST_DIRECTORIES = ("dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var")
_HOST_LINKS = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
_HOST_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/nsswitch.conf": b"hosts: files dns\n",
}


@dataclass(frozen=True)
class Image:
    """What an image of one layer holds."""

    reference: str
    files: Mapping[str, bytes]
    directories: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    environment: Sequence[str] = ()


def pause(binary: Path) -> Image:
    """Return the pods' sandbox image."""
    return Image(PAUSE, {"pause": binary.read_bytes()}, entrypoint=["/pause"])


def host(path: Sequence[Path]) -> Image:
    """Return the skeleton; `path` are the folders its programs are found in first."""
    search = [*(str(folder) for folder in path), "/usr/local/bin", "/usr/bin", "/bin"]
    return Image(
        HOST, _HOST_FILES, _HOST_DIRECTORIES, _HOST_LINKS, environment=[f"PATH={':'.join(search)}"]
    )


def write_archive(image: Image, target: Path) -> None:
    """Write `image` to `target` as `docker save` would."""
    layer = _layer(image)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(image.entrypoint), "Env": list(image.environment)},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
        }
    ).encode()
    name = f"{_digest(config)}.json"
    manifest = [{"Config": name, "RepoTags": [image.reference], "Layers": ["layer.tar"]}]
    members = {name: config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(target, "w") as archive:
        for member, content in members.items():
            _add_file(archive, member, content)


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for directory in image.directories:
            entry = tarfile.TarInfo(directory)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if directory == "tmp" else 0o755
            layer.addfile(entry)
        for link, target in image.links.items():
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            layer.addfile(entry)
        for file, content in image.files.items():
            _add_file(layer, file, content)
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    archive.addfile(entry, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

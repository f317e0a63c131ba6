"""`python -m e2e.registry FOLDER`: a registry on the loopback with one image, a folder's files.

It is for the containerds of the node, so it runs there, where they ask it without TLS. Every name
is that of this image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from e2e.cluster import node
from e2e.cluster.components import REGISTRY
from e2e.cluster.errors import ClusterError
from e2e.hosted import CHECKOUT

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
NO_CONFIG = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFESTS = re.compile("/v2/.+/manifests/[^/]+")
BLOB = re.compile("/v2/.+/blobs/(sha256:[0-9a-f]{64})")
CHUNK = 2**20


@contextmanager
def running(machine: node.Node, folder: Path, *options: str) -> Iterator[str]:
    """Serve the files of a folder as an image on a node; yield its reference.

    Args:
        machine: On whose loopback it is.
        folder: Its files become those of the image's root, and its name the image's.
        options: `--gzip` or `--artifact`.
    """
    here = ["env", f"--chdir={CHECKOUT}"]  # entering the node leads to its root
    command = [*machine.enter, *here, sys.executable, "-m", "e2e.registry", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise ClusterError("the registry ended while starting; its output says why")
            yield f"{REGISTRY}/{folder.name}:1"
        finally:
            node.end(process)


def main() -> None:
    """Make the image, say that it is there, and serve it until the process is ended."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--gzip", action="store_true", help="compress the layer, as builders do")
    options.add_argument(
        "--artifact", action="store_true", help="not an image but what ORAS pushes"
    )
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the blobs are removed
    with tempfile.TemporaryDirectory() as blobs:
        if given.artifact:
            manifest = _write_artifact(given.folder, Path(blobs))
        else:
            manifest = _write_image(given.folder, Path(blobs), compressed=given.gzip)
        host, _, port = REGISTRY.partition(":")
        server = ThreadingHTTPServer((host, int(port)), _handler(manifest, Path(blobs)))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.serve_forever()


def _write_image(folder: Path, blobs: Path, *, compressed: bool) -> bytes:
    """Write the blobs of an image of one layer, each named by its digest; return the manifest."""
    layer = blobs / "layer"
    with tarfile.open(layer, "w") as archive:
        archive.add(folder, "", filter=_as_built)
    unpacked = _digest(layer)
    if compressed:
        packed = blobs / "packed"
        _gzip(layer, packed)
        layer = packed.replace(layer)
    config = blobs / "config"
    rootfs = {"type": "layers", "diff_ids": [unpacked]}
    config.write_text(json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}))
    layers = [_kept(layer, f"{LAYER}+gzip" if compressed else LAYER)]
    return _manifest(config=_kept(config, CONFIG), layers=layers)


def _write_artifact(folder: Path, blobs: Path) -> bytes:
    """Write the blobs of an artifact, one for each file; return the manifest."""
    config = blobs / "config"
    config.write_text("{}")
    of_files = [
        _kept(Path(shutil.copy(file, blobs)), "application/octet-stream")
        | {"annotations": {"org.opencontainers.image.title": file.name}}
        for file in sorted(folder.iterdir())
    ]
    kind = "application/vnd.example.model"
    return _manifest(artifactType=kind, config=_kept(config, NO_CONFIG), layers=of_files)


def _manifest(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **fields}).encode()


def _as_built(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return the entry as `COPY` of a build writes it: root's, and readable by all."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


def _gzip(source: Path, target: Path) -> None:
    # Weights hold next to nothing that repeats, so looking for it would only take time.
    packer = zlib.compressobj(wbits=31, strategy=zlib.Z_HUFFMAN_ONLY)
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(CHUNK):
            written.write(packer.compress(chunk))
        written.write(packer.flush())


def _kept(blob: Path, media_type: str) -> dict[str, Any]:
    """Give a blob the name of its digest; return its descriptor."""
    digest = _digest(blob)
    blob = blob.rename(blob.with_name(digest))
    return {"mediaType": media_type, "digest": digest, "size": blob.stat().st_size}


def _digest(blob: Path) -> str:
    with blob.open("rb") as read:
        return f"sha256:{hashlib.file_digest(read, 'sha256').hexdigest()}"


def _handler(manifest: bytes, blobs: Path) -> type[BaseHTTPRequestHandler]:
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            wanted = BLOB.fullmatch(path)
            if MANIFESTS.fullmatch(path):
                self._begin(len(manifest), MANIFEST, digest)
                if self.command == "GET":
                    self.wfile.write(manifest)
            elif wanted and (blobs / wanted[1]).exists():
                with (blobs / wanted[1]).open("rb") as content:
                    size = (blobs / wanted[1]).stat().st_size
                    self._begin(size, "application/octet-stream", wanted[1])
                    if self.command == "GET":
                        shutil.copyfileobj(content, self.wfile, CHUNK)
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def _begin(self, length: int, media_type: str, of: str) -> None:
            self.send_response(200)
            self.send_header("content-length", str(length))
            self.send_header("content-type", media_type)
            self.send_header("docker-content-digest", of)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


if __name__ == "__main__":
    main()

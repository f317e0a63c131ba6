"""The routers beside which the sidecar is measured, in an environment of their own.

`requirements/bench.lock` and `requirements/peers.lock` pin them with hashes. They are installed
once, under `$WEIR_CACHE/bench`, and again only when the lock changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_LOCKS: Final = Path(__file__).parents[2] / "requirements"
_LOCK: Final = _LOCKS / "bench.lock"
SMG_LOCK: Final = _LOCKS / "peers.lock"
"""SMG apart: it and sglang-router install the same command."""

_INSTALL_TIMEOUT_S: Final = 300


def cache_dir() -> Path:
    """Return where the benchmark keeps what it installs."""
    root = os.environ.get("WEIR_CACHE") or str(Path.home() / ".cache" / "weir")
    return Path(root) / "bench"


def installed(lock: Path = _LOCK) -> Path:
    """Return the `bin` directory that holds the routers of `lock`, installing them if needed.

    Raises:
        RuntimeError: There is no uv, or the installation failed.
    """
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    environment = cache_dir() / f"routers-{digest[:16]}"
    done = environment / "installed"
    if not done.exists():
        print("installing the routers to compare with (once)", file=sys.stderr)
        uv = _uv()
        _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment))
        python = str(environment / "bin" / "python")
        _run(uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", str(lock))
        done.touch()
    return environment / "bin"


def _uv() -> str:
    own = cache_dir().parent / "uv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        raise RuntimeError("uv is missing; run: make install")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.strip()}")

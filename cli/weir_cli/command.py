"""`weir`: says which extra is missing where the distribution was installed without it."""

from __future__ import annotations

import sys
from importlib.metadata import version


def main() -> None:
    """Run the command line."""
    try:
        from weir_cli.__main__ import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("weir_"):
            raise
        wheel = f"weir_serving-{version('weir-serving')}-py3-none-any.whl"
        sys.exit(
            f"weir: {error.name} is not installed; install the wheel with its extra `cli`: "
            f"pipx install --force '{wheel}[cli]'"
        )
    run()

"""Hatch build hook: compile the scheduling core with mypyc into the wheel.

The sources stay as they are and travel with the wheel; the compiled modules beside them decide in
half the time (docs/performance.md). Off unless HATCH_BUILD_HOOK_ENABLE_CUSTOM=true: images are
built so, while a checkout runs what is written.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = "weir_core/sched"
_LEFT = {"__init__.py", "policies.py", "tally.py", "types.py"}
"""Plain values and tables: msgspec and dataclasses make their classes at run time."""


class CompiledCore(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Adds the compiled modules to the wheel, which then belongs to one Python and platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile."""
        self._scratch = tempfile.TemporaryDirectory(prefix="weir-compile-")
        built = Path(self._scratch.name)
        _compile(Path(self.root) / "core", built)
        for module in built.rglob("*.so"):
            build_data["force_include"][str(module)] = str(module.relative_to(built))
        build_data.update(pure_python=False, infer_tag=True)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled: it is in the wheel."""
        self._scratch.cleanup()


def _compile(core: Path, built: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution

    with contextlib.chdir(core):
        names = sorted(path.name for path in Path(_PACKAGE).glob("*.py"))
        sources = [f"{_PACKAGE}/{name}" for name in names if name not in _LEFT]
        modules = mypycify(["--config-file=", *sources], target_dir=str(built / "c"))
        distribution = Distribution({"name": "weir-core", "ext_modules": modules})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(built), str(built / "c")
        command.ensure_finalized()
        command.run()

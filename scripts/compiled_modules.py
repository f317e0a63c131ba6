"""Hatch build hook: compile the modules of the request path with mypyc into the wheel.

The sources stay as they are and travel with the wheel; the compiled modules beside them decide in
half the time and relay for a fifth less (docs/adr/0011-compiled-modules.md). Off unless
HATCH_BUILD_HOOK_ENABLE_CUSTOM=true: images are built so, while a checkout runs what is written.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CORE = "weir_core/sched"
_LEFT = {"__init__.py", "policies.py", "types.py"}
"""Plain values and tables: msgspec and dataclasses make their classes at run time."""
_WIRE = ("answers", "bodies", "engine_inputs", "openai", "paths", "priority", "prompts")
_ROUTE = ("digest", "load", "prefix", "rebalance", "router", "score")
_RELAY = (
    "driver", "ends", "inflight", "prefixes", "registry", "routing", "frontend/auth",
    "frontend/body", "frontend/client", "frontend/headers", "frontend/protocol", "peers/due",
    "peers/heartbeats", "peers/member", "peers/membership", "peers/own", "peers/peer",
    "peers/peers", "peers/requests", "telemetry/instruments", "telemetry/metrics",
    "telemetry/otlp_json", "telemetry/request_trace", "telemetry/spans", "upstreams/connections",
    "upstreams/engine", "upstreams/splice", "upstreams/upstream",
)  # fmt: skip
"""What a request meets in the sidecar."""


class CompiledModules(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Adds the compiled modules to the wheel, which then belongs to one Python and platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile."""
        self._scratch = tempfile.TemporaryDirectory(prefix="weir-compile-")
        built = Path(self._scratch.name)
        _compile(Path(self.root), built)
        for module in built.rglob("*.so"):
            build_data["force_include"][str(module)] = str(module.relative_to(built))
        build_data.update(pure_python=False, infer_tag=True)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled: it is in the wheel."""
        self._scratch.cleanup()


def _compile(root: Path, built: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution

    sources = built / "sources"  # in one place, as they are imported: modules are named by it
    for package in ("core/weir_core", "sidecar/weir_sidecar"):
        shutil.copytree(root / package, sources / Path(package).name)
    with contextlib.chdir(sources):
        core = sorted(path for path in Path(_CORE).glob("*.py") if path.name not in _LEFT)
        others = [f"weir_core/wire/{name}.py" for name in _WIRE]
        others += [f"weir_core/route/{name}.py" for name in _ROUTE]
        relay = [f"weir_sidecar/{name}.py" for name in _RELAY]
        # httptools has no types. What is not installed is an error: its classes would be guessed.
        flags = ["--config-file=", "--disable-error-code=import-untyped"]
        modules = mypycify(
            [*flags, *map(str, core), *others, *relay],
            target_dir=str(built / "c"),
        )
        distribution = Distribution({"name": "weir", "ext_modules": modules})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(built), str(built / "c")
        command.ensure_finalized()
        command.run()

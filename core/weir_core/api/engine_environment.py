"""Variables a spec may not set for the engine, because Weir's contract depends on them.

vLLM reads some of what its flags say from the environment, too, so a reserved flag's twin is
reserved with it (`weir_core.api.engine_flags`). A variable can come from `spec.engine.env` and
`spec.podTemplate`, where it is refused when it is written, or from a Secret, a ConfigMap or the
image, which only the engine sees: it refuses to start and says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from weir_core.api import labels
from weir_core.api.base import Rule, quoted

_SOCKET: Final = "the engine listens only on its sidecar's socket"
_LOOPBACK: Final = "Weir chooses the address at which the engine's processes meet"
_RANKS: Final = "an engine holds all of its ranks; set spec.engine.parallelism.data"
_OURS: Final = "Weir sets it itself"

FORBIDDEN_ENV: Final[dict[str, str]] = {
    "VLLM_API_KEY": "the sidecar authenticates; only it reaches the engine",
    "VLLM_PORT": _SOCKET,
    "VLLM_HOST_IP": _LOOPBACK,
    "VLLM_LOOPBACK_IP": _LOOPBACK,
    "VLLM_USE_RUST_FRONTEND": "that frontend does not listen on the sidecar's socket",
    "VLLM_RUST_FRONTEND_PATH": "that frontend does not listen on the sidecar's socket",
    "VLLM_MODEL_REDIRECT_PATH": "set spec.model.source.uri",
    "VLLM_DP_RANK": _RANKS,
    "VLLM_DP_RANK_LOCAL": _RANKS,
    "VLLM_DP_SIZE": _RANKS,
    "VLLM_DP_MASTER_IP": _RANKS,
    "VLLM_DP_MASTER_PORT": _RANKS,
    "VLLM_RAY_DP_PACK_STRATEGY": _RANKS,
    "VLLM_RAY_DP_PLACEMENT_NODE_IPS": _RANKS,
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "an engine that died has to end, so that it starts again",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "Weir knows its requests by the names vLLM makes",
    labels.ENV_ENGINE_CONFIG: _OURS,
    labels.ENV_RUN_DIR: _OURS,
    labels.ENV_MODEL_DIR: _OURS,
    labels.ENV_GRACE_PERIOD_S: _OURS,
}
"""Name to why it is reserved. The last four are what sidecar and engine must read alike."""

PLUGINS: Final = "VLLM_PLUGINS"
PLUGIN: Final = "weir"
"""Weir's plugin, by the name of its entry point."""
PLUGINS_SAYS: Final = (
    f"leaves out {PLUGIN!r}, without which the engine is not fit for a pod: write it, too, like "
    f"{PLUGIN},lora_filesystem_resolver"
)
LEAVE_OUT: Final = "is reserved for Weir; leave it out: "


def wrong_variable(name: str, value: str | None) -> str | None:
    """Return what is wrong with a variable of the engine, or None where it may be set.

    Args:
        name: Its name.
        value: Its value; None where it comes from elsewhere and is not known.
    """
    if name in FORBIDDEN_ENV:
        return f"{name} {LEAVE_OUT}{FORBIDDEN_ENV[name]}"
    if name == PLUGINS and value is not None and PLUGIN not in value.split(","):
        return f"{name} {PLUGINS_SAYS}"
    return None


def wrong_environment(inherited: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (name, what is wrong) of what an engine finds in its environment at its start."""
    for name, value in inherited.items():
        wrong = None if FORBIDDEN_ENV.get(name) == _OURS else wrong_variable(name, value)
        if wrong is not None:
            yield name, wrong


def variable_rules() -> tuple[Rule, ...]:
    """Return what the API server checks of one variable."""
    why = ", ".join(f"{quoted(name)}: {quoted(FORBIDDEN_ENV[name])}" for name in FORBIDDEN_ENV)
    # Not by a regular expression, which costs too much for values of this length.
    listed = (
        f"(self.value == '{PLUGIN}' || self.value.startsWith('{PLUGIN},') || "
        f"self.value.endsWith(',{PLUGIN}') || self.value.contains(',{PLUGIN},'))"
    )
    return (
        Rule(
            f"!(self.name in {{{why}}})",
            "this variable is reserved for Weir; leave it out",
            f"self.name + {quoted(' ' + LEAVE_OUT)} + {{{why}}}[self.name]",
            ".name",
        ),
        Rule(
            f"self.name != '{PLUGINS}' || has(self.valueFrom) || (has(self.value) && {listed})",
            f"{PLUGINS} {PLUGINS_SAYS}",
            field=".value",
        ),
    )

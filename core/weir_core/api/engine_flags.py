"""vLLM flags a spec may not set, because Weir's contract depends on them.

The engine is reachable only through its sidecar, over a Unix socket; a flag that opens a TCP
port, moves the socket, renames the model or replaces the scheduler would break that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from weir_core.api.base import Rule, quoted

FORBIDDEN: Final[dict[str, str]] = {
    "--host": "the engine listens only on its sidecar's socket",
    "--port": "the engine listens only on its sidecar's socket",
    "--uds": "Weir chooses the engine's socket",
    "--model": "set spec.model.source.uri",
    "--revision": "write the revision into spec.model.source.uri: hf://ORG/MODEL@REVISION",
    "--config": "flags in a file could not be checked; list them in spec.engine.args",
    "--served-model-name": "set spec.model.name and spec.model.aliases",
    "--api-key": "the sidecar authenticates; only it reaches the engine",
    "--root-path": "the sidecar relays paths as they are",
    "--ssl-keyfile": "the engine speaks plain HTTP on a Unix socket",
    "--ssl-certfile": "the engine speaks plain HTTP on a Unix socket",
    "--ssl-ca-certs": "the engine speaks plain HTTP on a Unix socket",
    "--ssl-cert-reqs": "the engine speaks plain HTTP on a Unix socket",
    "--ssl-ciphers": "the engine speaks plain HTTP on a Unix socket",
    "--enable-ssl-refresh": "the engine speaks plain HTTP on a Unix socket",
    "--headless": "an engine without an API server cannot be reached",
    "--api-server-count": "one API server per engine, so that in-flight counts are exact",
    "-asc": "one API server per engine, so that in-flight counts are exact",
    "--grpc": "the sidecar speaks HTTP to the engine",
    "--grpc-port": "the engine listens only on its sidecar's socket",
    "--tokens-only": "the sidecar serves the whole OpenAI API",
    "--disable-log-stats": "the sidecar reads the engine's metrics",
    "--kv-events-config": "the engine listens only on its sidecar's socket",
    "--lora-modules": "set spec.model.adapters",
    "--scheduler-cls": "set spec.engine.scheduling",
    "--scheduling-policy": "set spec.engine.scheduling",
    "--tensor-parallel-size": "set spec.engine.parallelism.tensor",
    "-tp": "set spec.engine.parallelism.tensor",
    "--pipeline-parallel-size": "set spec.engine.parallelism.pipeline",
    "-pp": "set spec.engine.parallelism.pipeline",
    "--data-parallel-size": "set spec.engine.parallelism.data",
    "-dp": "set spec.engine.parallelism.data",
    "--data-parallel-rank": "an engine holds all of its ranks; set spec.engine.parallelism.data",
    "-dpn": "an engine holds all of its ranks; set spec.engine.parallelism.data",
    "--data-parallel-start-rank": "an engine holds all of its ranks",
    "-dpr": "an engine holds all of its ranks",
    "--data-parallel-size-local": "an engine holds all of its ranks",
    "-dpl": "an engine holds all of its ranks",
    "--data-parallel-address": "an engine holds all of its ranks",
    "-dpa": "an engine holds all of its ranks",
    "--data-parallel-rpc-port": "an engine holds all of its ranks",
    "-dpp": "an engine holds all of its ranks",
    "--data-parallel-backend": "an engine holds all of its ranks",
    "-dpb": "an engine holds all of its ranks",
    "--data-parallel-supervisor-port": "the engine listens only on its sidecar's socket",
    "--data-parallel-hybrid-lb": "requests are balanced between sidecars",
    "-dph": "requests are balanced between sidecars",
    "--data-parallel-external-lb": "requests are balanced between sidecars",
    "-dpe": "requests are balanced between sidecars",
    "--data-parallel-multi-port-external-lb": "requests are balanced between sidecars",
    "-dpm": "requests are balanced between sidecars",
    "--nnodes": "set spec.engine.parallelism.nodes",
    "-n": "set spec.engine.parallelism.nodes",
    "--node-rank": "LeaderWorkerSet says it; set spec.engine.parallelism.nodes",
    "-r": "LeaderWorkerSet says it; set spec.engine.parallelism.nodes",
    "--master-addr": "LeaderWorkerSet says it; set spec.engine.parallelism.nodes",
    "--master-port": "LeaderWorkerSet says it; set spec.engine.parallelism.nodes",
    "--otlp-traces-endpoint": "set spec.tracing.endpoint",
}

BARE: Final = ("-", "--")
BARE_SAYS: Final = "is no flag: leave it out"
NOT_A_FLAG: Final = "is no flag: begin with one, like --max-model-len=8192"
RESERVED_SAYS: Final = "is reserved for Weir: "
TWO_WORDS_PATTERN: Final = r"^--?[A-Za-z][^=\s]*\s"
TWO_WORDS_SAYS: Final = "is one word to vLLM: write each word as an item of its own"


def wrong_arguments(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (index, what is wrong with it) of each argument that Weir must refuse.

    Each item is one word of vLLM's command line, as in a pod's `args`: a shell would have split
    `--max-model-len 4096`, here nothing does.
    """
    if args and not args[0].startswith("-"):
        yield 0, f"{args[0]!r} {NOT_A_FLAG}"
    for index, argument in enumerate(args):
        reserved = forbidden_flag([argument])
        if argument in BARE:
            yield index, f"{argument!r} {BARE_SAYS}"
        elif reserved is not None:
            yield index, f"{reserved[1]} {RESERVED_SAYS}{reserved[2]}"
        elif re.search(TWO_WORDS_PATTERN, argument):
            words = argument.split()
            joined = f", or {'='.join(words)}" if len(words) == 2 else ""
            yield index, f"{argument!r} {TWO_WORDS_SAYS}{joined}"


def forbidden_flag(args: Sequence[str]) -> tuple[int, str, str] | None:
    """Return (index, flag, why) of the first argument that sets a flag of Weir's, or None.

    vLLM reads `--flag value`, `--flag=value`, underscores for dashes (`--api_key`) and dotted
    sub-fields (`--flag.field`); all of them count. So do prefixes, which argparse expands, the
    `--no-` form, values glued to a one-letter flag (`-n2`), and two words in one.
    """
    for index, argument in enumerate(args):
        flag = re.split(r"[=.\s]", argument, maxsplit=1)[0].replace("_", "-")
        if not flag.startswith("-") or flag in BARE:
            continue
        hit = flag if flag in FORBIDDEN else _expanded(flag)
        if hit is not None:
            return index, hit, FORBIDDEN[hit]
    return None


def argument_rules() -> tuple[Rule, ...]:
    """Return what the API server checks of one argument; abbreviations it leaves to Weir."""
    # `--no-` is vLLM's negation of a switch.
    flag = "self.split('=')[0].split(' ')[0].split('.')[0].replace('_', '-')"
    why = "{" + ", ".join(f"{quoted(name)}: {quoted(FORBIDDEN[name])}" for name in FORBIDDEN) + "}"
    switches = [name for name in FORBIDDEN if name.startswith("--")]
    negated = ", ".join(quoted(f"--no-{name.removeprefix('--')}") for name in switches)
    return (
        Rule(
            f"!(self in [{', '.join(map(quoted, BARE))}])",
            BARE_SAYS,
        ),
        Rule(
            f"!({flag} in {why})",
            "this flag is reserved for Weir: use the fields of the spec",
            f"{flag} + {quoted(' ' + RESERVED_SAYS)} + {why}[{flag}]",
        ),
        Rule(
            f"!({flag} in [{negated}])",
            "this flag is reserved for Weir: leave it out",
        ),
        Rule(
            f"!self.matches({quoted(TWO_WORDS_PATTERN)})",
            f"{TWO_WORDS_SAYS}, or FLAG=VALUE",
        ),
    )


def _expanded(flag: str) -> str | None:
    """Return the reserved flag that `flag` abbreviates or negates, or None."""
    # From vLLM 0.33 on, `--disable-x` is the negation of `--enable-x`.
    for negation, switch in (("--no-", "--"), ("--disable-", "--enable-")):
        if flag.startswith(negation) and switch + flag.removeprefix(negation) in FORBIDDEN:
            return switch + flag.removeprefix(negation)
    if not flag.startswith("--"):
        glued = flag[:2] if flag[:2] in FORBIDDEN else None
        return glued or next((known for known in FORBIDDEN if known.startswith(flag)), None)
    # Two letters and more: a bare `--` is none.
    if len(flag) < 4:
        return None
    return next((known for known in FORBIDDEN if known.startswith(flag)), None)

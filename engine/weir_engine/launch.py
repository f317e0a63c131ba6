"""From what the operator wishes and what the machine is, to vLLM's command line: pure.

vLLM's own defaults stay wherever they are good; each argument here has a reason beside it. What
the user wrote comes last, and where they set a flag of ours, ours is left out: theirs counts.
Flags that Weir's contract rests on cannot be set by them at all
(`weir_core.api.engine_flags`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weir_core.api.engine_environment import wrong_environment
from weir_core.api.engine_flags import wrong_arguments
from weir_core.api.labels import ENGINE_SOCKET, MODEL_DIR, RUN_DIR
from weir_core.errors import Fault, InvalidSpec, MachineUnfit
from weir_core.wire.engine import EngineConfig, local_path, locate, named_path
from weir_core.wire.named_models import with_paths
from weir_engine.group import MASTER_PORT, Member
from weir_engine.machine import Machine

TINY_KV_CACHE_BYTES: Final = 64 * 2**20
"""131,072 tokens of the tiny model, in 64 MiB."""
TINY_MAX_LENGTH: Final = 8192
"""Longest prompt plus answer of the tiny model, in tokens."""
LEAN_BELOW_CORES: Final = 4
"""On fewer cores vLLM's worker process would take the API server's time slices."""
DRAINS_FOR_S: Final = 1
"""After SIGTERM, longest time that vLLM goes on computing, in whole seconds: the sidecar
drained before. Without it vLLM ends what is open as if it were whole (`finish_reason: abort`)."""
SCHEDULER: Final = "weir_engine.scheduling.factory.make_scheduler"
"""What vLLM calls for its scheduler, synchronous or asynchronous as it would choose itself."""

Flag = tuple[str, ...]
"""One flag with its values."""


@dataclass(frozen=True)
class Paths:
    """The two directories an engine shares with its pod."""

    run_dir: str = RUN_DIR
    model_dir: str = MODEL_DIR

    @property
    def socket(self) -> str:
        """Where vLLM listens."""
        return posixpath.join(self.run_dir, ENGINE_SOCKET)


def serve_arguments(
    config: EngineConfig, machine: Machine, paths: Paths, member: Member | None = None
) -> list[str]:
    """Return the arguments of `vllm` that serve `config` on `machine`.

    Args:
        config: What is asked for.
        machine: What this process runs on.
        paths: Where the pod's directories are.
        member: Which part this is of an engine that spreads over nodes; None for all of it.

    Raises:
        InvalidSpec: The configuration contradicts itself or breaks the contract.
        MachineUnfit: This machine cannot serve it.
    """
    _check(config, machine)
    ours = [*_adapters(config, machine, paths), *_parallel(config), *_contract(config, paths)]
    if member is not None:
        ours += _over_nodes(config, member)
    if machine.device == "cpu":
        ours += _on_cpu(config, machine)
    if locate(config.source).scheme == "tiny":
        ours += _tiny()
    given = {_base(argument) for argument in config.args if argument.startswith("-")}
    if member is not None and member.rank:  # vLLM refuses to count what there is none of
        given.add("--api-server-count")
    kept = [flag for flag in ours if _base(flag[0]) not in given]
    model = local_path(config.source, paths.model_dir)
    found = {named: named_path(named, paths.model_dir) for named in config.named}
    theirs = with_paths(config.args, found)
    return ["serve", model, *(part for flag in kept for part in flag), *theirs]


def environment(
    config: EngineConfig,
    machine: Machine,
    inherited: Mapping[str, str],
    member: Member | None = None,
) -> dict[str, str]:
    """Return vLLM's environment: `inherited`, completed where it is silent.

    Args:
        config: What is asked for.
        machine: What this process runs on.
        inherited: The container's environment.
        member: Which part this is of an engine that spreads over nodes; None for all of it.

    Raises:
        InvalidSpec: A variable came from a Secret, a ConfigMap or the image that a spec may not
            set.
    """
    wrong = [Fault(f"environment {name}", said) for name, said in wrong_environment(inherited)]
    if wrong:
        raise InvalidSpec.of(wrong)
    defaults = {
        # Weights and tokenizer are local by now; a look at the hub would only cost time or fail.
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # vLLM reports its usage home unless told not to.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if member is None:
        # Collectives listen on TCP: on the loopback, please, not on the pod's address.
        defaults |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    defaults["VLLM_HOST_IP"] = "127.0.0.1" if member is None else member.own
    if machine.device == "cpu":
        defaults |= _cpu_environment(config, machine)
    if config.adapter_slots:
        # Opens the paths by which the sidecar loads adapters; to clients they are closed there.
        defaults["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if config.traces_endpoint is not None:
        defaults["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    # The Rust front end has no Unix socket, and some of its own ports.
    return defaults | dict(inherited) | {"VLLM_USE_RUST_FRONTEND": "0"}


def _check(config: EngineConfig, machine: Machine) -> None:
    wrong = [Fault(f"engine.args[{index}]", said) for index, said in wrong_arguments(config.args)]
    if wrong:
        raise InvalidSpec.of(wrong)
    if machine.device == "cpu" and config.accelerators:
        raise MachineUnfit(
            f"{config.accelerators} accelerators are asked for, but this is vLLM's CPU build; "
            "use an image with the GPU build, or set the pool's accelerator count to 0"
        )
    if machine.no_gpu:
        asked = config.accelerators
        remedy = (
            f"the pool asks for {asked}: its resource must be NVIDIA's, and the container must run "
            "by NVIDIA's runtime (spec.podTemplate.spec.runtimeClassName)"
            if asked
            else "the pool asks for none: use an image with vLLM's CPU build, as Weir's own is "
            "where engine.image says nothing"
        )
        raise MachineUnfit(f"vLLM's build for GPUs sees no GPU: {machine.no_gpu}; {remedy}")
    given = config.accelerators * config.parallelism.nodes
    if machine.device == "gpu" and 0 < given < config.parallelism.size:
        raise InvalidSpec(
            "engine.parallelism",
            f"needs {config.parallelism.size} accelerators per replica, the pool gives {given}",
        )


def _contract(config: EngineConfig, paths: Paths) -> Iterator[Flag]:
    """Yield what the sidecar relies on."""
    yield "--served-model-name", config.name, *config.aliases
    yield "--uds", paths.socket
    # One process takes the requests, so that its counts are those of the engine.
    yield "--api-server-count", "1"
    # At its end an engine breaks off what is open, which clients can tell from an answer.
    yield "--shutdown-timeout", str(DRAINS_FOR_S)
    # The sidecar logs each request, without prompts.
    yield ("--disable-uvicorn-access-log",)
    yield ("--no-enable-log-requests",)
    # Priorities hold inside the engine too, and the sidecar hears of every step.
    yield "--scheduler-cls", SCHEDULER
    yield "--scheduling-policy", "priority"
    if config.traces_endpoint is not None:
        yield "--otlp-traces-endpoint", config.traces_endpoint


def _parallel(config: EngineConfig) -> Iterator[Flag]:
    sizes = config.parallelism
    if sizes.tensor > 1:
        yield "--tensor-parallel-size", str(sizes.tensor)
    if sizes.pipeline > 1:
        yield "--pipeline-parallel-size", str(sizes.pipeline)
    if sizes.data > 1:
        yield "--data-parallel-size", str(sizes.data)


def _over_nodes(config: EngineConfig, member: Member) -> Iterator[Flag]:
    """Yield what joins the parts of an engine; Weir's scheduler and the API are the leader's."""
    yield "--distributed-executor-backend", "mp"
    yield "--nnodes", str(config.parallelism.nodes)
    yield "--node-rank", str(member.rank)
    yield "--master-addr", member.leader
    yield "--master-port", str(MASTER_PORT)
    if member.rank:
        yield ("--headless",)


def _adapters(config: EngineConfig, machine: Machine, paths: Paths) -> Iterator[Flag]:
    places = max(len(config.adapters), config.adapter_slots)
    if not places:
        return
    yield ("--enable-lora",)
    if config.adapter_slots:
        yield "--max-lora-rank", str(config.adapter_rank)
    # On a CPU vLLM computes the last place's adapter for requests that want none, when others in
    # their step want one. That place stays empty.
    empty = 1 if machine.device == "cpu" else 0
    yield "--max-loras", str(places + empty)
    if config.adapters:
        yield (
            "--lora-modules",
            *(f"{one.name}={local_path(one.source, paths.model_dir)}" for one in config.adapters),
        )


def _tiny() -> Iterator[Flag]:
    """Yield bounds that let several tiny engines share one machine, or one GPU."""
    yield "--kv-cache-memory-bytes", str(TINY_KV_CACHE_BYTES)
    yield "--max-model-len", str(TINY_MAX_LENGTH)


def _on_cpu(config: EngineConfig, machine: Machine) -> Iterator[Flag]:
    """Yield what vLLM's CPU build needs to start soon and to leave room for its neighbours."""
    # Compiling takes a C++ compiler and minutes. Stages of a pipeline need the warm-up that vLLM
    # leaves out with this flag: it makes the buffers in which they hear of each other.
    if config.parallelism.pipeline == 1:
        yield ("--enforce-eager",)
    if _lean(config, machine):
        yield "--distributed-executor-backend", "uni"
    if locate(config.source).scheme != "tiny":
        # vLLM would take nine tenths of the machine.
        yield "--kv-cache-memory-bytes", str(machine.memory_bytes // 4)
        yield "--max-model-len", "auto"


def _cpu_environment(config: EngineConfig, machine: Machine) -> dict[str, str]:
    settings = {
        # Eager mode leaves small functions to the compiler: seconds in the first request.
        "TORCHDYNAMO_DISABLE": "1",
        # What is not compiled cannot be compiled ahead either; vLLM would refuse to start.
        "VLLM_USE_AOT_COMPILE": "0",
    }
    if _lean(config, machine):
        settings["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if _lean(config, machine) or _small(config, machine):
        # Bound threads of several engines would share the same cores and leave others idle.
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        settings["OMP_NUM_THREADS"] = "1"
    return settings


def _small(config: EngineConfig, machine: Machine) -> bool:
    """Whether threads would cost more than they bring."""
    return locate(config.source).scheme == "tiny" or machine.cores < LEAN_BELOW_CORES


def _lean(config: EngineConfig, machine: Machine) -> bool:
    """Whether the engine runs its only worker itself, without a process of its own."""
    return config.parallelism.size == 1 and _small(config, machine)


def load_format_of(args: Sequence[str]) -> str:
    """Return the format in which vLLM will look for the weights."""
    return (value_of(args, "--load-format") or "auto").lower()


def value_of(args: Sequence[str], flag: str) -> str | None:
    """Return the value that the arguments give a flag, or None where they do not."""
    found = None
    for index, argument in enumerate(args):
        if argument.startswith("-") and _base(argument) == flag:
            _, equals, value = argument.partition("=")
            found = value if equals else "".join(args[index + 1 : index + 2])
    return found


def _base(argument: str) -> str:
    """Return the flag that `argument` sets, whichever way it is spelled."""
    flag = argument.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
    return "--" + flag.removeprefix("--no-").lstrip("-")

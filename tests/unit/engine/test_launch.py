"""From wishes and a machine to vLLM's whole command line; the tables are the documentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from weir_core.api.engine import Parallelism
from weir_core.api.model import Adapter, Source
from weir_core.errors import InvalidSpec, MachineUnfit
from weir_core.wire.engine import EngineConfig
from weir_engine.group import Member
from weir_engine.launch import Paths, environment, serve_arguments
from weir_engine.machine import Machine

GIB = 2**30
GPU = Machine(device="gpu", vllm_version="0.33.0", cores=32, memory_bytes=256 * GIB)
NO_GPU = replace(GPU, no_gpu="NVIDIA's driver finds no device")
SMALL_CPU = Machine(device="cpu", vllm_version="0.32.0", cores=2, memory_bytes=24 * GIB)
BIG_CPU = Machine(device="cpu", vllm_version="0.32.0", cores=64, memory_bytes=256 * GIB)
PATHS = Paths(run_dir="/run/weir", model_dir="/models")

LLAMA_DIR = "/models/hf-meta-llama-llama-3-1-8b-instruct-3cfbba48"
CONTRACT = (
    "--uds /run/weir/engine.sock --api-server-count 1 --shutdown-timeout 1 "
    "--disable-uvicorn-access-log --no-enable-log-requests "
    "--scheduler-cls weir_engine.scheduling.factory.make_scheduler --scheduling-policy priority"
)


def config(uri: str = "hf://meta-llama/Llama-3.1-8B-Instruct", **fields: Any) -> EngineConfig:
    return EngineConfig(name="chat", source=Source(uri=uri), **fields)


def lora(name: str, uri: str) -> Adapter:
    return Adapter(name=name, source=Source(uri=uri))


@pytest.mark.parametrize(
    ("wishes", "machine", "want"),
    [
        pytest.param(
            config(accelerators=1),
            GPU,
            f"serve {LLAMA_DIR} --served-model-name chat {CONTRACT}",
            id="one GPU takes vLLM's own defaults",
        ),
        pytest.param(
            config(aliases=("gpt-4o", "default"), accelerators=1),
            GPU,
            f"serve {LLAMA_DIR} --served-model-name chat gpt-4o default {CONTRACT}",
            id="the name comes first, then the aliases",
        ),
        pytest.param(
            config(accelerators=4, parallelism=Parallelism(tensor=4)),
            GPU,
            f"serve {LLAMA_DIR} --tensor-parallel-size 4 --served-model-name chat {CONTRACT}",
            id="tensor parallel over four GPUs",
        ),
        pytest.param(
            config(accelerators=8, parallelism=Parallelism(tensor=2, pipeline=2, data=2)),
            GPU,
            f"serve {LLAMA_DIR} --tensor-parallel-size 2 --pipeline-parallel-size 2 "
            f"--data-parallel-size 2 --served-model-name chat {CONTRACT}",
            id="tensor, pipeline and data parallel",
        ),
        pytest.param(
            config(
                accelerators=1,
                adapters=(lora("sql", "pvc://loras/sql"), lora("fr", "hf://org/french@v2")),
            ),
            GPU,
            f"serve {LLAMA_DIR} --enable-lora --max-loras 2 --lora-modules "
            "sql=/models/pvc-loras-f0995aab/sql fr=/models/hf-org-french-v2-8c9b18e5 "
            f"--served-model-name chat {CONTRACT}",
            id="adapters are served by their names",
        ),
        pytest.param(
            config("tiny://", adapters=(lora("sql", "pvc://loras/sql"),)),
            SMALL_CPU,
            "serve /models/tiny --enable-lora --max-loras 2 --lora-modules "
            f"sql=/models/pvc-loras-f0995aab/sql --served-model-name chat {CONTRACT} "
            "--enforce-eager --distributed-executor-backend uni "
            "--kv-cache-memory-bytes 67108864 --max-model-len 8192",
            id="on a CPU one place for adapters stays empty",
        ),
        pytest.param(
            config(accelerators=1, adapter_slots=4, adapter_rank=64),
            GPU,
            f"serve {LLAMA_DIR} --enable-lora --max-lora-rank 64 --max-loras 4 "
            f"--served-model-name chat {CONTRACT}",
            id="room for adapters that come later",
        ),
        pytest.param(
            config("tiny://", adapter_slots=4),
            SMALL_CPU,
            "serve /models/tiny --enable-lora --max-lora-rank 16 --max-loras 5 "
            f"--served-model-name chat {CONTRACT} "
            "--enforce-eager --distributed-executor-backend uni "
            "--kv-cache-memory-bytes 67108864 --max-model-len 8192",
            id="on a CPU one place more than there is room for",
        ),
        pytest.param(
            config(accelerators=1, traces_endpoint="http://otel:4318/v1/traces"),
            GPU,
            f"serve {LLAMA_DIR} --served-model-name chat {CONTRACT} "
            "--otlp-traces-endpoint http://otel:4318/v1/traces",
            id="traces go to the collector",
        ),
        pytest.param(
            config(accelerators=1, args=("--max-model-len", "8192", "--seed=7")),
            GPU,
            f"serve {LLAMA_DIR} --served-model-name chat {CONTRACT} --max-model-len 8192 --seed=7",
            id="the user's arguments come last",
        ),
        pytest.param(
            config(accelerators=1, args=("--tokenizer=org/t", "--spec-model", "hf://org/d@v1")),
            GPU,
            f"serve {LLAMA_DIR} --served-model-name chat {CONTRACT} "
            "--tokenizer=/models/hf-org-t-1f0e3962-texts --spec-model /models/hf-org-d-v1-b39a8c65",
            id="what arguments name is read from where it was fetched",
        ),
        pytest.param(
            config("tiny://"),
            SMALL_CPU,
            f"serve /models/tiny --served-model-name chat {CONTRACT} --enforce-eager "
            "--distributed-executor-backend uni --kv-cache-memory-bytes 67108864 "
            "--max-model-len 8192",
            id="the tiny model on a small CPU",
        ),
        pytest.param(
            config("tiny://", parallelism=Parallelism(tensor=2)),
            SMALL_CPU,
            f"serve /models/tiny --tensor-parallel-size 2 --served-model-name chat {CONTRACT} "
            "--enforce-eager --kv-cache-memory-bytes 67108864 --max-model-len 8192",
            id="tensor parallel on a CPU needs vLLM's own executor",
        ),
        pytest.param(
            config("tiny://", parallelism=Parallelism(pipeline=2)),
            SMALL_CPU,
            f"serve /models/tiny --pipeline-parallel-size 2 --served-model-name chat {CONTRACT} "
            "--kv-cache-memory-bytes 67108864 --max-model-len 8192",
            id="stages of a pipeline need vLLM's warm-up",
        ),
        pytest.param(
            config(),
            BIG_CPU,
            f"serve {LLAMA_DIR} --served-model-name chat {CONTRACT} --enforce-eager "
            "--kv-cache-memory-bytes 68719476736 --max-model-len auto",
            id="a real model on a big CPU gets a quarter of its memory for the KV cache",
        ),
        pytest.param(
            config("tiny://"),
            GPU,
            f"serve /models/tiny --served-model-name chat {CONTRACT} "
            "--kv-cache-memory-bytes 67108864 --max-model-len 8192",
            id="the tiny model leaves a GPU to its neighbours",
        ),
        pytest.param(
            config(
                "tiny://",
                args=("--max_model_len=512", "--no-enforce-eager", "--enable-log-requests"),
            ),
            SMALL_CPU,
            "serve /models/tiny --served-model-name chat "
            f"{CONTRACT.replace('--no-enable-log-requests ', '')} "
            "--distributed-executor-backend uni --kv-cache-memory-bytes 67108864 "
            "--max_model_len=512 --no-enforce-eager --enable-log-requests",
            id="what the user sets is not set twice",
        ),
    ],
)
def test_becomes_this_command_line(wishes: EngineConfig, machine: Machine, want: str) -> None:
    assert serve_arguments(wishes, machine, PATHS) == want.split()


@pytest.mark.parametrize(
    ("member", "rank"),
    [
        pytest.param(Member(0, "10.0.0.1", "10.0.0.1"), "0", id="the leader"),
        pytest.param(Member(1, "10.0.0.1", "10.0.0.2"), "1 --headless", id="a worker"),
    ],
)
def test_an_engine_over_nodes_has_its_part_here(member: Member, rank: str) -> None:
    wishes = config(accelerators=8, parallelism=Parallelism(tensor=8, pipeline=2, nodes=2))
    want = (
        f"serve {LLAMA_DIR} --tensor-parallel-size 8 --pipeline-parallel-size 2 "
        f"--served-model-name chat {CONTRACT} --distributed-executor-backend mp --nnodes 2 "
        "--node-rank RANK --master-addr 10.0.0.1 --master-port 29500"
    )
    number, *headless = rank.split()
    if headless:
        want = want.replace("--api-server-count 1 ", "")
    assert serve_arguments(wishes, GPU, PATHS, member) == [
        *want.replace("RANK", number).split(),
        *headless,
    ]


def test_an_engine_over_nodes_is_reached_at_the_address_of_its_pod() -> None:
    settings = environment(config(), GPU, {}, Member(1, "10.0.0.1", "10.0.0.2"))
    assert settings["VLLM_HOST_IP"] == "10.0.0.2"
    assert not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & settings.keys()


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        pytest.param("hf://org/model", "/models/hf-org-model-", id="hub"),
        pytest.param("hf://org/model@v1.0", "/models/hf-org-model-v1-0-", id="revision"),
        pytest.param("s3://bucket/some/path", "/models/s3-bucket-some-path-", id="bucket"),
        pytest.param("oci://ghcr.io/org/m:1", "/models/oci-ghcr-io-org-m-1-", id="image"),
        pytest.param("file:///data/llama", "/models/file-data-llama-", id="node"),
        pytest.param("pvc://claim/a/b", "/models/pvc-claim-", id="claim"),
        pytest.param("tiny://5m", "/models/tiny-5m", id="generated"),
    ],
)
def test_every_kind_of_source_is_served_from_the_model_directory(uri: str, want: str) -> None:
    assert serve_arguments(config(uri, accelerators=1), GPU, PATHS)[1].startswith(want)


@pytest.mark.parametrize(
    ("wishes", "machine", "error", "want"),
    [
        pytest.param(
            config(args=("--seed", "1", "--port", "80")),
            GPU,
            InvalidSpec,
            r"engine.args\[2\]: --port is reserved for Weir",
            id="an argument that opens a port",
        ),
        pytest.param(
            config(args=("extra=/x", "--seed", "1")),
            GPU,
            InvalidSpec,
            r"engine.args\[0\]: 'extra=/x' is no flag",
            id="a stray word, which vLLM would take for a value of ours",
        ),
        pytest.param(
            config(accelerators=2),
            SMALL_CPU,
            MachineUnfit,
            "this is vLLM's CPU build",
            id="accelerators that are not there",
        ),
        pytest.param(
            config(accelerators=2),
            NO_GPU,
            MachineUnfit,
            "sees no GPU: NVIDIA's driver finds no device; the pool asks for 2: .*runtimeClassName",
            id="the build for GPUs without the device that was asked for",
        ),
        pytest.param(
            config(accelerators=0),
            NO_GPU,
            MachineUnfit,
            "sees no GPU: .*; the pool asks for none: use an image with vLLM's CPU build",
            id="the build for GPUs where none was asked for",
        ),
        pytest.param(
            config(accelerators=2, parallelism=Parallelism(tensor=4)),
            GPU,
            InvalidSpec,
            "needs 4 accelerators per replica, the pool gives 2",
            id="more ranks than accelerators",
        ),
    ],
)
def test_refuses(wishes: EngineConfig, machine: Machine, error: type[Exception], want: str) -> None:
    with pytest.raises(error, match=want):
        serve_arguments(wishes, machine, PATHS)


def test_never_calls_home_and_never_leaves_the_machine() -> None:
    settings = environment(config(), GPU, {})
    assert settings["VLLM_NO_USAGE_STATS"] == settings["HF_HUB_OFFLINE"] == "1"
    assert settings["GLOO_SOCKET_IFNAME"] == settings["NCCL_SOCKET_IFNAME"] == "lo"


def test_a_gpu_engine_keeps_vllms_threads_and_processes() -> None:
    settings = environment(config(), GPU, {})
    assert not {"OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING"} & settings.keys()


def test_a_small_cpu_engine_runs_its_model_in_one_thread() -> None:
    settings = environment(config("tiny://"), SMALL_CPU, {})
    assert settings["OMP_NUM_THREADS"] == "1"
    assert settings["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_nothing_is_compiled_on_a_cpu() -> None:
    settings = environment(config("tiny://"), SMALL_CPU, {})
    assert (settings["TORCHDYNAMO_DISABLE"], settings["VLLM_USE_AOT_COMPILE"]) == ("1", "0")


def test_two_processes_on_a_cpu_keep_vllms_executor() -> None:
    wishes = config("tiny://", parallelism=Parallelism(tensor=2))
    settings = environment(wishes, SMALL_CPU, {})
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in settings
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_what_the_user_put_into_the_environment_stays() -> None:
    inherited = {"OMP_NUM_THREADS": "8", "HF_HUB_OFFLINE": "0", "HOME": "/tmp"}
    assert inherited.items() <= environment(config("tiny://"), SMALL_CPU, inherited).items()


def test_the_front_end_that_opens_ports_stays_off() -> None:
    assert environment(config(), GPU, {})["VLLM_USE_RUST_FRONTEND"] == "0"


def test_what_a_secret_or_the_image_may_not_set_is_refused_at_the_start_all_at_once() -> None:
    inherited = {"VLLM_API_KEY": "k", "VLLM_PLUGINS": "lora", "WEIR_RUN_DIR": "/run", "A": "b"}
    with pytest.raises(InvalidSpec) as caught:
        environment(config(), GPU, inherited)
    assert [str(each) for each in caught.value.faults] == [
        "environment VLLM_API_KEY: VLLM_API_KEY is reserved for Weir; leave it out: the sidecar "
        "authenticates; only it reaches the engine",
        "environment VLLM_PLUGINS: VLLM_PLUGINS leaves out 'weir', without which the engine is not "
        "fit for a pod: write it, too, like weir,lora_filesystem_resolver",
    ]


@pytest.mark.parametrize(("slots", "want"), [(0, None), (4, "1")])
def test_adapters_are_loaded_at_run_time_where_there_is_room_for_them(
    slots: int, want: str | None
) -> None:
    settings = environment(config(adapter_slots=slots), GPU, {})
    assert settings.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == want


def test_plugins_beside_weirs_are_loaded() -> None:
    inherited = {"VLLM_PLUGINS": "lora_filesystem_resolver,weir"}
    assert inherited.items() <= environment(config(), GPU, inherited).items()

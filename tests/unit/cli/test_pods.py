"""A pod template becomes local processes, or a refusal that says what to do instead."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from weir_cli.pods import Place, Probe, ProcessPlan, ReplicaPlan, expand, plan_replica, rewrite
from weir_core.errors import MachineUnfit

PLACE: Final = Place(
    name="chat-default-1",
    namespace="default",
    address="127.0.1.1",
    scratch=Path("/scratch/1"),
    models=Path("/cache/models"),
    secrets={("default", "hf"): {"HF_TOKEN": "t0ken"}},
    extra_env={"CUDA_VISIBLE_DEVICES": "3"},
)

RUN: Final = {"name": "run", "mountPath": "/run/weir"}
MODELS: Final = {"name": "models", "mountPath": "/models"}
TMP: Final = {"name": "tmp", "mountPath": "/tmp"}

POD: Final[dict[str, Any]] = {
    "spec": {
        "terminationGracePeriodSeconds": 90,
        "volumes": [
            {"name": "run", "emptyDir": {}},
            {"name": "models", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "initContainers": [
            {
                "name": "sidecar",
                "restartPolicy": "Always",
                "command": ["weir-sidecar"],
                "env": [
                    {
                        "name": "WEIR_POD_NAME",
                        "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
                    },
                    {"name": "WEIR_MODEL_NAME", "value": "tiny"},
                ],
                "volumeMounts": [RUN, TMP],
                "startupProbe": {
                    "httpGet": {"path": "/healthz", "port": 8001},
                    "periodSeconds": 1,
                    "failureThreshold": 30,
                },
            },
            {
                "name": "model",
                "command": ["weir-engine", "fetch"],
                "envFrom": [{"secretRef": {"name": "hf"}}],
                "volumeMounts": [MODELS],
            },
        ],
        "containers": [
            {
                "name": "engine",
                "command": ["weir-engine", "serve", "--plugin=/models/x"],
                "env": [{"name": "HOME", "value": "/tmp"}],
                "volumeMounts": [RUN, MODELS, TMP, {"name": "shm", "mountPath": "/dev/shm"}],
                "lifecycle": {"preStop": {"exec": {"command": ["weir-engine", "drain"]}}},
                "livenessProbe": {
                    "exec": {"command": ["weir-engine", "alive"]},
                    "periodSeconds": 10,
                    "timeoutSeconds": 30,
                    "failureThreshold": 6,
                },
            }
        ],
    }
}
MACHINE: Final = {"WEIR_HOST": "127.0.1.1", "CUDA_VISIBLE_DEVICES": "3"}
WEIGHTS: Final = {"WEIR_MODEL_DIR": "/cache/models"}
RUN_DIR: Final = {"WEIR_RUN_DIR": "/scratch/1/run"}


def pod(**engine: Any) -> Mapping[str, Any]:
    """Return a pod of one engine container with these fields."""
    volumes = engine.pop("volumes", [])
    container = {"name": "engine", "command": ["weir-engine", "serve"], **engine}
    return {"spec": {"volumes": volumes, "containers": [container]}}


def test_a_replica_tells_its_state_in_its_run_directory() -> None:
    plan = plan_replica(POD, PLACE, service="chat", pool="default")
    assert plan.admin_socket == "/scratch/1/run/admin.sock"


def test_plans_the_whole_pod() -> None:
    assert plan_replica(POD, PLACE, "chat", "default") == ReplicaPlan(
        name="chat-default-1",
        service="chat",
        pool="default",
        address="127.0.1.1",
        grace_period_s=90.0,
        directories=(
            Path("/cache/models"),
            Path("/scratch/1/run"),
            Path("/scratch/1/models"),
            Path("/scratch/1/tmp"),
            Path("/scratch/1/shm"),
        ),
        links={},
        processes=(
            ProcessPlan(
                name="sidecar",
                role="sidecar",
                argv=(sys.executable, "-m", "weir_sidecar"),
                env={
                    **MACHINE,
                    **RUN_DIR,
                    **WEIGHTS,
                    "TMPDIR": "/scratch/1/tmp",
                    "WEIR_POD_NAME": "chat-default-1",
                    "WEIR_MODEL_NAME": "tiny",
                },
                startup=Probe("/healthz", 8001, period_s=1, timeout_s=1, failure_threshold=30),
            ),
            ProcessPlan(
                name="model",
                role="init",
                argv=(sys.executable, "-m", "weir_engine", "fetch"),
                env={**MACHINE, **WEIGHTS, "HF_TOKEN": "t0ken"},
            ),
            ProcessPlan(
                name="engine",
                role="main",
                argv=(sys.executable, "-m", "weir_engine", "serve", "--plugin=/cache/models/x"),
                env={
                    **MACHINE,
                    **RUN_DIR,
                    **WEIGHTS,
                    "TMPDIR": "/scratch/1/tmp",
                    "HOME": "/scratch/1/tmp",
                },
                pre_stop=(sys.executable, "-m", "weir_engine", "drain"),
                liveness=Probe(
                    *("", 0),
                    period_s=10,
                    timeout_s=30,
                    failure_threshold=6,
                    command=(sys.executable, "-m", "weir_engine", "alive"),
                ),
            ),
        ),
    )


@pytest.mark.parametrize(
    "probe",
    [
        pytest.param({"exec": {"command": ["sh", "-c", "true"]}}, id="a program of the image"),
        pytest.param({"tcpSocket": {"port": 8000}}, id="of another kind"),
        pytest.param({}, id="nothing"),
    ],
)
def test_a_probe_that_only_a_cluster_can_make_is_left_out(probe: dict[str, Any]) -> None:
    (engine,) = plan_replica(pod(livenessProbe=probe), PLACE, "chat", "default").processes
    assert engine.liveness is None


def test_links_weights_on_this_machine_into_the_cache() -> None:
    template = pod(
        volumes=[{"name": "weights", "hostPath": {"path": "/srv/llama", "type": "Directory"}}],
        volumeMounts=[{"name": "weights", "mountPath": "/models/file-llama-1a2b"}],
        args=["--tokenizer", "/models/file-llama-1a2b"],
    )
    plan = plan_replica(template, PLACE, "chat", "default")
    assert plan.links == {Path("/cache/models/file-llama-1a2b"): Path("/srv/llama")}
    assert plan.processes[0].argv[-1] == "/cache/models/file-llama-1a2b"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("/tmp", "/here/tmp", id="the mount itself"),
        pytest.param("/tmp/a/b", "/here/tmp/a/b", id="a path below it"),
        pytest.param("/tmpfile", "/tmpfile", id="a longer name is another path"),
        pytest.param("/run/weir/engine.sock", "/here/run/engine.sock", id="a socket"),
        pytest.param("/run/other", "/run/other", id="not mounted"),
        pytest.param("--dir=/tmp/x", "--dir=/here/tmp/x", id="the value of a flag"),
        pytest.param("key=/tmp/x", "key=/tmp/x", id="something else with an equals sign"),
        pytest.param("see /tmp/x", "see /tmp/x", id="in the middle of a text"),
        pytest.param("/tmp/deep/x", "/elsewhere/x", id="the longest mount wins"),
    ],
)
def test_rewrites_paths_that_start_with_a_mount(text: str, want: str) -> None:
    mounts = {
        "/tmp": Path("/here/tmp"),
        "/tmp/deep": Path("/elsewhere"),
        "/run/weir": Path("/here/run"),
    }
    assert rewrite(text, mounts) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("$(POD)-x", "chat-1-x", id="known"),
        pytest.param("$(NOBODY)", "$(NOBODY)", id="unknown stays"),
        pytest.param("$$(POD)", "$(POD)", id="escaped"),
        pytest.param("$POD", "$POD", id="not the shell's syntax"),
    ],
)
def test_expands_variables_as_kubernetes_does(text: str, want: str) -> None:
    assert expand(text, {"POD": "chat-1"}) == want


def test_an_optional_secret_may_be_missing() -> None:
    reference = {"name": "absent", "key": "k", "optional": True}
    template = pod(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": reference}}])
    assert "TOKEN" not in plan_replica(template, PLACE, "chat", "default").processes[0].env


def test_takes_a_value_from_a_secret_in_the_files() -> None:
    reference = {"name": "hf", "key": "HF_TOKEN"}
    template = pod(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": reference}}])
    assert plan_replica(template, PLACE, "chat", "default").processes[0].env["TOKEN"] == "t0ken"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(
            pod(volumes=[{"name": "w", "persistentVolumeClaim": {"claimName": "c"}}]),
            "pvc:// names a claim of a cluster; with `weir up` use file:///PATH",
            id="a claim",
        ),
        pytest.param(
            pod(volumes=[{"name": "w", "image": {"reference": "r"}}]),
            "oci:// needs a cluster's image volumes; with `weir up` use hf://, s3:// or file:///",
            id="an image volume",
        ),
        pytest.param(
            pod(volumes=[{"name": "w", "configMap": {"name": "c"}}]),
            "volume 'w' of kind configMap exists only in a cluster",
            id="a config map",
        ),
        pytest.param(
            pod(env=[{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
            "Secret 's' in namespace 'default' is not in the files; add a file that declares it",
            id="a secret that no file declares",
        ),
        pytest.param(
            pod(env=[{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "k"}}}]),
            "env T: Secret 'hf' has no key 'k'",
            id="a key the secret does not have",
        ),
        pytest.param(
            pod(env=[{"name": "T", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]),
            "env T: valueFrom metadata.uid exists only in a cluster; give a value instead",
            id="a field only a cluster knows",
        ),
        pytest.param(
            pod(name="proxy", command=["envoy"]),
            "container 'proxy' runs from an image of its own, which `weir up` cannot start",
            id="a foreign program",
        ),
        pytest.param(
            pod(command=[]),
            "container 'engine' runs from an image of its own",
            id="an image's own entry point",
        ),
    ],
)
def test_refuses_what_only_a_cluster_has(template: Mapping[str, Any], message: str) -> None:
    with pytest.raises(MachineUnfit) as caught:
        plan_replica(template, PLACE, "chat", "default")
    assert message in str(caught.value)

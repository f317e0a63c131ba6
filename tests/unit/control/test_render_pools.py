"""Pools differ in more than their accelerators: image, arguments, sizes and pod are their own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import service
from weir_core.errors import InvalidSpec
from weir_core.wire.cors import Cors
from weir_core.wire.engine import EngineConfig
from weir_operator.render import pod_templates
from weir_operator.revisions import spec_digest

Manifest = dict[str, Any]


def two(amd: Manifest, spec: Manifest | None = None, gpus: int = 1) -> Manifest:
    """Return a spec of two pools, one of which has something of its own."""
    nvidia = {"name": "nvidia", "accelerator": {"count": gpus}}
    pools = [nvidia, {"name": "amd", "replicas": 1, **amd}]
    return {"pools": pools, **(spec or {})}


def engine(spec: Manifest, pool: str) -> Manifest:
    template = pod_templates(service(spec))[pool]
    found: Manifest = template["spec"]["containers"][0]
    return found


def config(spec: Manifest, pool: str) -> EngineConfig:
    env = {each["name"]: each.get("value", "") for each in engine(spec, pool)["env"]}
    return EngineConfig.model_validate_json(env["WEIR_ENGINE_CONFIG"])


def test_a_pool_without_accelerators_runs_the_build_for_cpus() -> None:
    spec = two({"accelerator": {"count": 0}})
    assert engine(spec, "nvidia")["image"] == "weir-engine:latest"
    assert engine(spec, "amd")["image"] == "weir-engine-cpu:latest"


@pytest.mark.parametrize(("count", "shown"), [(0, "void"), (1, None)])
def test_an_engine_sees_no_gpu_unless_its_pool_asks_for_one(count: int, shown: str | None) -> None:
    """The image says `all`, which counts where NVIDIA's runtime is the node's default."""
    variables = engine(two({"accelerator": {"count": count}}), "amd")["env"]
    env = {each["name"]: each.get("value") for each in variables}
    assert env.get("NVIDIA_VISIBLE_DEVICES") == shown


def test_the_users_own_word_on_visible_gpus_counts() -> None:
    own = {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}]}
    variables = engine(two({"accelerator": {"count": 0}, "engine": own}), "amd")["env"]
    assert [each.get("value") for each in variables if each["name"].startswith("NVIDIA")] == ["0"]


def test_a_pools_image_is_that_of_its_engines_and_downloads() -> None:
    spec = two({"engine": {"image": "vllm:rocm"}}, {"engine": {"image": "vllm:cuda"}})
    templates = pod_templates(service(spec))
    images = {
        name: {each["image"] for each in template["spec"]["containers"]}
        | {each["image"] for each in template["spec"]["initContainers"][1:]}
        for name, template in templates.items()
    }
    assert images == {"nvidia": {"vllm:cuda"}, "amd": {"vllm:rocm"}}


def test_a_pools_arguments_come_after_those_of_the_service() -> None:
    own = {"args": ["--max-model-len=8192", "--enforce-eager"]}
    spec = two({"engine": own}, {"engine": {"args": ["--max-model-len=32768"]}})
    assert config(spec, "nvidia").args == ("--max-model-len=32768",)
    assert config(spec, "amd").args == (
        *("--max-model-len=32768", "--max-model-len=8192", "--enforce-eager"),
    )


def test_a_pools_variable_takes_the_place_of_the_services() -> None:
    shared = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    own = [{"name": "A", "value": "3"}, {"name": "C", "value": "4"}]
    spec = two({"engine": {"env": own}}, {"engine": {"env": shared}})
    for container in ("containers", "initContainers"):
        pod = pod_templates(service(spec))["amd"]["spec"]
        env = {each["name"]: each.get("value") for each in pod[container][-1]["env"]}
        assert (env["A"], env["B"], env["C"]) == ("3", "2", "4")


def test_of_a_pools_sizes_only_those_that_it_says_differ() -> None:
    spec = two(
        {"accelerator": {"count": 8}, "engine": {"parallelism": {"tensor": 4}}},
        {"engine": {"parallelism": {"tensor": 2, "pipeline": 2}}},
        gpus=4,
    )
    assert config(spec, "nvidia").parallelism.size == 4
    amd = config(spec, "amd").parallelism
    assert (amd.tensor, amd.pipeline) == (4, 2)


def test_a_pools_accelerators_are_held_against_its_own_sizes() -> None:
    spec = two({"accelerator": {"count": 1}, "engine": {"parallelism": {"tensor": 2}}})
    with pytest.raises(InvalidSpec) as caught:
        pod_templates(service(spec))
    assert caught.value.field == "spec.pools[1].accelerator.count"


def test_a_pools_patch_is_merged_after_the_services() -> None:
    shared = {"spec": {"priorityClassName": "shared", "schedulerName": "mine"}}
    own = {"metadata": {"labels": {"team": "x"}}, "spec": {"priorityClassName": "own"}}
    spec = two({"podTemplate": own}, {"podTemplate": shared})
    templates = pod_templates(service(spec))
    assert templates["nvidia"]["spec"]["priorityClassName"] == "shared"
    assert templates["amd"]["spec"]["priorityClassName"] == "own"
    assert templates["amd"]["spec"]["schedulerName"] == "mine"
    assert templates["amd"]["metadata"]["labels"]["team"] == "x"
    assert "team" not in templates["nvidia"]["metadata"]["labels"]


def test_a_pools_sidecars_let_browsers_do_what_its_engines_let_them() -> None:
    spec = two({"engine": {"args": ['--allowed-origins=["*"]']}})
    told = {}
    for name, template in pod_templates(service(spec)).items():
        sidecar = template["spec"]["initContainers"][0]
        told[name] = [each["value"] for each in sidecar["env"] if each["name"] == "WEIR_CORS"]
    assert told["nvidia"] == []
    assert Cors.decode(told["amd"][0]) == Cors(("*",))


def grace(seconds: object) -> Manifest:
    return {"podTemplate": {"spec": {"terminationGracePeriodSeconds": seconds}}}


@pytest.mark.parametrize(
    ("amd", "field"),
    [
        pytest.param(
            {"engine": {"args": ["--seed=1", "--port=1"]}},
            "spec.pools[1].engine",
            id="a flag that is Weir's",
        ),
        pytest.param(
            {"engine": {"args": ["--allowed-origins=x"]}},
            "spec.pools[1].engine.args[0]",
            id="an argument that is none",
        ),
        pytest.param(
            {"engine": {"env": [{"name": "WEIR_RUN_DIR", "value": "/x"}]}},
            "spec.pools[1].engine.env[0].name",
            id="a variable that is Weir's",
        ),
        pytest.param(
            {"podTemplate": {"kind": "Pod"}}, "spec.pools[1].podTemplate.kind", id="no template"
        ),
        pytest.param(
            {"podTemplate": {"spec": {"volumes": [{"name": "run", "$patch": "delete"}]}}},
            "spec.pools[1].podTemplate.spec.volumes",
            id="a part that must stay",
        ),
        pytest.param(
            {"podTemplate": {"metadata": {"labels": {"serving.weir.dev/pool": "x"}}}},
            "spec.pools[1].podTemplate.metadata.labels.serving.weir.dev/pool",
            id="a label that must stay",
        ),
        pytest.param(
            grace(0),
            "spec.pools[1].podTemplate.spec.terminationGracePeriodSeconds",
            id="no grace period",
        ),
    ],
)
def test_names_the_pools_field_that_is_wrong(amd: Manifest, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        pod_templates(service(two(amd, {"engine": {"args": ["--a", "--b"]}})))
    assert field in str(caught.value)


def test_a_change_of_one_pools_engine_rolls_no_other() -> None:
    before, after = service(two({})), service(two({"engine": {"args": ["--seed=1"]}}))
    nvidia, amd = before.spec.hardware_pools
    assert spec_digest(before, nvidia) == spec_digest(after, nvidia)
    assert spec_digest(before, amd) != spec_digest(after, after.spec.hardware_pools[1])

"""What a container is given arrives as the user wrote it, and nobody gets another's credentials."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.control.builders import service
from weir_core.errors import InvalidSpec
from weir_core.wire.cors import Cors
from weir_core.wire.engine import EngineConfig
from weir_operator.render import pod_templates

Manifest = dict[str, Any]


def containers(spec: Manifest) -> dict[str, Manifest]:
    """Return the containers of the pods of a service, by name."""
    (template,) = pod_templates(service(spec)).values()
    pod = template["spec"]
    return {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}


def as_the_kubelet_expands(text: str, env: dict[str, str]) -> str:
    """Return a variable's value in the container (k8s.io/kubernetes, forked/golang/expansion)."""
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda found: "$" if found[1] == "$" else env.get(found[2], found[0]),
        text,
    )


DOLLARS = ["$(HOME)", "$$(HOME)", "$$$(HOME)", "$$", "$", "$HOME", "a$b$", "$(", "plain"]


@pytest.mark.parametrize("argument", DOLLARS)
def test_an_argument_reaches_the_engine_as_it_is_written(argument: str) -> None:
    args = ("--chat-template", argument)
    engine = containers({"engine": {"args": list(args)}})["engine"]
    env = {each["name"]: each.get("value", "") for each in engine["env"]}
    told = as_the_kubelet_expands(env["WEIR_ENGINE_CONFIG"], env)
    assert EngineConfig.model_validate_json(told).args == args


@pytest.mark.parametrize("part", ["sidecar", "engine"])
@pytest.mark.parametrize("word", DOLLARS)
def test_the_collectors_address_is_as_it_is_written(word: str, part: str) -> None:
    endpoint = f"http://collector/{word}"
    variables = containers({"tracing": {"endpoint": endpoint}})[part]["env"]
    env = {each["name"]: each.get("value", "") for each in variables}
    assert as_the_kubelet_expands(env["OTEL_EXPORTER_OTLP_ENDPOINT"], env) == endpoint
    resource = as_the_kubelet_expands(
        env["OTEL_RESOURCE_ATTRIBUTES"], {**env, "OTEL_POD_NAME": "chat-1"}
    )
    assert "k8s.pod.name=chat-1," in resource


@pytest.mark.parametrize(
    ("args", "want"),
    [
        pytest.param([], None, id="not set where the engine is told nothing"),
        pytest.param(['--allowed-origins=["*"]'], Cors(("*",)), id="any origin"),
    ],
)
def test_the_sidecar_is_told_which_web_pages_may_call(args: list[str], want: Cors | None) -> None:
    variables = containers({"engine": {"args": args}})["sidecar"]["env"]
    told = [each["value"] for each in variables if each["name"] == "WEIR_CORS"]
    assert [Cors.decode(text) for text in told] == ([want] if want else [])


def sources(*uris_and_secrets: tuple[str, str | None]) -> Manifest:
    """Return a spec with a model and adapters from these sources."""
    written = [
        {"uri": uri, **({"secretRef": {"name": secret}} if secret else {})}
        for uri, secret in uris_and_secrets
    ]
    adapters = [{"name": f"a{i}", "source": source} for i, source in enumerate(written[1:])]
    return {"model": {"name": "m", "source": written[0], "adapters": adapters}}


@pytest.mark.parametrize(
    ("spec", "secrets"),
    [
        pytest.param(sources(("hf://o/m", "a"), ("hf://o/l", "a")), ["a"], id="one for all"),
        pytest.param(
            sources(("s3://b/m", "b"), ("hf://o/l", "a")), ["b", "a"], id="one for each scheme"
        ),
        pytest.param(sources(("hf://o/m", None), ("hf://o/l", "a")), ["a"], id="one that needs it"),
    ],
)
def test_the_download_gets_the_secrets_of_its_sources(spec: Manifest, secrets: list[str]) -> None:
    given = containers(spec)
    for name in ("model", "adapters"):
        assert [each["secretRef"]["name"] for each in given[name]["envFrom"]] == secrets


def test_two_secrets_that_would_replace_each_others_keys_are_refused() -> None:
    spec = sources(("hf://o/m", "a"), ("s3://b/l", "b"), ("hf://o/l", "c"))
    with pytest.raises(InvalidSpec) as caught:
        containers(spec)
    assert caught.value.field == "spec.model.adapters[1].source.secretRef"
    assert "c is not a, which spec.model.source.secretRef names" in caught.value.message


def test_what_the_engines_arguments_name_is_fetched_beside_a_mounted_model() -> None:
    spec = sources(("pvc://claim/m", None))
    assert "model" not in containers(spec)
    given = containers({**spec, "engine": {"args": ["--tokenizer=org/tokenizer"]}})
    assert given["model"]["command"] == ["weir-engine", "fetch"]
    mounted = {each["name"]: each.get("readOnly") for each in given["engine"]["volumeMounts"]}
    assert mounted["models"] is True


def test_what_the_engines_arguments_name_and_nothing_can_fetch_is_refused() -> None:
    spec = {"engine": {"args": ["--spec-model=oci://registry/draft"]}}
    with pytest.raises(InvalidSpec) as caught:
        containers(spec)
    assert caught.value.field == "spec.engine.args[0]"

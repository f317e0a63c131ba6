"""What the user wrote becomes resources, or an error that names file, document and field."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from weir_cli.documents import WEIR_KINDS, load
from weir_core.api.model import URI_SAYS
from weir_core.api.reading import ALSO_CALLED
from weir_core.errors import InvalidSpec

ROOT: Final = Path(__file__).parents[3]
EXAMPLES: Final = sorted((ROOT / "examples").glob("*.yaml"))

SERVICE: Final = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {name: tiny, source: {uri: "tiny://"}}
"""
SECRET: Final = """\
apiVersion: v1
kind: Secret
metadata: {name: keys}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "weir.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted(path: Path) -> None:
    load([path])


def test_the_examples_work_together() -> None:
    # priority.yaml has classes of its own: it stands alone.
    found = load([path for path in EXAMPLES if path.name != "priority.yaml"])
    assert {service.metadata.name for service in found.services} >= {"quickstart", "llama-70b"}
    assert [c.metadata.name for c in found.classes] == ["interactive", "standard", "batch"]
    assert {t.spec.api_key_secret_ref.name for t in found.tenants} == {
        name for _, name in found.secrets
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            SERVICE + "  pools: [{name: a}, {name: b, replicas: -1}]",
            "weir.yaml: document 1 (InferenceService chat): spec.pools[1].replicas: -1 is out of "
            "range; write 0 or more",
            id="a value out of range, by its path",
        ),
        pytest.param(
            "---\n" + SERVICE + "---\n" + SERVICE.replace("chat", "two") + "  replica: 2",
            "weir.yaml: document 2 (InferenceService two): spec.replica: unknown field; did you "
            "mean replicas?",
            id="an unknown field in the second document",
        ),
        pytest.param(
            SERVICE + "  tolerations: []",
            "weir.yaml: document 1 (InferenceService chat): spec.tolerations: unknown field; did "
            "you mean spec.pools[].tolerations or spec.scaling.gateways.tolerations?",
            id="a field that belongs elsewhere",
        ),
        pytest.param(
            SERVICE.replace("model:", "modle:") + "  pools: [{name: a, accelerator: {cuont: 0}}]",
            "weir.yaml: document 1 (InferenceService chat): spec.pools[0].accelerator.cuont: "
            "unknown field; did you mean count?\n"
            "weir.yaml: document 1 (InferenceService chat): spec.modle: unknown field; did you "
            "mean model?",
            id="misspelt fields, of which none is called missing",
        ),
        pytest.param(
            f"{SERVICE}  a: 1\n  replicas: two\n---\n{SERVICE.replace('chat', 'two')}  b: 1",
            "weir.yaml: document 1 (InferenceService chat): spec.a: unknown field; leave it out\n"
            "weir.yaml: document 1 (InferenceService chat): spec.replicas: 'two' is not a whole "
            "number\n"
            "weir.yaml: document 2 (InferenceService two): spec.b: unknown field; leave it out",
            id="mistakes in two documents",
        ),
        pytest.param(
            SERVICE.replace("tiny://", "ftp://x"),
            "weir.yaml: document 1 (InferenceService chat): spec.model.source.uri: 'ftp://x' is "
            f"{URI_SAYS.removeprefix('is ')}",
            id="a source that nothing can read",
        ),
        pytest.param(
            SERVICE + "  replicas: 1\n  scaling: {maxReplicas: 2}",
            "weir.yaml: document 1 (InferenceService chat): spec: replicas and scaling exclude "
            "each other; leave one of them out, or write scaling.mode: "
            "Advise if another autoscaler sets replicas",
            id="a contradiction",
        ),
        pytest.param(
            SERVICE + "  podTemplate: {spec: {volumes: [{name: run, $patch: delete}]}}",
            "weir.yaml: document 1 (InferenceService chat): spec.podTemplate.spec.volumes: the "
            "volume `run` must stay",
            id="what only shows in the pods",
        ),
        pytest.param(
            SERVICE.replace("tiny://", "file://models"),
            "weir.yaml: document 1 (InferenceService chat): spec.model.source.uri: file://models "
            "is not absolute; write file:///PATH",
            id="a source that names nothing",
        ),
        pytest.param(
            SERVICE.replace("model: {name: tiny, ", "model: {").replace("  model", "  model"),
            "weir.yaml: document 1 (InferenceService chat): spec.model.name: is missing; write it "
            "(Name clients send as `model`)",
            id="a missing field",
        ),
        pytest.param(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}",
            "weir.yaml: document 1: kind: 'ConfigMap' is not a kind Weir knows (InferenceService, "
            "InferencePriorityClass, InferenceTenant, Secret)",
            id="an unknown kind",
        ),
        pytest.param(
            SERVICE.replace("v1alpha1", "v1"),
            "weir.yaml: document 1: apiVersion: 'serving.weir.dev/v1' is not Weir's; write "
            "serving.weir.dev/v1alpha1",
            id="another version",
        ),
        pytest.param(
            SERVICE.partition("\n")[2],
            "weir.yaml: document 1: apiVersion: is missing; write serving.weir.dev/v1alpha1",
            id="no version",
        ),
        pytest.param(
            SERVICE.replace("kind: InferenceService", "kind: inferenceservice"),
            "weir.yaml: document 1: kind: 'inferenceservice' is not a kind Weir knows "
            "(InferenceService, InferencePriorityClass, InferenceTenant, Secret); did you mean "
            "InferenceService?",
            id="a kind in small letters",
        ),
        pytest.param(
            SERVICE.replace("kind: InferenceService\n", ""),
            "weir.yaml: document 1: kind: is missing; write one of InferenceService, "
            "InferencePriorityClass, InferenceTenant, Secret",
            id="no kind",
        ),
        pytest.param(
            SERVICE.replace("metadata: {name: chat}\n", ""),
            "weir.yaml: document 1 (InferenceService): metadata: is missing; write it, like "
            "{name: chat}",
            id="no metadata",
        ),
        pytest.param(
            "- a list",
            "weir.yaml: document 1: must be an object with apiVersion, kind and metadata",
            id="not an object",
        ),
        pytest.param(
            SERVICE + "---\n" + SERVICE,
            "weir.yaml: document 2: the same object as {folder}/weir.yaml: document 1; keep one of "
            "them",
            id="the same object twice",
        ),
        pytest.param(
            SECRET + "data: {a: '%%%'}",
            "weir.yaml: document 1: data.a: is not base64 text; write it under stringData",
            id="a Secret that is not base64",
        ),
    ],
)
def test_refuses(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load([written(tmp_path, text)])
    wanted = [f"{tmp_path}/{line}" for line in message.splitlines()]
    told = [str(fault) for fault in caught.value.faults]
    assert told == [line.replace("{folder}", str(tmp_path)) for line in wanted]


@pytest.mark.parametrize(
    ("written_as", "told"),
    [
        pytest.param(
            "gpus: 4",
            "spec.gpus: unknown field; did you mean spec.pools[].accelerator.count?",
            id="GPUs of the service",
        ),
        pytest.param(
            "containers: [{name: engine}]",
            "spec.containers: unknown field; did you mean spec.podTemplate.spec.containers?",
            id="a field of pods",
        ),
        pytest.param(
            "maxReplicas: 4",
            "spec.maxReplicas: unknown field; did you mean spec.scaling.maxReplicas?",
            id="a field of an HPA, which is spelt like another one, too",
        ),
        pytest.param(
            "predictor: {model: {}}",
            "spec.predictor: unknown field; did you mean spec.model.source.uri?",
            id="a field of KServe",
        ),
        pytest.param(
            "engine: {parallelism: {tensorParallelSize: 2}}",
            "spec.engine.parallelism.tensorParallelSize: unknown field; did you mean "
            "spec.engine.parallelism.tensor?",
            id="a word of vLLM's",
        ),
        pytest.param(
            "pools: [{name: gpu, resources: {cpu: 4}}]",
            "spec.pools[0].resources.cpu: unknown field; did you mean "
            "spec.pools[].resources.requests?",
            id="resources neither asked for nor bounded",
        ),
        pytest.param(
            "admission: {maxBodyBytes: 32Mi}",
            "spec.admission.maxBodyBytes: '32Mi' is not a whole number; write 33554432",
            id="a number with a unit",
        ),
        pytest.param(
            "pools: [{name: gpu, accelerator: 4}]",
            "spec.pools[0].accelerator: 4 is not an object; write {count: 4}",
            id="a number for an object",
        ),
    ],
)
def test_what_is_written_as_elsewhere_is_told_as_it_is_here(
    written_as: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load([written(tmp_path, f"{SERVICE}  {written_as}")])
    where = f"{tmp_path}/weir.yaml: document 1 (InferenceService chat): "
    assert [str(fault) for fault in caught.value.faults] == [where + told]


def test_a_source_by_its_bare_uri_is_told_its_field(tmp_path: Path) -> None:
    text = SERVICE.replace('{uri: "tiny://"}', "hf://o/m")
    with pytest.raises(InvalidSpec, match=r"is not an object; write \{uri: hf://o/m\}"):
        load([written(tmp_path, text)])


def test_every_field_that_is_called_otherwise_elsewhere_exists_here() -> None:
    text = "".join(str(each.model_json_schema()) for each in WEIR_KINDS.values())
    for path in {path for paths in ALSO_CALLED.values() for path in paths}:
        name = path.partition(".spec.")[0].rpartition(".")[2]
        assert f"'{name}'" in text, path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: [", "is not YAML: line 1, column 5: ", id="broken YAML"),
        pytest.param("a: 1\na: 2", "key 'a' is written twice", id="a key written twice"),
        pytest.param("a:\n\tb: 1", "indent with spaces, not with tabs", id="tabs"),
        pytest.param("a: 1\nb 2\nc: 3", "has a key without `: `", id="no colon"),
        pytest.param("a: 1\n  b: 2", "is indented unlike its neighbours", id="wrong indentation"),
        pytest.param("a: {b: 1\nc: 2", "a `{` above is not closed", id="an open brace"),
    ],
)
def test_refuses_what_is_not_yaml_and_names_the_line(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSpec, match=message) as caught:
        load([written(tmp_path, text)])
    assert "line" in str(caught.value)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"absent.yaml: cannot be read: No such file"):
        load([tmp_path / "absent.yaml"])


def test_decodes_a_secret_and_keeps_its_values_out_of_errors(tmp_path: Path) -> None:
    path = written(tmp_path, SECRET + "data: {a: c2VjcmV0}\nstringData: {b: plain}")
    assert load([path]).secrets == {("default", "keys"): {"a": "secret", "b": "plain"}}


def test_skips_empty_documents(tmp_path: Path) -> None:
    found = load([written(tmp_path, "# only a comment\n---\n" + SERVICE + "---\n")])
    assert [service.metadata.name for service in found.services] == ["chat"]


@pytest.mark.parametrize(
    ("yaml", "want"),
    [
        pytest.param("2026-01-13", "2026-01-13", id="a date is text"),
        pytest.param("2026-13-01", "2026-13-01", id="and what looks like one, too"),
        pytest.param('"\\uD83D\\uDE00"', "\U0001f600", id="two halves are a character"),
        pytest.param("schlüssel", "schlüssel", id="letters outside ASCII"),
    ],
)
def test_reads_values_as_kubectl_does(yaml: str, want: str, tmp_path: Path) -> None:
    annotated = f"name: chat, annotations: {{a: {yaml}, 1: b, true: c}}"
    (service,) = load([written(tmp_path, SERVICE.replace("name: chat", annotated))]).services
    assert service.metadata.annotations == {"a": want, "1": "b", "true": "c"}


def test_aliases_and_merged_keys_are_values_as_any(tmp_path: Path) -> None:
    pools = "  pools: [&a {name: a, replicas: 1, accelerator: {count: 0}}, {<<: *a, name: b}]\n"
    (service,) = load([written(tmp_path, SERVICE + pools)]).services
    assert [pool.name for pool in service.spec.pools] == ["a", "b"]
    assert {pool.accelerator.count for pool in service.spec.pools} == {0}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_reads_what_other_editors_save(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "weir.yaml"
    path.write_text(SERVICE, encoding=encoding)
    assert len(load([path]).services) == 1


def test_reads_a_pipe_to_its_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w") as pipe:
            pipe.write(SERVICE)
        assert len(load([Path(f"/dev/fd/{reader}")]).services) == 1
    finally:
        os.close(reader)


@pytest.mark.parametrize("tag", ["binary", "set", "omap", "timestamp", "python/name:os.system"])
def test_refuses_types_that_json_lacks(tag: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"weir\.yaml: line 6, column 12"):
        load([written(tmp_path, SERVICE + f"  routing: !!{tag} x\n")])


def test_what_is_wrong_with_a_value_does_not_quote_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="does not fit its type, int") as caught:
        load([written(tmp_path, SECRET + "stringData: {a: !!int sk-secret}")])
    assert "sk-secret" not in str(caught.value)

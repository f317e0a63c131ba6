"""What the documents show to be pasted or typed is taken: specs, chart values, options."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import yaml

from weir_core.api.crd import structural
from weir_core.api.inferenceservice import InferenceService, InferenceServiceSpec
from weir_core.api.reading import read
from weir_core.api.tenant import InferenceTenant
from weir_core.wire.access import AccessLine
from weir_core.wire.errors import ErrorShape, ending_event

ROOT: Final = Path(__file__).parents[3]
DOCUMENTS: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
API: Final = "serving.weir.dev/v1alpha1"
OF_OTHERS: Final = frozenset({"externalRules", "receivers"})
"""Settings of other programs: prometheus-adapter, the OpenTelemetry Collector."""
MODEL: Final = {"name": "tiny", "source": {"uri": "tiny://"}}


class Shown(NamedTuple):
    """A part of a document."""

    document: Path
    text: str

    def __str__(self) -> str:
        """Return the document and how the part begins."""
        return f"{self.document.name}: {' '.join(self.text.split())[:50]}"


def shown(language: str) -> list[Shown]:
    """Return the blocks of a language."""
    return [
        Shown(document, text)
        for document in DOCUMENTS
        for found, text in BLOCK.findall(document.read_text())
        if found == language
    ]


def service(part: dict[str, Any]) -> dict[str, Any]:
    """Return an InferenceService that has a part as a document shows it."""
    metadata = {"name": "chat", "namespace": "ai", **part.get("metadata", {})}
    spec = part.get("spec", {})
    return {
        "apiVersion": API,
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {**spec, "model": {**MODEL, **spec.get("model", {})}},
    }


@pytest.mark.parametrize("block", shown("yaml"), ids=str)
def test_yaml_is_a_resource_or_values_of_the_chart(block: Shown) -> None:
    part = yaml.safe_load(block.text)
    if part.get("apiVersion", API) != API:
        assert part["kind"] not in {"InferenceService", "InferenceTenant"}
    elif part.get("kind") == "InferenceTenant":
        read(InferenceTenant, part)
    elif part.keys() <= structural(InferenceServiceSpec)["properties"].keys():
        read(InferenceService, service({"spec": part}))
    elif part.keys() & {"metadata", "spec"}:
        read(InferenceService, service(part))
    elif not part.keys() & OF_OTHERS:
        values = yaml.safe_load((ROOT / "helm/weir/values.yaml").read_text())
        assert [name for name, each in part.items() if not each.keys() <= values[name].keys()] == []


def test_the_line_of_the_access_log_is_one_that_a_sidecar_writes() -> None:
    (line,) = (each.text for each in shown("json") if each.document.name == "watch.md")
    msgspec.json.decode(line, type=AccessLine)
    assert tuple(json.loads(line)) == AccessLine.__struct_encode_fields__


def test_the_end_of_a_broken_stream_is_what_a_sidecar_writes() -> None:
    (event,) = (each.text for each in shown("text") if each.document.name == "clients.md")
    written = ending_event(
        ErrorShape.RESPONSES, "The engine broke off.", 503, "engine_lost", sequence_number=7
    )
    assert event.rstrip().encode() == written.rstrip()


PATCH: Final = re.compile(r"kubectl patch infs [^\n`|]*?-p '(\{.*?\})'")


@pytest.mark.parametrize(
    "patch",
    [
        Shown(document, text)
        for document in DOCUMENTS
        for text in PATCH.findall(document.read_text())
    ],
    ids=str,
)
def test_a_patch_leaves_a_service_that_is_taken(patch: Shown) -> None:
    read(InferenceService, service(json.loads(patch.text)))


def modules() -> list[Shown]:
    """Return what follows `python -m`, or what `make` gives it, in backticks or in a block."""
    line = re.compile(r"python -m ((?:bench|weir_sim|weir_engine|e2e)[^`\n|)]*)")
    makes = re.compile(r"""make ([\w-]+) ARGS=("[^"]*"|'[^']*'|[^\s`]+)""")
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        found += [Shown(document, each.strip()) for each in line.findall(text)]
        for target, arguments in makes.findall(text):
            found.append(Shown(document, f"{module_of(target)} {shlex.split(arguments)[0]}"))
    return found


def module_of(target: str) -> str:
    """Return what a target of the Makefile runs with ARGS."""
    recipe = rf"^{target}:.*\n(?:\t.*\n)*?\t.*python -m (\S+)(?: \w+)* \$\(ARGS\)"
    found = re.search(recipe, (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None, f"make {target} takes no ARGS"
    return found[1]


@pytest.mark.parametrize("command", modules(), ids=str)
def test_a_program_is_there_and_has_the_options(command: Shown) -> None:
    name, *arguments = shlex.split(command.text, comments=True)
    inside = ROOT / ("sim" if name.startswith("weir_sim") else ".") / name.replace(".", "/")
    files = [inside.with_suffix(".py")] if inside.with_suffix(".py").is_file() else []
    files += sorted(inside.rglob("*.py"))
    assert files, f"there is no {name}"
    sources = "".join(path.read_text() for path in files)
    options = [each.partition("=")[0] for each in arguments if each.startswith("--")]
    assert [each for each in options if f'"{each}"' not in sources] == []

"""Whole manifests: what a service becomes, field by field.

`UPDATE_GOLDEN=1 .venv/bin/pytest tests/unit/control` writes tests/golden/services/*.yaml anew; the
diff is the review.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from weir_core.api.inferenceservice import InferenceService
from weir_operator.render import Images, desired_state

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests/golden/services"
IMAGES = Images(
    sidecar="registry.example/weir:1",
    engine="registry.example/weir-engine:1",
    engine_cpu="registry.example/weir-engine-cpu:1",
)

CASES = sorted(path.name.removesuffix(".spec.yaml") for path in GOLDEN.glob("*.spec.yaml"))
EXAMPLES = ("quickstart", "gpu", "two-pools")


def service(document: dict[str, Any]) -> InferenceService:
    """Return the service as the API server would hold it."""
    meta = {"namespace": "models", "uid": "0b1e", "generation": 1, **document["metadata"]}
    return InferenceService.model_validate({**document, "metadata": meta})


@pytest.mark.parametrize("name", EXAMPLES)
def test_renders_the_example(name: str) -> None:
    _compare(f"example-{name}", ROOT / f"examples/{name}.yaml")


@pytest.mark.parametrize("name", CASES)
def test_renders(name: str) -> None:
    _compare(name, GOLDEN / f"{name}.spec.yaml")


def test_there_are_cases() -> None:
    assert len(CASES) >= 5


def _compare(name: str, source: Path) -> None:
    rendered = desired_state(service(yaml.safe_load(source.read_text())), IMAGES)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(yaml.dump_all(rendered, Dumper=_Plain, sort_keys=False, width=100))
    assert rendered == list(yaml.safe_load_all(golden.read_text()))


class _Plain(yaml.SafeDumper):
    """Writes out what appears twice: a reader of the diff should not look up anchors."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True

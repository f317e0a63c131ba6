"""The API server keeps the definitions as they are generated.

A field that it drops is nobody's, and a second manager that applies the same definition conflicts
over it: `helm install` after `kubectl apply` of the same file, as docs/install.md has it.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from e2e.hosted import CHECKOUT
from e2e.target import Target

FILES = sorted((CHECKOUT / "crds").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_comes_back_is_what_was_generated(path: Any, target: Target) -> None:
    generated = yaml.safe_load(path.read_text())
    target.kubectl.apply(generated)
    kept = target.kubectl.find("customresourcedefinitions", generated["metadata"]["name"], "")
    assert kept is not None
    conversion = {"conversion": {"strategy": "None"}}  # what the API server adds by itself
    assert kept["spec"] == generated["spec"] | conversion


def test_a_second_manager_of_the_same_definitions_conflicts_with_none(target: Target) -> None:
    for path in FILES:
        for manager in ("one", "another"):
            target.kubectl(
                "apply", "--server-side", f"--field-manager={manager}", f"--filename={path}"
            )

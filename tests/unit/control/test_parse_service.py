"""A spec the API server let through may still be wrong; the error names the user's own field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import body, service
from weir_core.errors import InvalidSpec
from weir_operator.parse import parse


def test_a_status_of_another_version_is_not_read() -> None:
    parsed = parse({**body(), "status": {"unheardOf": True}})
    assert parsed.status is None


def test_what_the_api_server_adds_to_metadata_is_ignored() -> None:
    assert service(managedFields=[], resourceVersion="7").metadata.name == "chat"


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        pytest.param({"pools": [{"name": "Upper"}]}, "spec.pools[0].name", "pattern", id="name"),
        pytest.param({"engnie": {}}, "spec.engnie", "not permitted", id="unknown field"),
        pytest.param(
            {"replicas": 1, "scaling": {"maxReplicas": 2}},
            "spec",
            "replicas and scaling exclude each other",
            id="contradiction",
        ),
        pytest.param(
            {"model": {"name": "m", "source": {"uri": "ftp://x"}}},
            "spec.model.source.uri",
            "pattern",
            id="source",
        ),
    ],
)
def test_names_the_field(spec: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        service(spec)
    assert caught.value.field == field
    assert said in caught.value.message

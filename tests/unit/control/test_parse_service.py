"""A spec the API server let through may still be wrong; the error names the user's own field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import body, service
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import EngineMode, PolicyDocument
from weir_operator.parse import parse, parse_governed, unknown_fields


def test_a_status_of_another_version_is_not_read() -> None:
    parsed = parse({**body(), "status": {"unheardOf": True}})
    assert parsed.status is None


def test_what_the_api_server_adds_to_metadata_is_ignored() -> None:
    assert service(managedFields=[], resourceVersion="7").metadata.name == "chat"


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        pytest.param({"pools": [{"name": "Upper"}]}, "spec.pools[0].name", "'Upper'", id="name"),
        pytest.param(
            {"replicas": 1, "scaling": {"maxReplicas": 2}},
            "spec",
            "replicas and scaling exclude each other",
            id="contradiction",
        ),
        pytest.param(
            {"model": {"name": "m", "source": {"uri": "ftp://x"}}},
            "spec.model.source.uri",
            "'ftp://x' is not a source; write hf://ORG/MODEL",
            id="source",
        ),
    ],
)
def test_names_the_field(spec: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        service(spec)
    assert caught.value.field == field
    assert said in caught.value.message


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidSpec) as caught:
        service({"replicas": -1, "rollout": {"maxSurge": 0}, "engine": {"args": ["-"]}})
    assert [each.field for each in caught.value.faults] == [
        "spec.engine.args[0]",
        "spec.replicas",
        "spec.rollout",
    ]
    assert str(caught.value) == "; ".join(map(str, caught.value.faults))


def test_fields_of_a_newer_weir_are_left_out_and_told() -> None:
    newer = {
        "zone": "a",
        "engine": {"adapterSlots": 4, "args": ["--seed=1"]},
        "pools": [{"name": "a", "accelerator": {"count": 0, "driver": {"version": 1}}}],
    }
    known = {
        "engine": {"args": ["--seed=1"]},
        "pools": [{"name": "a", "accelerator": {"count": 0}}],
    }
    written = body(newer)
    assert parse(written) == service(known)
    assert unknown_fields(written) == (
        "spec.engine.adapterSlots",
        "spec.pools[0].accelerator.driver",
        "spec.zone",
    )
    assert written == body(newer)


def test_a_service_that_this_weir_knows_whole_has_no_unknown_fields() -> None:
    assert unknown_fields({**body(), "status": {"unheardOf": True}}) == ()


def test_what_is_wrong_beside_a_field_of_a_newer_weir_is_refused() -> None:
    with pytest.raises(InvalidSpec) as caught:
        service({"zone": "a", "replicas": -1})
    assert [each.field for each in caught.value.faults] == ["spec.replicas"]


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param({"engine": {"args": ["--por=1"]}}, id="an argument only we refuse"),
        pytest.param({"pools": "many"}, id="nonsense"),
        pytest.param({"fieldOfANewerWeir": {}}, id="a field this version does not know"),
    ],
)
def test_what_sidecars_are_told_of_is_read_whatever_the_rest_says(rest: dict[str, Any]) -> None:
    admission = {"admission": {"anonymousClass": "batch"}}
    found = parse_governed(body({**rest, **admission}, generation=2), None)
    assert found.service.metadata == service(generation=2).metadata
    assert found.service.spec.admission == service(admission).spec.admission
    assert found.problems == []


def test_a_section_that_is_wrong_stays_as_it_was_last_told() -> None:
    engine = EngineMode("custom", class_shares={"gold": 0.5}, tpot_floor_s=0.015)
    before = PolicyDocument((), (), "gold", ("gold", "batch"), "batch", engine)
    wrong = {"admission": {"classes": "gold"}, "engine": {"scheduling": {"mode": "fast"}}}
    spec = parse_governed(body(wrong), before).service.spec
    admission, scheduling = spec.admission, spec.engine.scheduling
    assert (admission.default_class, admission.classes) == ("gold", ("gold", "batch"))
    assert admission.anonymous_class == "batch"
    assert (scheduling.mode, scheduling.class_shares) == ("custom", {"gold": 0.5})
    assert scheduling.tpot_floor_ms == 15


def test_a_section_that_is_wrong_is_said_with_its_field() -> None:
    wrong = {"admission": {"classes": "gold"}, "engine": {"scheduling": {"mode": "fast"}}}
    found = parse_governed(body(wrong), None)
    assert [(each.reason, each.field) for each in found.problems] == [
        ("InvalidAdmission", "spec.admission.classes"),
        ("InvalidScheduling", "spec.engine.scheduling.mode"),
    ]
    assert found.service.spec.admission.anonymous_class is None

"""No two services make objects of one name, and what exists keeps its name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.unit.control.builders import service
from weir_core.wire.policies import PolicyDocument
from weir_operator.render import (
    Names,
    deployment,
    names_in,
    network,
    pod_templates,
    policies_secret,
)
from weir_operator.revisions import choose

Manifest = dict[str, Any]
Named = set[tuple[str, str]]


def objects(name: str, *pools: str, names: Names | None = None) -> list[Manifest]:
    written = [{"name": pool, "replicas": 1, "accelerator": {"count": 0}} for pool in pools]
    owner = service({"pools": written}, name=name)
    made = [*network(owner, names), policies_secret(owner, PolicyDocument())]
    chosen = choose(owner, pod_templates(owner), [])
    for pool in owner.spec.hardware_pools:
        choice = chosen[pool.name]
        made.append(deployment(owner, pool, choice.template, names=names))
        made += [] if choice.new is None else [choice.new]
    return made


def names(manifests: list[Manifest]) -> Named:
    return {(each["kind"], each["metadata"]["name"]) for each in manifests}


LONG = "a" * 43
FLEET = [
    ("a", ("b-c", "b", "replicas", "policies")),
    ("a-b", ("c", "default")),
    ("a-b-c", ("default",)),
    ("a-replicas", ("default",)),
    ("a-replicas-replicas", ("default",)),
    ("a-policies", ("default",)),
    ("a-default", ("default", "b")),
    (LONG, ("b-c-d-e-f",)),
    (f"{LONG}-b", ("c-d-e-f", "c")),
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(one, other, id=f"{one[0][:20]} and {other[0][-20:]}")
        for one, other in itertools.combinations(FLEET, 2)
    ],
)
def test_the_objects_of_two_services_never_have_one_name(
    one: tuple[str, tuple[str, ...]], other: tuple[str, tuple[str, ...]]
) -> None:
    assert not names(objects(one[0], *one[1])) & names(objects(other[0], *other[1]))


@pytest.mark.parametrize(("name", "pools"), FLEET)
def test_the_objects_of_one_service_differ_in_their_names(name: str, pools: tuple[str]) -> None:
    made = objects(name, *pools)
    assert len(names(made)) == len(made)


@pytest.mark.parametrize(("name", "pools"), FLEET)
def test_names_fit_into_what_is_made_of_them(name: str, pools: tuple[str]) -> None:
    for kind, made in names(objects(name, *pools)):
        assert len(made) <= (46 if kind == "Deployment" else 63), made


def test_a_pool_of_one_word_gives_the_plain_name() -> None:
    assert ("Deployment", "chat-h100") in names(objects("chat", "h100"))


def earlier(name: str, kind: str, pool: str, component: str, **meta: Any) -> Manifest:
    """Return an object that an earlier operator made."""
    labels = {"serving.weir.dev/pool": pool, "app.kubernetes.io/component": component}
    return {"kind": kind, "metadata": {"name": name, "labels": labels, **meta}}


def test_what_an_earlier_operator_named_keeps_its_name() -> None:
    before = [
        earlier("chat-a100-spot", "Deployment", "a100-spot", "replica"),
        earlier("chat-replicas", "Service", "", "replicas"),
        earlier("chat", "Service", "", "api"),
    ]
    kept = names(objects("chat", "a100-spot", "h100-spot", names=names_in(before)))
    assert {("Deployment", "chat-a100-spot"), ("Service", "chat-replicas")} <= kept
    assert ("Deployment", "chat-h100-spot") not in kept


def test_an_object_that_is_being_deleted_gives_its_name_only_where_there_is_no_other() -> None:
    leaving = earlier("x-1", "Deployment", "p", "replica", deletionTimestamp="2026-01-01T00:00:00Z")
    staying = earlier("x-2", "Deployment", "p", "replica")
    assert (
        names_in([staying, leaving]) == names_in([leaving, staying]) == {("Deployment", "p"): "x-2"}
    )
    assert names_in([leaving]) == {("Deployment", "p"): "x-1"}

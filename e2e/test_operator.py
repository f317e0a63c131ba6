"""The operator can crash, restart and have company; the world still becomes what the spec says."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.eventually import eventually, throughout
from e2e.installation import Installation
from e2e.kube import Manifest, kind_and_name
from e2e.service import NAMESPACE, Service

SETTLED_S = 5.0


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        pytest.param("deployment", {"spec": {"paused": True}}, id="a paused Deployment"),
        pytest.param(
            "service", {"spec": {"selector": {"app": "other"}}}, id="a Service gone astray"
        ),
        pytest.param("poddisruptionbudget", {"spec": {"maxUnavailable": 9}}, id="a loose budget"),
    ],
)
def test_an_owned_object_that_someone_edits_comes_back(
    empty_service: Service, kind: str, patch: dict[str, Any]
) -> None:
    first = _owned(empty_service, kind)[0]
    name, spec = first["metadata"]["name"], first["spec"]
    empty_service.target.kubectl.patch(kind, name, NAMESPACE, patch)

    def back() -> None:
        assert empty_service.target.kubectl.get(kind, name, NAMESPACE)["spec"] == spec

    eventually(back)


@pytest.mark.parametrize(
    "kind", ["deployment", "service", "poddisruptionbudget", "serviceaccount", "networkpolicy"]
)
def test_an_owned_object_that_someone_deletes_comes_back(empty_service: Service, kind: str) -> None:
    first = _owned(empty_service, kind)[0]
    name, uid = first["metadata"]["name"], first["metadata"]["uid"]
    empty_service.target.kubectl("delete", kind, name, f"--namespace={NAMESPACE}")

    def back() -> None:
        again = empty_service.target.kubectl.get(kind, name, NAMESPACE)
        assert again["metadata"]["uid"] != uid

    eventually(back)


def test_the_api_server_takes_a_policy_with_every_kind_of_source(empty_service: Service) -> None:
    """What a network plugin makes of it is the plugin's: this cluster has none that enforces it."""
    callers: list[Manifest] = [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "front"}}},
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        {"ipBlock": {"cidr": "fd00::/8"}},
    ]
    pods = empty_service.templates()
    empty_service.patch({"network": {"allowFrom": callers, "scrapeFrom": callers[:1]}})

    def narrowed() -> None:
        (policy,) = _owned(empty_service, "networkpolicy")
        sources = {each["ports"][0]["port"]: each["from"] for each in policy["spec"]["ingress"]}
        assert sources[8000] == callers
        assert sources[8001][:-1] == callers[:1]

    eventually(narrowed)
    empty_service.says("NetworkReady", "True", "Applied")
    assert empty_service.templates() == pods
    empty_service.patch({"network": None})


def test_a_service_applied_again_at_once_follows_the_one_before_it_calmly(
    weir: Installation, empty_service: Service
) -> None:
    kubectl = weir.target.kubectl
    before, shape = _uids(empty_service), _shape(empty_service)
    empty_service.delete()
    empty_service.apply()
    uid = empty_service.observed()["metadata"]["uid"]

    def complete() -> None:
        assert _shape(empty_service) == shape
        assert _uids(empty_service).isdisjoint(before)

    eventually(complete)
    events = kubectl.list("events", NAMESPACE)
    told = [each for each in events if each["involvedObject"].get("uid") == uid]
    assert {each["type"] for each in told} == {"Normal"}, told


def test_a_crash_in_the_middle_of_a_pass_is_made_good(weir: Installation) -> None:
    want = Service(weir.target, "untroubled", {"replicas": 0})
    want.apply()
    want.observed()
    crashed = Service(weir.target, "troubled", {"replicas": 0})
    crashed.apply()

    def begun() -> None:
        assert crashed.owned(), "the pass has not begun"

    eventually(begun)
    weir.kill()
    weir.ready()
    crashed.observed()

    def complete() -> None:
        assert _shape(crashed) == _shape(want)

    eventually(complete)
    for service in (want, crashed):
        service.delete()


def test_two_operators_do_not_fight_and_the_second_takes_over(
    weir: Installation, empty_service: Service
) -> None:
    weir.upgrade({"operator": {"replicas": 2}})
    weir.ready(2)
    weir.acts_on(empty_service)  # the leader may be a new one, which applies everything once
    versions = _versions(empty_service)

    def calm() -> None:
        assert _versions(empty_service) == versions

    throughout(calm, for_s=SETTLED_S)

    leader = weir.holder()
    pod = next(pod for pod in weir.pods() if pod["metadata"]["name"] in leader)
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    weir.target.kubectl("delete", "pod", name, f"--namespace={namespace}", "--wait=false")

    def handed_over() -> None:
        assert weir.holder() not in ("", leader)

    eventually(handed_over)
    weir.acts_on(empty_service)
    weir.upgrade({})
    weir.ready()


def test_without_a_right_that_it_needs_not_a_service_goes_on(
    weir: Installation, empty_service: Service
) -> None:
    """A chart that is older than the operator grants none to newer kinds."""
    kubectl = weir.target.kubectl
    rules = kubectl.get("clusterrole", "weir", "")["rules"]
    newer = {"jobs", "leaderworkersets"}
    fewer = [each for each in rules if newer.isdisjoint(each["resources"])]
    kubectl.patch("clusterrole", "weir", "", {"rules": fewer})
    try:
        weir.kill()  # what is watched already goes on for minutes
        weir.ready()
        weir.acts_on(empty_service)
        empty_service.patch({"model": {"cache": {"claimName": "models", "prefetch": True}}})
        said = empty_service.says("PrefetchReady", "False", "Refused")["message"]
        assert 'cannot list resource "jobs"' in said
        assert "helm upgrade" in said
        weir.acts_on(empty_service)
    finally:
        kubectl.patch("clusterrole", "weir", "", {"rules": rules})
        empty_service.patch({"model": {"cache": None}})
    empty_service.says("PrefetchReady", "True", "NotAsked")


def test_a_restart_alone_writes_nothing(weir: Installation, empty_service: Service) -> None:
    weir.acts_on(empty_service)
    versions = _versions(empty_service)
    weir.kill()
    weir.ready()
    weir.acts_on(empty_service)  # the new process leads, and has seen everything
    budget = {key for key in versions if key.startswith("PodDisruptionBudget/")}

    def untouched() -> None:
        now = _versions(empty_service)
        assert {key for key in now if now[key] != versions[key]} == budget

    throughout(untouched, for_s=SETTLED_S)


def _owned(service: Service, kind: str) -> list[Manifest]:
    found = service.target.kubectl.list(kind, NAMESPACE, service.selector)
    assert found, f"{service.name} has no {kind}"
    return found


def _uids(service: Service) -> set[str]:
    return {one["metadata"]["uid"] for one in service.owned()}


def _shape(service: Service) -> set[str]:
    """Return kinds and names of what belongs to the service, its own name taken out."""
    return {
        kind_and_name(one).replace(service.name, "NAME").partition("NAME-")[0]
        for one in service.owned()
        if one["kind"] not in ("ReplicaSet", "EndpointSlice")
    }


def _versions(service: Service) -> dict[str, str]:
    """Return what changes when anyone writes to the service or to what belongs to it."""
    every = [service.object(), *service.owned()]
    return {kind_and_name(one): one["metadata"]["resourceVersion"] for one in every}

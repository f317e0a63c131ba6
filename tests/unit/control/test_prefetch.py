"""Jobs that fill a cache: one for what is to be fetched, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.control.builders import body
from tests.unit.control.memory_cluster import MemoryCluster
from tests.unit.control.test_reconcile_pass import (
    KEY,
    conditions,
    edit,
    reconciler,
    templates,
)
from weir_core.api import labels
from weir_core.api.inferenceservice import InferenceService
from weir_operator.render import Images, pod_templates, prefetch_jobs

Manifest = dict[str, Any]


def model(uri: str = "hf://o/m@v1", **more: Any) -> Manifest:
    """Return a service's model, with a claim that a Job fills."""
    cache = {"claimName": "models", "prefetch": True}
    return {"model": {"name": "m", "source": {"uri": uri}, "cache": cache, **more}}


def jobs(spec: Manifest) -> list[Manifest]:
    service = InferenceService.model_validate(body({**spec}))
    return prefetch_jobs(service, pod_templates(service, Images()))


def pod(job: Manifest) -> Manifest:
    found: Manifest = job["spec"]["template"]["spec"]
    return found


def end(cluster: MemoryCluster, type_: str, reason: str = "", message: str = "") -> None:
    """Have every Job end."""
    for job in cluster.of("Job").values():
        ended = {"type": type_, "status": "True", "reason": reason, "message": message}
        job["status"] = {"conditions": [ended]}


def said(cluster: MemoryCluster) -> tuple[str, str]:
    found = conditions(cluster)["PrefetchReady"]
    return found["status"], found["reason"]


async def test_a_service_at_zero_has_its_model_fetched() -> None:
    cluster = MemoryCluster(body({**model(), "replicas": 0}))
    await reconciler(cluster).run(KEY)
    assert said(cluster) == ("False", "Fetching")
    (job,) = cluster.of("Job").values()
    assert job["metadata"]["ownerReferences"][0]["controller"]
    end(cluster, "Complete")
    await reconciler(cluster).run(KEY)
    assert said(cluster) == ("True", "Fetched")
    assert conditions(cluster)["Ready"]["reason"] == "ScaledToZero"


async def test_a_job_that_failed_is_named_and_keeps_no_replica_from_serving() -> None:
    cluster = MemoryCluster(body(model()))
    await reconciler(cluster).run(KEY)
    end(cluster, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    await reconciler(cluster).run(KEY)
    assert said(cluster) == ("False", "PrefetchFailed")
    (name,) = cluster.of("Job")
    message = conditions(cluster)["PrefetchReady"]["message"]
    assert message.startswith(f"job {name}: BackoffLimitExceeded: Job has reached")
    assert "Stalled" not in conditions(cluster)
    assert len(cluster.of("Deployment")) == 1


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        pytest.param(model("hf://o/m@v2"), False, id="another source"),
        pytest.param(model() | {"replicas": 3}, True, id="another number of replicas"),
    ],
)
async def test_an_edit_of_what_is_fetched_is_another_job(changed: Manifest, stays: bool) -> None:
    cluster = MemoryCluster(body(model()))
    await reconciler(cluster).run(KEY)
    before = set(cluster.of("Job"))
    edit(cluster, changed)
    await reconciler(cluster).run(KEY)
    assert (set(cluster.of("Job")) == before) is stays
    assert len(cluster.of("Job")) == 1


async def test_a_spec_that_is_wrong_leaves_the_job_as_it_is() -> None:
    cluster = MemoryCluster(body(model()))
    await reconciler(cluster).run(KEY)
    edit(cluster, {**model("hf://o/m@v2"), "engine": {"args": ["--por=1"]}})
    before = set(cluster.of("Job"))
    await reconciler(cluster).run(KEY)
    assert set(cluster.of("Job")) == before
    assert said(cluster) == ("False", "Fetching")


async def test_an_upgrade_of_the_operator_alone_fetches_nothing_again() -> None:
    cluster = MemoryCluster(body({**model(), "replicas": 0}))
    await reconciler(cluster, "1").run(KEY)
    before = list(cluster.of("Job"))
    await reconciler(cluster, "2").run(KEY)
    assert list(cluster.of("Job")) == before


async def test_whether_a_job_fills_the_cache_changes_no_pod() -> None:
    without = {"claimName": "models"}
    cluster = MemoryCluster(body(model(cache=without)))
    await reconciler(cluster).run(KEY)
    before = templates(cluster)
    assert (said(cluster), cluster.of("Job")) == (("True", "NotAsked"), {})
    edit(cluster, model())
    await reconciler(cluster).run(KEY)
    assert (templates(cluster), len(cluster.of("Job"))) == (before, 1)
    assert len(cluster.of("ControllerRevision")) == 1
    edit(cluster, model(cache=without))
    await reconciler(cluster).run(KEY)
    assert cluster.of("Job") == {}


def test_no_service_finds_the_pod_of_a_job() -> None:
    (job,) = jobs(model())
    assert labels.SERVICE in job["metadata"]["labels"]
    assert not {labels.SERVICE, labels.POOL} & job["spec"]["template"]["metadata"]["labels"].keys()


@pytest.mark.parametrize(
    ("second", "count"),
    [
        pytest.param({}, 1, id="the same"),
        pytest.param({"engine": {"args": ["--load-format=pt"]}}, 2, id="other weights"),
    ],
)
def test_pools_that_fetch_the_same_share_a_job(second: Manifest, count: int) -> None:
    pools = [
        {"name": "a", "replicas": 1, "nodeSelector": {"gpu": "a"}},
        {"name": "b", "replicas": 0, "nodeSelector": {"gpu": "b"}, **second},
    ]
    found = jobs({**model(), "pools": pools})
    assert len(found) == count
    assert all("nodeSelector" not in pod(job) for job in found)


def test_a_job_fetches_the_adapters_too_and_as_the_podtemplate_says() -> None:
    patch = {
        "spec": {
            "imagePullSecrets": [{"name": "registry"}],
            "initContainers": [{"name": "model", "env": [{"name": "HTTPS_PROXY", "value": "p"}]}],
        }
    }
    adapters = [
        {"name": "a", "source": {"uri": "hf://o/a"}},
        {"name": "b", "source": {"uri": "pvc://claim/b"}},
    ]
    (job,) = jobs({**model(adapters=adapters), "podTemplate": patch})
    (container,) = pod(job)["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    told = json.loads(env["WEIR_ENGINE_CONFIG"])
    assert [each["name"] for each in told["adapters"]] == ["a"]
    assert env["HTTPS_PROXY"] == "p"
    assert pod(job)["imagePullSecrets"] == [{"name": "registry"}]

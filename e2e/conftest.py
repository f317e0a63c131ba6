"""The cluster, Weir on it and one served model, shared by all scenarios; evidence on failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from e2e import evidence, installation, service
from e2e.installation import Installation
from e2e.service import Service
from e2e.target import Target, connect

TARGET = pytest.StashKey[Target]()


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The cluster: our own, or the caller's."""
    with connect() as connected:
        request.config.stash[TARGET] = connected
        connected.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": service.NAMESPACE}}
        )
        yield connected
        # Before the cluster goes, or for the sake of the next run on the caller's.
        connected.kubectl.attempt("delete", "namespace", service.NAMESPACE, timeout_s=120)


@pytest.fixture
def weir(target: Target) -> Installation:
    """Weir, installed and with its operator ready."""
    installed = Installation(target)
    installed.ensure()
    installed.ready()
    return installed


@pytest.fixture
def quickstart(weir: Installation) -> Service:
    """The quickstart's service with one ready replica; the scenarios share it."""
    shared = Service(weir.target, "quickstart")
    shared.ensure_ready()
    return shared


@pytest.fixture
def empty_service(weir: Installation) -> Iterator[Service]:
    """A service without replicas: all of its objects, and no engine to wait for."""
    parked = Service(weir.target, "parked", {"replicas": 0})
    parked.apply()
    parked.observed()
    yield parked
    if weir.target.kubectl.find("infs", parked.name, service.NAMESPACE):
        parked.delete()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cluster looked like to the report of a scenario that failed."""
    report = yield
    target = item.config.stash.get(TARGET, None)
    if report.failed and target is not None and call.when != "teardown":
        namespaces = (installation.NAMESPACE, service.NAMESPACE)
        report.sections.extend(evidence.collect(target.kubectl, namespaces))
    return report

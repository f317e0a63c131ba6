"""The cluster, Weir on it and one served model, shared by all scenarios; evidence on failure."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from e2e import evidence, installation, service
from e2e.cluster import build
from e2e.installation import Installation
from e2e.service import Service
from e2e.target import Target, connect

TARGET = pytest.StashKey[Target]()

# These start clusters on this machine, or stop a part of the one that was started; someone who
# brings their own may not be able to.
collect_ignore = (
    ["test_cluster.py", "test_api_server_outage.py"] if os.environ.get("KUBECONFIG") else []
)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The cluster: our own, or the caller's."""
    with connect() as connected:
        request.config.stash[TARGET] = connected
        connected.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": service.NAMESPACE}}
        )
        yield connected
        # Before the cluster goes, or for the sake of the next run on the caller's. The services
        # first: a namespace with pods is looked at again after half of their grace period, 1 min.
        here = f"--namespace={service.NAMESPACE}"
        connected.kubectl.attempt(
            "delete", "infs", "--all", here, "--cascade=foreground", timeout_s=120
        )
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build the cluster's binaries, where they are missing, outside of any test's time limit."""
    if os.environ.get("KUBECONFIG") or session.config.option.collectonly:
        return
    with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        build.binaries()


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

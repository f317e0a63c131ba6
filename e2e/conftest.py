"""The cluster, Weir on it and the served models, shared by the scenarios; evidence on failure.

Real engines take most of a minute to load. They begin as soon as Weir is installed, and the
scenarios that need none run meanwhile, against a mock of vLLM where they need an engine at all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e import evidence, installation, service
from e2e.cluster import build, components
from e2e.hosted import CHECKOUT
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MOCK_ENGINE, Service
from e2e.target import Target, connect, is_ours
from weir_core.api import labels

TARGET = pytest.StashKey[Target]()

# The longest prompt the tiny model takes must then fit into one step.
WHOLE_PROMPTS = ["--no-enable-chunked-prefill", "--max-num-batched-tokens=8192"]
REAL_ENGINES = {"quickstart": {}, "plain": {"engine": {"args": WHOLE_PROMPTS}}}
"""What differs from the quickstart's spec, by the fixture whose service runs vLLM for a session."""

TOOLS = {"kstatus": "kstatus", "argo_health": "argo-health"}
"""The program of `tools/` that a fixture runs."""

PATIENT_CLASSES: dict[str, dict[str, Any]] = {
    "interactive": {"rank": 100},
    "standard": {"rank": 0, "ttftTargetMs": 1000},
    "batch": {"rank": -100},
}
"""The names are those that every service knows."""

# These start clusters on this machine, or stop a part of the one that was started; someone who
# brings their own may not be able to. To disturb pods from outside, or to have them mount a folder,
# takes the root of their node.
_GIVEN = os.environ.get("KUBECONFIG")
collect_ignore = ["test_cluster.py", "test_api_server_outage.py"] if _GIVEN else []
if not os.environ.get("WEIR_E2E_IMAGES"):  # it builds them: gigabytes
    collect_ignore += ["test_readme.py"]
if not os.environ.get("WEIR_E2E_SCALING"):  # windows and cold starts: they take minutes
    collect_ignore += ["test_autoscaling.py", "test_scaling_by_work.py"]
    collect_ignore += ["test_keda.py", "test_scaling_to_zero.py"]
if not os.environ.get("WEIR_E2E_GROUPS"):  # it builds LeaderWorkerSet
    collect_ignore += ["test_groups.py"]
if os.environ.get(build.ASKED_FOR) not in build.OWN_CONTAINERD:
    collect_ignore += ["test_image_volumes.py"]
if _GIVEN and not is_ours(Path(_GIVEN)):
    collect_ignore += ["test_adapters.py", "test_autoscaling.py", "test_keda.py"]
    collect_ignore += ["test_image_volumes.py"]
    collect_ignore += ["test_node_drain.py", "test_room.py", "test_routing.py"]
    collect_ignore += ["test_scaling_to_zero.py", "test_stopping.py"]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The cluster: our own, or the caller's."""
    with connect(dns=_of_groups(request.session)) as connected:
        request.config.stash[TARGET] = connected
        connected.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": service.NAMESPACE}}
        )
        yield connected
        if connected.outlives_us:
            _tidy_up(connected)


@pytest.fixture
def patient_classes(target: Target) -> Iterator[None]:
    """Classes that wait for ten minutes, and refuse no request for being late."""
    for name, spec in PATIENT_CLASSES.items():
        patient = {"maxQueueWait": "10m", "shed": "never", **spec}
        kind = {"apiVersion": labels.API_VERSION, "kind": "InferencePriorityClass"}
        target.kubectl.apply({**kind, "metadata": {"name": name}, "spec": patient})
    yield
    for name in PATIENT_CLASSES:
        target.kubectl("delete", f"ipc/{name}", "--ignore-not-found")


def _tidy_up(target: Target) -> None:
    """Leave the caller's cluster as it was.

    The services go first: a namespace with pods is looked at again after half of their grace
    period.
    """
    for namespace in (service.NAMESPACE, service.EXAMPLES):
        everything = ("infs", "--all", f"--namespace={namespace}", "--cascade=foreground")
        target.kubectl.attempt("delete", *everything, timeout_s=120)
        target.kubectl.attempt("delete", "namespace", namespace, timeout_s=120)


@pytest.fixture(scope="session")
def engines_load(request: pytest.FixtureRequest, target: Target) -> None:
    """The real engines that scenarios of this run want; they load while others run."""
    Installation(target).ensure()
    for name in REAL_ENGINES:
        if any(name in _fixtures(item) for item in request.session.items):
            _real(target, name).apply()


def _real(target: Target, name: str) -> Service:
    return Service(target, name, REAL_ENGINES[name])


def _fixtures(item: pytest.Item) -> list[str]:
    """Return the names of all fixtures a scenario rests on."""
    return getattr(item, "fixturenames", [])


@pytest.fixture
def weir(target: Target, engines_load: None) -> Installation:
    """Weir, installed and with its operator ready."""
    installed = Installation(target)
    installed.ensure()
    installed.ready()
    return installed


@pytest.fixture(scope="session")
def kstatus() -> Callable[[Manifest], str]:
    """What the kstatus library, which Flux and Helm go by, makes of an object: one word."""
    program = build.tool("kstatus")

    def verdict(manifest: Manifest) -> str:
        said = subprocess.run(
            [program], input=json.dumps(manifest), capture_output=True, text=True, check=True
        )
        return said.stdout.partition(":")[0]

    return verdict


@pytest.fixture(scope="session")
def argo_health(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Manifest], str]:
    """What Argo CD makes of an object by the script in docs/conditions.md: one word."""
    program = build.tool("argo-health")
    text = (CHECKOUT / "docs/conditions.md").read_text()
    (block,) = re.findall(r"```yaml\n([^`]*name: argocd-cm\n[^`]*)```", text)
    key = f"resource.customizations.health.{labels.GROUP}_InferenceService"
    script = tmp_path_factory.mktemp("argo") / "health.lua"
    script.write_text(yaml.safe_load(block)["data"][key])

    def verdict(manifest: Manifest) -> str:
        said = subprocess.run(
            [program, script], input=json.dumps(manifest),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return said.stdout.partition(":")[0]

    return verdict


@pytest.fixture
def quickstart(weir: Installation) -> Service:
    """The quickstart's service on real vLLM with one ready replica; the scenarios share it."""
    shared = _real(weir.target, "quickstart")
    shared.ensure_ready()
    return shared


@pytest.fixture
def plain(weir: Installation) -> Service:
    """A service whose vLLM cuts no prompts, so that there is nothing for Weir to order."""
    shared = _real(weir.target, "plain")
    shared.ensure_ready()
    return shared


@pytest.fixture
def mocked(weir: Installation) -> Service:
    """The quickstart's service with one ready replica, its engine a MOCK; scenarios share it.

    Its pod is the real one but for the engine's process: `weir_sim.mock_engine` in vLLM's place.
    It is there in seconds, and what it answers was never computed. For what Kubernetes, operator
    and sidecar do; whatever a scenario says of vLLM it must ask of `quickstart`.
    """
    shared = Service(weir.target, "mocked", pod_patch=MOCK_ENGINE)
    shared.ensure_ready()
    return shared


@pytest.fixture
def empty_service(weir: Installation) -> Service:
    """A service without replicas, all of its objects and no engine; the scenarios share it."""
    parked = Service(weir.target, "parked", {"replicas": 0})
    parked.apply()
    parked.observed()
    return parked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what needs a real engine after what does not, and uninstalling after all else."""
    items.sort(key=lambda item: (item.path.stem == "test_uninstall", _waits_for_vllm(item)))


def _of_groups(session: pytest.Session) -> bool:
    """Tell whether the run has replicas over several nodes, which find each other by name."""
    return any(item.path.stem == "test_groups" for item in session.items)


def _waits_for_vllm(item: pytest.Item) -> bool:
    return not REAL_ENGINES.keys().isdisjoint(_fixtures(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build the cluster's binaries, where they are missing, outside of any test's time limit."""
    if os.environ.get("KUBECONFIG") or session.config.option.collectonly:
        return
    with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        build.binaries()
        for fixture, tool in TOOLS.items():
            if any(fixture in _fixtures(item) for item in session.items):
                build.tool(tool)
        if any(item.path.stem == "test_keda" for item in session.items):
            build.keda()
        if _of_groups(session):
            build.lws()
            build.tool(components.DNS)


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

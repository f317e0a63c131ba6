"""A replica that is lost is replaced, and an engine that is lost loses nothing that waits."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from e2e.eventually import eventually
from e2e.service import MODEL, NAMESPACE, READY_WITHIN_S, Service
from weir_core.api.labels import ENGINE_CONTAINER


def test_a_deleted_pod_is_replaced_and_the_service_answers(mocked: Service) -> None:
    gone = mocked.pod()["metadata"]["name"]
    mocked.target.kubectl("delete", "pod", gone, f"--namespace={NAMESPACE}", "--wait=false")

    def replaced() -> None:
        assert mocked.pod()["metadata"]["name"] != gone

    eventually(replaced)
    mocked.wait_ready(replicas=1)

    def answers() -> None:
        status, _ = chat(mocked.url())
        assert status == 200

    eventually(answers)


def test_a_killed_engine_restarts_and_answers_what_waited_for_it(quickstart: Service) -> None:
    quickstart.says("SchedulingReady", "True", "Weir")
    pod = quickstart.pod()
    address = f"http://{pod['status']['podIP']}:8000"
    restarts = engine_restarts(quickstart)
    quickstart.target.kill(pod, ENGINE_CONTAINER)

    def restarted() -> None:
        assert engine_restarts(quickstart) > restarts

    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(chat, address, "batch")
        quickstart.says("SchedulingReady", "Unknown", "Waiting")
        eventually(restarted)
        assert waits.result(timeout=READY_WITHIN_S)[0] == 200
    quickstart.wait_ready(replicas=1)
    assert quickstart.pod()["metadata"]["uid"] == pod["metadata"]["uid"], "the pod stays"
    quickstart.says("SchedulingReady", "True", "Weir")  # the new engine was asked

    def answers() -> None:
        status, _ = chat(quickstart.url())
        assert status == 200

    eventually(answers)


def engine_restarts(service: Service) -> int:
    """Return how often the kubelet has restarted the engine."""
    (state,) = service.pod()["status"]["containerStatuses"]
    count: int = state["restartCount"]
    return count


def chat(url: str, class_name: str = "standard") -> tuple[int, dict[str, str]]:
    """Ask for one short answer; return its status and headers."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "x-weir-class": class_name},
    )
    try:
        with urllib.request.urlopen(request, timeout=READY_WITHIN_S) as response:
            return response.status, dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers)
    except OSError as error:
        raise AssertionError(f"no answer at all: {error}") from error

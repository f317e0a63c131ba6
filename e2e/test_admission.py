"""More requests than the engine can take, and requests for more than a key may have."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator

import aiohttp
import httpx
import openai
import pytest

from e2e.eventually import eventually
from e2e.kube import Manifest
from e2e.service import MODEL, NAMESPACE, Service
from weir_core.api.labels import API_VERSION

FLOOD = 240
CHATS = "/v1/chat/completions"
COUNTED = re.compile(r'^weir_requests_total\{class="[^"]*",outcome="(\w+)"\} (\d+)', re.MULTILINE)


def chat(max_tokens: int, *, stream: bool = False) -> Manifest:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


def outcomes(service: Service) -> Counter[str]:
    """Return how the requests of the service's only pod have ended so far."""
    found: Counter[str] = Counter()
    for outcome, count in COUNTED.findall(service.metrics()):
        found[outcome] += int(count)
    return found


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> tuple[int, bool]:
    """Send one of the flood's requests; return its status and whether its answer was whole."""
    stream = number % 2 == 0
    headers = {"x-llm-d-inference-objective": "batch" if number % 3 else "standard"}
    body = chat(32, stream=stream)
    async with session.post(url + CHATS, json=body, headers=headers) as answer:
        text = await answer.text()
        if answer.status == 200:
            return 200, text.endswith("data: [DONE]\n\n") if stream else '"usage"' in text
        return answer.status, int(answer.headers["Retry-After"]) >= 1


async def flood(url: str) -> list[tuple[int, bool]]:
    """Send everything at once."""
    timeout = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as session:
        return await asyncio.gather(*(ask(session, url, number) for number in range(FLOOD)))


def test_a_flood_loses_no_request(quickstart: Service) -> None:
    before = outcomes(quickstart)
    answers = asyncio.run(flood(quickstart.url()))
    assert {status for status, _ in answers} <= {200, 429}
    assert all(good for _, good in answers)
    batch = [status for number, (status, _) in enumerate(answers) if number % 3]
    assert set(batch) == {200}, "batch is never shed, it is only late"
    ended = outcomes(quickstart) - before
    assert sum(ended.values()) == FLOOD, ended
    assert ended["ok"] == sum(status == 200 for status, _ in answers)


def test_a_header_that_asks_for_too_much_is_refused_by_name(mocked: Service) -> None:
    answer = httpx.post(
        mocked.url() + CHATS,
        json=chat(4),
        headers={"x-llm-d-inference-objective": "interactive"},
        timeout=30,
    )
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "class_not_allowed"
    assert "standard" in answer.json()["error"]["message"]


@pytest.fixture
def one_at_a_time(mocked: Service) -> Iterator[str]:
    """The key of a tenant that may have one request in flight."""
    key = "sk-one-at-a-time"
    kubectl = mocked.target.kubectl
    digest = hashlib.sha256(key.encode()).hexdigest()
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "e2e-one-keys", "namespace": NAMESPACE},
            "data": {"one": base64.b64encode(digest.encode()).decode()},
        }
    )
    kubectl.apply(
        {
            "apiVersion": API_VERSION,
            "kind": "InferenceTenant",
            "metadata": {"name": "e2e-one", "namespace": NAMESPACE},
            "spec": {
                "apiKeySecretRef": {"name": "e2e-one-keys"},
                "defaultClass": "standard",
                "limits": {"maxRequests": 1},
            },
        }
    )

    def known() -> None:
        # Before the sidecar has heard of any tenant it does not look at keys; a wrong one tells.
        wrong = {"Authorization": "Bearer sk-wrong"}
        answer = httpx.get(f"{mocked.url()}/v1/models", headers=wrong, timeout=30)
        assert answer.status_code == 401

    eventually(known)
    yield key
    kubectl("delete", "itn/e2e-one", f"--namespace={NAMESPACE}")
    kubectl("delete", "secret/e2e-one-keys", f"--namespace={NAMESPACE}")


async def converse(url: str, key: str) -> list[int]:
    """Have four clients at once, which come back when Retry-After says so."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=30, timeout=60)
    async with client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Count."}],
                    max_tokens=48,
                    extra_body={"ignore_eos": True},
                )
                for _ in range(4)
            )
        )
    return [answer.usage.completion_tokens for answer in answers if answer.usage]


def test_clients_that_honour_retry_after_are_all_served(
    mocked: Service, one_at_a_time: str
) -> None:
    # An answer of the mock's lasts half a second, so that those who come at once meet.
    before = outcomes(mocked)
    assert asyncio.run(converse(mocked.url(), one_at_a_time)) == [48] * 4
    ended = outcomes(mocked) - before
    assert ended["ok"] == 4
    assert ended["rejected_tenant_limit"] > 0

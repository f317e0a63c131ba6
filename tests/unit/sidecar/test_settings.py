"""The environment becomes settings, or a message that names the variable."""

from __future__ import annotations

import re
from collections import UserDict
from pathlib import Path

import pytest

from weir_core.api import labels
from weir_core.errors import InvalidSpec
from weir_sidecar.settings import Draining, Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


class Asked(UserDict[str, str]):
    """An empty environment that remembers which variables were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.names.add(name)
        return default


def test_the_page_lists_every_variable() -> None:
    env = Asked()
    Settings.from_env(env)
    page = (Path(__file__).parents[3] / "docs" / "replicas.md").read_text()
    section = page.partition("## Settings of the sidecar")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(WEIR_\w+)`", section)) == env.names


def test_bounds_on_clients_are_read() -> None:
    settings = Settings.from_env(
        {
            "WEIR_CLIENT_IDLE_S": "620",
            "WEIR_HEADERS_TIMEOUT_S": "30",
            "WEIR_MAX_HEADERS": "100",
            "WEIR_MAX_HEADER_BYTES": "65536",
        }
    )
    assert (settings.timeouts.client_idle_s, settings.timeouts.head_s) == (620.0, 30.0)
    assert (settings.limits.max_headers, settings.limits.max_header_bytes) == (100, 65536)


@pytest.mark.parametrize(
    ("host", "want"),
    [
        pytest.param({}, False, id="a pod"),
        pytest.param({labels.ENV_HOST: "0.0.0.0"}, False, id="all addresses"),
        pytest.param({labels.ENV_HOST: "10.0.0.7"}, False, id="one on a network"),
        pytest.param({labels.ENV_HOST: "127.0.1.2"}, True, id="a replica of weir up"),
        pytest.param({labels.ENV_HOST: "::1"}, True, id="the loopback of IPv6"),
    ],
)
def test_only_a_sidecar_on_the_loopback_serves_its_machine_without_tenants(
    host: dict[str, str], want: bool
) -> None:
    assert Settings.from_env(host).addresses.is_loopback is want


@pytest.mark.parametrize(
    ("env", "want"),
    [
        pytest.param({}, "", id="all addresses of a machine that does not say its own"),
        pytest.param({labels.ENV_POD_IP: "10.0.0.7"}, "10.0.0.7:8002", id="a pod"),
        pytest.param({labels.ENV_POD_IP: "fd00::7"}, "[fd00::7]:8002", id="a pod with IPv6"),
        pytest.param({labels.ENV_HOST: "127.0.1.2"}, "127.0.1.2:8002", id="a replica of weir up"),
        pytest.param(
            {"WEIR_PEER_ADDRESS": "node:30002", labels.ENV_POD_IP: "10.0.0.7"},
            "node:30002",
            id="behind another address",
        ),
    ],
)
def test_a_sidecar_tells_the_others_where_it_is(env: dict[str, str], want: str) -> None:
    assert Settings.from_env(env).addresses.advertised(8002) == want


@pytest.mark.parametrize(
    ("peers", "period_s", "silence_s"),
    [(1, 0.2, 1.0), (51, 0.2, 1.0), (128, 0.5, 2.5), (256, 1.0, 5.0), (1024, 1.0, 5.0)],
)
def test_few_sidecars_hear_of_each_other_more_often(
    peers: int, period_s: float, silence_s: float
) -> None:
    peering = Settings.from_env({}).peering
    assert peering.period_s(peers) == period_s
    assert peering.silence_s(period_s) == silence_s


def test_rules_for_browsers_that_cannot_be_read_are_refused_by_name() -> None:
    with pytest.raises(InvalidSpec, match=labels.ENV_CORS):
        Settings.from_env({labels.ENV_CORS: "*"})


def test_variables_of_the_contract_are_read() -> None:
    settings = Settings.from_env(
        {
            labels.ENV_SERVICE: "chat",
            labels.ENV_NAMESPACE: "team",
            labels.ENV_POOL: "h100",
            labels.ENV_POD_NAME: "chat-0",
            labels.ENV_MODEL_NAME: "tiny",
            labels.ENV_RUN_DIR: "/tmp/run",
            labels.ENV_HOST: "127.0.1.1",
            labels.ENV_MAX_BODY_BYTES: "1000",
            labels.ENV_MAX_REQUESTS: "7",
            labels.ENV_GRACE_PERIOD_S: "30",
            labels.ENV_LAME_DUCK_S: "0",
        }
    )
    assert settings.identity.service == "chat"
    assert settings.identity.pod == "chat-0"
    assert settings.addresses.engine_socket == Path("/tmp/run/engine.sock")
    assert settings.addresses.host == "127.0.1.1"
    assert (settings.limits.max_body_bytes, settings.limits.max_requests) == (1000, 7)
    assert (settings.draining.grace_period_s, settings.draining.lame_duck_s) == (30.0, 0.0)


@pytest.mark.parametrize("text", ["many", "-1", "inf", "nan"])
def test_a_value_that_is_no_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidSpec, match=labels.ENV_MAX_REQUESTS):
        Settings.from_env({labels.ENV_MAX_REQUESTS: text})


@pytest.mark.parametrize(
    ("grace_s", "want_s"),
    [
        pytest.param(60.0, 57.0, id="a margin is kept for goodbyes"),
        pytest.param(2.0, 1.0, id="a short grace period is halved"),
        pytest.param(0.0, 0.0, id="none at all"),
    ],
)
def test_a_drain_ends_before_the_grace_period(grace_s: float, want_s: float) -> None:
    assert Draining(grace_period_s=grace_s).deadline_s == want_s

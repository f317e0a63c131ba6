"""`weir explain` of what `weir up` serves on this machine, as a user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from weir_cli.__main__ import main
from weir_cli.records import (
    Instance,
    InstanceRecord,
    ReplicaRecord,
    ScalingRecord,
    ServiceRecord,
    record_of,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of a `weir up` whose engine has ended, on a machine without a cluster."""
    own = record_of("weir up", os.getpid())
    assert own is not None
    # No process listens on the address, nor on a port that no process may have.
    replica = ReplicaRecord(
        name="chat-1", pool="cpu", address="127.255.255.254", phase="restarting", restarts=1
    )
    service = ServiceRecord(
        name="chat", model="tiny", url="http://127.255.255.254:1", replicas=(replica,)
    )
    instance = Instance(tmp_path, 8000)
    (instance.fresh_logs() / "chat-1.engine.log").write_text("loading\nValueError: no such model\n")
    with instance.held():
        instance.write(
            InstanceRecord(
                up=own, port=8000, scratch=str(tmp_path), grace_period_s=1, services=(service,)
            )
        )
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        main(["explain", *arguments])
    return left.value.code, capsys.readouterr().out


def test_an_engine_that_ended_is_told_with_its_last_error(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = explained(capsys, "chat")
    assert code == 1
    assert said.startswith("chat is not ready: the engine ended: ValueError: no such model\n")
    assert f"tail -n 50 {cache}/up/8000/logs/chat-1.engine.log" in said
    assert "the metrics of chat-1: it does not answer" in said


def test_a_service_without_replicas_on_purpose_is_asleep(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = Instance(cache, 8000)
    record = instance.read()
    assert record is not None
    why = "0 replicas, because no request waits"
    scaling = ScalingRecord(replicas=0, reason="Asleep", message=why)
    asleep = record.services[0].model_copy(update={"replicas": (), "scaling": scaling})
    with instance.held():
        instance.write(record.model_copy(update={"services": (asleep,)}))
    code, said = explained(capsys, "chat")
    assert code == 0
    assert said.startswith(f"chat is asleep on purpose: {why}\n")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        pytest.param(["chatt"], "; did you mean chat?", id="another name"),
        pytest.param(
            ["chat", "--request", "r1"],
            "no request r1 is in flight in chat, or among the last that ended: it ended earlier, "
            "or never came here",
            id="a request that nothing knows",
        ),
        pytest.param(
            ["chat", "-n", "ai"],
            "cannot tell how chat is: no cluster answers",
            id="a cluster that is not there",
        ),
    ],
)
def test_where_nothing_can_be_said_it_is_2(
    arguments: list[str], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = explained(capsys, *arguments, "--json")
    assert code == 2
    assert json.loads(said)["verdict"].endswith(verdict)

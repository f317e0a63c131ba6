"""Aliases, adapters and limits come and go while the engine runs, and cost no request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace

from tests.integration.sidecar.harness import PATIENT, Answer, House, Running, chat, eventually
from weir_core.units import Seconds
from weir_core.wire.adapters import Fetched, FetchedAdapter
from weir_core.wire.policies import AdapterEntry, PolicyDocument
from weir_core.wire.sidecar_state import ADAPTER_READY, SidecarState
from weir_sidecar.upstreams.monitor import EngineState
from weir_sim.mock_engine import MockEngine, Profile

ROOMY = replace(PATIENT, adapter_slots=4)
SQL = AdapterEntry("sql", "hf://o/sql")
PATH = "/models/sql"


def fetched(house: House, found: Mapping[str, FetchedAdapter]) -> None:
    """Say what the container of adapters has fetched, as it does: all at once."""
    new = house.run_dir / "adapters.new"
    new.write_bytes(Fetched(dict(found)).encode())
    new.rename(house.run_dir / "adapters.json")


async def ask(running: Running, model: str, **fields: object) -> Answer:
    return await running.post(json=chat(model=model, **fields))


async def started(house: House, document: PolicyDocument) -> tuple[MockEngine, Running]:
    """Start an engine and a sidecar that reads this document."""
    house.policies(document)
    engine = await house.mock_engine(Profile(token_gap_s=Seconds(0.01)))
    return engine, await house.sidecar(ROOMY)


async def test_an_alias_answers_from_the_first_request_on_and_until_it_is_removed(
    house: House,
) -> None:
    engine, running = await started(house, PolicyDocument(aliases=("gpt",)))
    assert engine.aliases == ("gpt",)
    assert (await ask(running, "gpt")).status == 200
    house.policies(PolicyDocument(aliases=("best",)))
    await eventually(lambda: engine.aliases == ("best",))
    assert (await ask(running, "best")).status == 200
    listed = json.loads((await running.get("/v1/models")).body)["data"]
    assert [each["id"] for each in listed] == ["tiny", "best"]
    gone = await ask(running, "gpt")
    assert (gone.status, b"does not exist" in gone.body) == (404, True)


async def test_until_an_adapter_is_loaded_its_clients_are_told_to_come_back(house: House) -> None:
    engine, running = await started(house, PolicyDocument())
    house.policies(PolicyDocument(adapters=(SQL,)))
    await eventually(lambda: "sql" in running.sidecar.names.shown.lacking)
    early = await ask(running, "sql")
    assert early.status == 503
    assert "the adapter sql is not loaded yet" in json.loads(early.body)["error"]["message"]
    assert int(early.headers["Retry-After"]) >= 1
    assert (await ask(running, "tiny")).status == 200
    fetched(house, {SQL.uri: FetchedAdapter(PATH)})
    await eventually(lambda: not running.sidecar.names.shown.lacking)
    state = SidecarState.decode(await running.state())
    assert (state.adapters, state.adapter_sources) == ({"sql": ADAPTER_READY}, {"sql": SQL.uri})
    assert engine.adapters == {"sql": PATH}
    assert (await ask(running, "sql")).status == 200


async def test_what_asks_for_a_removed_adapter_ends_and_newcomers_are_refused(
    house: House,
) -> None:
    fetched(house, {SQL.uri: FetchedAdapter(PATH)})
    engine, running = await started(house, PolicyDocument(adapters=(SQL,)))
    stream = asyncio.create_task(ask(running, "sql", stream=True, max_tokens=300))
    await eventually(lambda: engine.running == 1)
    house.policies(PolicyDocument())
    await eventually(lambda: "sql" in running.sidecar.names.shown.removed)
    late = await ask(running, "sql")
    assert (late.status, json.loads(late.body)["error"]["code"]) == (404, "model_not_found")
    assert (await ask(running, "tiny")).status == 200
    whole = await stream
    assert (whole.status, whole.body.endswith(b"data: [DONE]\n\n")) == (200, True)
    await eventually(lambda: not engine.adapters)


async def test_an_engine_that_starts_again_has_its_names_before_it_gets_what_waited(
    house: House,
) -> None:
    fetched(house, {SQL.uri: FetchedAdapter(PATH)})
    document = PolicyDocument(adapters=(SQL,), aliases=("gpt",))
    engine, running = await started(house, document)
    engine.healthy = False
    await eventually(lambda: running.sidecar.monitor.state is EngineState.DOWN)
    engine.adapters, engine.aliases = {}, ()
    waiting = [asyncio.create_task(ask(running, model)) for model in ("sql", "gpt", "tiny")]
    await eventually(lambda: len(running.sidecar.driver.waiting()) == 3)
    engine.healthy = True
    assert [(await each).status for each in waiting] == [200, 200, 200]


async def test_limits_change_while_requests_run(house: House) -> None:
    _, running = await started(house, PolicyDocument(max_body_bytes=4096))
    long = "x" * 8192
    assert (await ask(running, "tiny", user=long)).status == 413
    house.policies(PolicyDocument(max_body_bytes=16384, max_queued=7))
    await eventually(lambda: running.sidecar.handler.limits.max_requests == 7)
    assert (await ask(running, "tiny", user=long)).status == 200

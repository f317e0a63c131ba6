"""Which names an engine is told, and when: aliases at once, adapters as their files come."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from weir_core.api.labels import ALIASES_PATH
from weir_core.errors import EngineUnavailable
from weir_core.wire.adapters import Fetched, FetchedAdapter
from weir_core.wire.policies import AdapterEntry, PolicyDocument
from weir_sidecar import names
from weir_sidecar.names import Names
from weir_sidecar.upstreams.connections import Reply

SQL = AdapterEntry("sql", "hf://o/sql")
NEWER = AdapterEntry("sql", "hf://o/newer")
LAW = AdapterEntry("law", "pvc://claim/law")
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def path_of(entry: AdapterEntry) -> str:
    return "/models/" + entry.uri.rpartition("/")[2]


class Engine:
    """What the engine serves; stands for the pool of connections to it."""

    def __init__(self) -> None:
        self.aliases: list[str] = []
        self.adapters: dict[str, str] = {}
        self.told: list[str] = []
        """What it was asked to change."""
        self.refuses: dict[str, int] = {}
        """Path to status."""
        self.is_gone = False
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while it is told something."""

    async def get(self, _path: str, **_bounds: float) -> Reply:
        if self.is_gone:
            raise EngineUnavailable("refused")
        cards = [{"id": name, "root": "/m", "parent": None} for name in ("tiny", *self.aliases)]
        cards += [{"id": k, "root": v, "parent": "tiny"} for k, v in self.adapters.items()]
        return Reply(200, json.dumps({"object": "list", "data": cards}).encode())

    async def ask(self, method: str, path: str, *, body: bytes, **_bounds: Any) -> Reply:
        if self.is_gone:
            raise EngineUnavailable("refused")
        fields = json.loads(body)
        self.told.append(f"{method} {path} {' '.join(map(str, fields.values()))}")
        self.meanwhile()
        if path in self.refuses:
            return Reply(self.refuses[path], b'{"error": {"message": "no such rank"}}')
        if path == ALIASES_PATH:
            self.aliases = fields["aliases"]
        elif path == LOAD:
            self.adapters[fields["lora_name"]] = fields["lora_path"]
        else:
            del self.adapters[fields["lora_name"]]
        return Reply(200, b"")


class Requests:
    """What requests in flight ask for; stands for the registry."""

    def __init__(self) -> None:
        self.models: set[str] = set()

    def asking_for(self, model: str) -> bool:
        return model in self.models


class Scene:
    """An engine, its names, the files that were fetched, and a clock that the test moves."""

    def __init__(self, directory: Path, slots: int) -> None:
        self.now = 100.0
        self.file = directory / "adapters.json"
        self.engine, self.requests = Engine(), Requests()
        self.names = Names(
            self.engine,  # type: ignore[arg-type]
            self.requests,  # type: ignore[arg-type]
            self.file,
            slots,
            lambda: self.now,
        )
        self.met = 0
        self.names.on_met = self.meet

    def meet(self) -> None:
        self.met += 1

    def declare(self, *adapters: AdapterEntry, aliases: tuple[str, ...] = ()) -> None:
        self.names.apply(PolicyDocument(adapters=adapters, aliases=aliases))

    def fetch(self, *entries: AdapterEntry, error: str = "") -> None:
        found = {
            each.uri: FetchedAdapter(error=error) if error else FetchedAdapter(path_of(each))
            for each in entries
        }
        self.file.write_bytes(Fetched(found).encode())

    async def looks(self, after_s: float = 0.0) -> None:
        self.now += after_s
        await self.names.look()

    async def running(self, *adapters: AdapterEntry) -> None:
        """Have an engine that serves these and gets requests."""
        self.declare(*adapters)
        self.fetch(*adapters)
        self.names.engine_answers()
        await self.looks()
        assert self.names.engine_answers()
        self.engine.told.clear()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, slots=4)


async def test_an_engine_that_should_have_one_name_is_asked_nothing(scene: Scene) -> None:
    scene.engine.is_gone = True
    scene.declare()
    assert scene.names.engine_answers()
    await scene.looks()
    assert scene.names.shown.lacking == frozenset()


async def test_aliases_are_told_again_only_when_they_change(scene: Scene) -> None:
    scene.declare(aliases=("gpt", "best"))
    assert not scene.names.engine_answers(), "not before it has its names"
    await scene.looks()
    assert scene.met == 1
    assert scene.names.engine_answers()
    await scene.looks(10.0)
    scene.declare(aliases=("gpt",))
    await scene.looks()
    scene.declare()
    await scene.looks()
    assert scene.engine.told == [
        f"PUT {ALIASES_PATH} {told}" for told in ("['gpt', 'best']", "['gpt']", "[]")
    ]


async def test_an_engine_that_takes_no_aliases_serves_all_the_same(scene: Scene) -> None:
    scene.engine.refuses[ALIASES_PATH] = 404
    scene.declare(aliases=("gpt",))
    scene.names.engine_answers()
    await scene.looks()
    await scene.looks(10.0)
    assert scene.names.engine_answers()
    assert len(scene.engine.told) == 1


async def test_an_engine_gets_requests_once_its_adapters_are_loaded(scene: Scene) -> None:
    scene.declare(SQL, LAW)
    scene.fetch(SQL)
    scene.names.engine_answers()
    await scene.looks()
    assert not scene.names.engine_answers()
    scene.fetch(SQL, LAW)
    await scene.looks()
    assert scene.names.engine_answers()
    assert scene.engine.adapters == {"sql": path_of(SQL), "law": path_of(LAW)}
    assert scene.names.states() == {"sql": "ready", "law": "ready"}


FAILURES: dict[str, Callable[[Scene], None]] = {
    "that cannot be fetched": lambda scene: scene.fetch(SQL, error="no such repository"),
    "that the engine refuses": lambda scene: scene.engine.refuses.update({LOAD: 400}),
}


@pytest.mark.parametrize("broken", FAILURES)
async def test_an_adapter_keeps_no_engine_from_its_requests(scene: Scene, broken: str) -> None:
    scene.declare(SQL)
    scene.fetch(SQL)
    FAILURES[broken](scene)
    scene.names.engine_answers()
    await scene.looks()
    assert scene.names.engine_answers()
    assert scene.names.shown.lacking == {"sql"}
    assert scene.names.states()["sql"] in {"no such repository", "no such rank"}


async def test_an_adapter_that_is_long_in_coming_keeps_no_engine_from_its_requests(
    scene: Scene,
) -> None:
    scene.declare(SQL)
    scene.names.engine_answers()
    await scene.looks(names.MET_WITHIN_S - 1)
    assert not scene.names.engine_answers()
    await scene.looks(1)
    assert scene.names.engine_answers()
    assert scene.names.shown.lacking == {"sql"}


async def test_an_adapter_that_is_added_is_lacking_until_it_is_loaded(scene: Scene) -> None:
    await scene.running(SQL)
    scene.declare(SQL, LAW)
    assert scene.names.shown.lacking == {"law"}
    await scene.looks()
    assert scene.engine.told == []
    scene.fetch(SQL, LAW)
    await scene.looks()
    assert scene.engine.told == [f"POST {LOAD} law {path_of(LAW)}"]
    assert scene.names.shown.lacking == frozenset()


async def test_a_load_that_fails_is_tried_again_ever_more_seldom(scene: Scene) -> None:
    await scene.running()
    scene.engine.refuses[LOAD] = 400
    scene.declare(SQL)
    scene.fetch(SQL)
    tries = []
    while scene.now < 1000.0:
        await scene.looks(1.0)
        if scene.engine.told:
            tries.append(scene.now)
            scene.engine.told.clear()
    waits = [round(after - before) for before, after in pairwise(tries)]
    assert waits == [5, 10, 20, 40, 80, 160, 300][: len(waits)]
    assert len(waits) >= 6
    scene.engine.refuses.clear()
    await scene.looks(names.TRY_AGAIN_S[1])
    assert scene.names.states() == {"sql": "ready"}


async def test_other_weights_are_tried_at_once(scene: Scene) -> None:
    await scene.running()
    scene.engine.refuses[LOAD] = 400
    scene.declare(SQL)
    scene.fetch(SQL, NEWER)
    await scene.looks()
    scene.engine.refuses.clear()
    scene.declare(NEWER)
    await scene.looks()
    assert scene.engine.adapters == {"sql": path_of(NEWER)}


async def test_one_that_is_removed_goes_when_no_request_asks_for_it(scene: Scene) -> None:
    await scene.running(SQL, LAW)
    scene.requests.models = {"sql"}
    scene.declare(LAW)
    assert scene.names.shown.removed == {"sql"}
    await scene.looks()
    await scene.looks(names.LINGER_S * 2)
    assert scene.engine.told == [], "a request asks for it"
    scene.requests.models = set()
    await scene.looks(1.0)
    assert scene.engine.told == [f"POST {UNLOAD} sql"]
    await scene.looks(1.0)
    assert scene.names.shown.removed == frozenset(), "the engine knows best"


async def test_one_that_is_removed_waits_for_sidecars_that_hear_of_it_later(scene: Scene) -> None:
    await scene.running(SQL)
    scene.declare()
    await scene.looks()
    await scene.looks(names.LINGER_S - 1)
    assert scene.engine.told == []
    await scene.looks(1)
    assert scene.engine.told == [f"POST {UNLOAD} sql"]


async def test_requests_that_never_end_keep_none_for_ever(scene: Scene) -> None:
    await scene.running(SQL)
    scene.requests.models = {"sql"}
    scene.declare()
    await scene.looks()
    await scene.looks(names.DRAINED_WITHIN_S)
    assert scene.engine.told == [f"POST {UNLOAD} sql"]


async def test_one_that_comes_back_in_time_stays(scene: Scene) -> None:
    await scene.running(SQL)
    scene.declare()
    await scene.looks()
    scene.declare(SQL)
    await scene.looks(names.LINGER_S)
    assert scene.engine.told == []
    assert scene.names.states() == {"sql": "ready"}


async def test_new_weights_take_the_old_ones_place_when_no_request_uses_those(
    scene: Scene,
) -> None:
    await scene.running(SQL)
    scene.requests.models = {"sql"}
    scene.declare(NEWER)
    await scene.looks()
    assert scene.names.shown.lacking == frozenset(), "the old ones serve until the new ones came"
    scene.fetch(NEWER)
    await scene.looks()
    assert scene.names.shown.lacking == {"sql"}
    await scene.looks(1.0)
    assert scene.engine.told == []
    scene.requests.models = set()
    await scene.looks(1.0)
    assert scene.engine.told == [f"POST {UNLOAD} sql", f"POST {LOAD} sql {path_of(NEWER)}"]
    assert scene.names.shown.lacking == frozenset()


async def test_an_engine_that_starts_again_gets_all_of_them_before_requests(scene: Scene) -> None:
    await scene.running(SQL)
    scene.engine.adapters.clear()
    scene.names.engine_gone()
    await scene.looks()
    assert scene.names.shown.lacking == frozenset(), "requests wait for it as for the model"
    assert not scene.names.engine_answers()
    await scene.looks()
    assert scene.engine.told == [f"POST {LOAD} sql {path_of(SQL)}"]
    assert scene.names.engine_answers()


async def test_one_that_dies_while_it_is_told_is_told_again(scene: Scene) -> None:
    scene.declare(SQL)
    scene.fetch(SQL)
    scene.names.engine_answers()
    await scene.looks()
    scene.engine.adapters.clear()
    scene.engine.is_gone = True
    scene.declare(SQL, aliases=("gpt",))
    await scene.looks()
    scene.engine.is_gone = False
    await scene.looks()
    assert scene.engine.adapters == {"sql": path_of(SQL)}
    assert scene.engine.aliases == ["gpt"]


async def test_a_replica_without_room_lacks_them_and_serves(tmp_path: Path) -> None:
    scene = Scene(tmp_path, slots=0)
    scene.declare(SQL)
    scene.fetch(SQL)
    scene.names.engine_answers()
    await scene.looks()
    assert scene.names.engine_answers()
    assert scene.engine.told == []
    assert scene.names.shown.lacking == {"sql"}


async def test_one_that_is_removed_while_no_sidecar_runs_goes_with_the_next_one(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.running(SQL, LAW)
    after = Scene(tmp_path, slots=4)
    after.engine.adapters = {**scene.engine.adapters, "theirs": "/models/theirs"}
    after.declare()
    after.names.engine_answers()
    await after.looks()
    assert after.names.engine_answers()
    assert after.names.shown.removed == {"sql", "law"}
    await after.looks(names.LINGER_S)
    assert after.engine.adapters == {"theirs": "/models/theirs"}
    await after.looks()
    last = Scene(tmp_path, slots=4)
    last.declare()
    assert last.names.engine_answers(), "there is nothing left to unload"


async def test_notes_that_are_none_are_as_good_as_missing(tmp_path: Path) -> None:
    (tmp_path / names.OURS_FILE).write_text("{")
    scene = Scene(tmp_path, slots=4)
    await scene.running(SQL)
    assert json.loads((tmp_path / names.OURS_FILE).read_text()) == ["sql"]


async def test_what_someone_else_loaded_stays(scene: Scene) -> None:
    scene.engine.adapters["theirs"] = "/models/theirs"
    await scene.running(SQL)
    await scene.looks(names.DRAINED_WITHIN_S)
    assert "theirs" in scene.engine.adapters


async def test_one_that_cannot_be_unloaded_is_in_no_other_ones_way(scene: Scene) -> None:
    await scene.running(SQL)
    scene.engine.refuses[UNLOAD] = 500
    scene.declare(LAW)
    scene.fetch(LAW)
    await scene.looks()
    await scene.looks(names.LINGER_S)
    assert scene.engine.adapters == {"sql": path_of(SQL), "law": path_of(LAW)}
    assert scene.names.shown.lacking == frozenset()
    scene.engine.refuses.clear()
    await scene.looks(1.0)
    assert scene.engine.adapters == {"law": path_of(LAW)}


async def test_aliases_that_an_engine_refuses_are_in_no_adapters_way(scene: Scene) -> None:
    await scene.running()
    scene.engine.refuses[ALIASES_PATH] = 500
    scene.declare(SQL, aliases=("gpt",))
    scene.fetch(SQL)
    await scene.looks()
    assert scene.names.states() == {"sql": "ready"}
    scene.engine.refuses.clear()
    await scene.looks(1.0)
    assert scene.engine.aliases == ["gpt"]


async def test_an_engine_that_does_not_answer_once_has_what_it_had(scene: Scene) -> None:
    await scene.running(SQL)
    scene.engine.is_gone = True
    scene.declare(SQL, aliases=("gpt",))
    await scene.looks()
    assert scene.names.shown.lacking == frozenset(), "the monitor says when it is gone"
    assert scene.names.states() == {"sql": "ready"}


async def test_one_that_is_removed_while_another_is_loaded_is_not_loaded(scene: Scene) -> None:
    await scene.running()
    scene.declare(LAW, SQL)
    scene.fetch(LAW, SQL)
    scene.engine.meanwhile = lambda: scene.declare(LAW)
    await scene.looks()
    await scene.looks()
    assert scene.engine.told == [f"POST {LOAD} law {path_of(LAW)}"]


async def test_one_that_is_loaded_serves_while_others_are_loaded(scene: Scene) -> None:
    await scene.running()
    scene.declare(LAW, SQL)
    scene.fetch(LAW, SQL)
    lacking: list[frozenset[str]] = []
    scene.engine.meanwhile = lambda: lacking.append(scene.names.shown.lacking)
    await scene.looks()
    assert lacking == [{"law", "sql"}, {"sql"}]


async def test_a_document_that_changes_does_not_wait_for_all_loads(scene: Scene) -> None:
    await scene.running()
    scene.declare(LAW, SQL)
    scene.fetch(LAW, SQL)
    scene.engine.meanwhile = lambda: scene.declare(LAW, SQL, aliases=("gpt",))
    await scene.looks()
    scene.engine.meanwhile = lambda: None
    await scene.looks()
    assert [told.split()[1] for told in scene.engine.told] == [LOAD, ALIASES_PATH, LOAD]


async def test_an_engine_that_dies_while_two_are_unloaded_is_asked_again(scene: Scene) -> None:
    await scene.running(SQL, LAW)
    scene.declare()
    await scene.looks()
    scene.engine.meanwhile = scene.names.engine_gone
    await scene.looks(names.LINGER_S)
    assert scene.engine.told == [f"POST {UNLOAD} sql"]


async def test_one_that_comes_back_while_another_is_unloaded_stays(scene: Scene) -> None:
    await scene.running(SQL, LAW)
    scene.declare()
    await scene.looks()
    shown: list[frozenset[str]] = []

    def come_back() -> None:
        scene.declare(LAW)
        shown.append(scene.names.shown.lacking)

    scene.engine.meanwhile = come_back
    await scene.looks(names.LINGER_S)
    await scene.looks()
    assert shown[0] == frozenset()
    assert scene.engine.told == [f"POST {UNLOAD} sql"]
    assert scene.names.states() == {"law": "ready"}


async def test_a_name_that_becomes_an_alias_is_the_models_at_once(scene: Scene) -> None:
    await scene.running(SQL)
    scene.requests.models = {"sql"}
    scene.declare(aliases=("sql",))
    await scene.looks()
    assert scene.engine.aliases == ["sql"]
    assert scene.engine.adapters == {}, "vLLM looks for an adapter of the name first"

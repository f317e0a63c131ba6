"""Edits of the files of a running `weir up`: applied, named, or refused; none ends what serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.unit.cli.services import (
    ANONYMOUS,
    GOLD,
    HASH,
    KEYS,
    SERVICE,
    TENANT,
    planned,
    written,
)
from weir_cli.documents import Documents, load
from weir_cli.edits import Edit, Edits
from weir_cli.scaling import policy_for
from weir_core.errors import InvalidSpec
from weir_core.wire.policies import PolicyDocument

CHAT: Final = ("default", "chat")
SQL: Final = "adapters: [{name: sql, source: {uri: 'hf://o/sql'}}]"
CLOSED: Final = (SERVICE, TENANT, KEYS)


class Running:
    """A `weir up` of one file, as far as edits go."""

    def __init__(self, folder: Path, *parts: str, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.path = written(folder, *parts)
        found = load([self.path])
        self.started = planned(found, host).policies
        self.edits = Edits([self.path], self.load, found, {CHAT: self.started}, host)
        assert self.looks() == Edit()

    def load(self) -> Documents:
        return load([self.path])

    def looks(self) -> Edit | None:
        """Look until there is something; at most twice, as often as a settled change takes."""
        return self.edits.look() or self.edits.look()

    def edit(self, *parts: str) -> Edit:
        written(self.folder, *parts)
        found = self.looks()
        assert found is not None
        return found

    @property
    def told(self) -> PolicyDocument:
        return self.edits.told(CHAT)


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that starts a `weir up` of one file with these documents."""
    return lambda *parts, host="127.0.0.1": Running(tmp_path, *parts, host=host)


ROOMY: Final = SERVICE.replace("model: {", "model: {adapterSlots: 2, ")


@pytest.mark.parametrize(
    ("uri", "links"),
    [
        pytest.param("hf://o/sql", {}, id="downloaded"),
        pytest.param("file:///w/sql", {"file-w-sql": Path("/w/sql")}, id="a directory"),
    ],
)
def test_an_adapter_is_added_to_what_runs(run: Run, uri: str, links: dict[str, Path]) -> None:
    running = run(ROOMY)
    edit = running.edit(ROOMY.replace("model: {", f"model: {{{SQL.replace('hf://o/sql', uri)}, "))
    assert edit.notices == ()
    assert edit.fresh == {CHAT: running.told}
    assert [(each.name, each.uri) for each in running.told.adapters] == [("sql", uri)]
    found = {name.rpartition("-")[0]: target for name, target in edit.links.items()}
    assert found == links


def test_an_adapter_on_a_clusters_volume_is_refused_and_all_stays(run: Run) -> None:
    running = run(ROOMY)
    there = SQL.replace("hf://o/sql", "pvc://claim/sql")
    edit = running.edit(ROOMY.replace("model: {", f"model: {{{there}, "))
    assert edit.fresh == {}
    assert "spec.model.adapters[0].source.uri: pvc://claim/sql is on a volume" in edit.notices[0]


def test_files_that_stay_as_they_are_come_to_nothing(run: Run) -> None:
    running = run(SERVICE)
    assert running.looks() is None
    os.utime(running.path)
    assert running.looks() is None


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([SERVICE, GOLD], id="a class"),
        pytest.param(CLOSED, id="a tenant"),
        pytest.param([ANONYMOUS], id="admission"),
        pytest.param([SERVICE, "  engine: {scheduling: {mode: throughput}}\n"], id="mode"),
        pytest.param([SERVICE, "  admission: {maxQueued: 5}\n"], id="a bound"),
        pytest.param([SERVICE.replace("model: {", "model: {aliases: [gpt], ")], id="an alias"),
    ],
)
def test_what_sidecars_are_told_changes_at_once(run: Run, parts: list[str]) -> None:
    running = run(SERVICE)
    edit = running.edit(*parts)
    assert edit == Edit((), {CHAT: running.told})
    assert running.told != running.started


def test_an_edit_keeps_the_peers_and_their_key_and_tells_nobody_the_key(run: Run) -> None:
    running = run(SERVICE)
    edit = running.edit(SERVICE, GOLD)
    assert running.told.classes != running.started.classes
    assert running.told.peers == running.started.peers
    assert running.told.peer_keys == running.started.peer_keys
    assert len(running.told.peers) == 2
    (key,) = running.told.peer_keys
    assert key not in " ".join(edit.notices)


BOMB: Final = "\n".join(
    ["a: &a [x]", *(f"{name}: &{name} [{f'*{before},' * 30}]" for before, name in zip(
        "abcdefgh", "bcdefghi", strict=True))]
)  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        pytest.param(["{"], "is not YAML: line 1", id="no YAML"),
        pytest.param([""], "no InferenceService in it", id="an empty file"),
        pytest.param(["%PDF-1.7 \x00\x01"], "is not YAML", id="another format"),
        pytest.param([SERVICE, "  replcas: 2\n"], "spec.replcas", id="a misspelt field"),
        pytest.param([SERVICE, "  replicas: 1\n" * 2], "'replicas' is written twice", id="twice"),
        pytest.param([SERVICE, GOLD, "---\n- a\n"], "document 3: must be", id="one of three"),
        pytest.param([SERVICE, "  routing: ", "[" * 5000], "100 levels deep", id="nested"),
        pytest.param([SERVICE, "---\n", BOMB], "more than 100000 values", id="aliases"),
        pytest.param([SERVICE, "---\na: &a [*a]\n"], "holds itself", id="recursive"),
        pytest.param([SERVICE, GOLD.replace("9", "!!int high")], "type, int", id="!!int"),
        pytest.param([SERVICE, GOLD.replace("9", "!!float high")], "type, float", id="!!float"),
        pytest.param([SERVICE, GOLD.replace("9", "!!bool maybe")], "type, bool", id="!!bool"),
        pytest.param([SERVICE, GOLD.replace("9", "!!timestamp x")], "timestamp", id="!!timestamp"),
        pytest.param([SERVICE, GOLD.replace("9", "9" * 5000)], "type, int", id="5,000 digits"),
        pytest.param([SERVICE, GOLD.replace("9", "9" * 20)], "into 64 bits", id="20 digits"),
        pytest.param([SERVICE, GOLD.replace("9", ".nan")], "infinite or none", id="no number"),
        pytest.param([SERVICE, GOLD.replace("9", "2026-13-01")], "spec.rank", id="a date"),
        pytest.param(
            [SERVICE, '---\n"\\uD800": x\n'], "the value does not fit its type, str", id="half"
        ),
        pytest.param(
            [SERVICE, "---\nkind: Secret\nmetadata: {name: x}\ndata: {a: schlüssel}\n"],
            "data.a: is not base64",
            id="data outside ASCII",
        ),
        pytest.param([SERVICE, "# ", "x" * 4 * 1024**2], "larger than 4 MiB", id="large"),
    ],
)
def test_what_cannot_be_taken_is_said_and_all_stays(run: Run, parts: list[str], said: str) -> None:
    running = run(*CLOSED)
    edit = running.edit(*parts)
    assert edit.fresh == {}
    (notice,) = edit.notices
    assert notice.startswith((f"not applied: {running.path}", "not applied: the files"))
    assert said in notice
    assert notice.endswith("; all stays as it was")
    assert running.told == running.started


def absent(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def utf_16_half(path: Path) -> None:
    path.write_bytes(b"\xff\xfea")


def not_utf_8(path: Path) -> None:
    path.write_bytes(SERVICE.encode() + b"# \xe9\n")


@pytest.mark.parametrize(
    ("replace", "said"),
    [
        pytest.param(absent, "cannot be read: No such file", id="deleted"),
        pytest.param(directory, "is not a regular file", id="a directory"),
        pytest.param(pipe, "is not a regular file", id="a pipe"),
        pytest.param(loop, "cannot be read: Too many levels", id="a link to itself"),
        pytest.param(utf_16_half, "is not YAML", id="half of UTF-16"),
        pytest.param(not_utf_8, "is not YAML", id="not UTF-8"),
    ],
)
def test_a_file_that_is_another_thing_now_is_said_once_and_heals(
    run: Run, replace: Callable[[Path], None], said: str
) -> None:
    running = run(*CLOSED)
    replace(running.path)
    edit = running.looks()
    assert edit is not None
    (notice,) = edit.notices
    assert said in notice
    assert running.looks() is None
    if running.path.is_dir():
        running.path.rmdir()
    running.path.unlink(missing_ok=True)
    assert running.edit(*CLOSED).notices == ("the files hold what is applied",)
    assert running.edit(*CLOSED, GOLD).fresh == {CHAT: running.told}


def test_an_error_that_nothing_foresaw_is_a_refusal_and_quotes_nothing(tmp_path: Path) -> None:
    def fail() -> Documents:
        raise LookupError("sk-secret")

    running = Running(tmp_path, SERVICE)
    edits = Edits([running.path], fail, load([running.path]), {CHAT: running.started}, "127.0.0.1")
    edit = edits.next()
    assert edit is not None
    (notice,) = edit.notices
    assert notice.startswith("not applied: LookupError while they were read")
    assert "sk-secret" not in notice


# ---- when a change counts


def test_a_file_counts_when_two_looks_saw_the_same(run: Run) -> None:
    running = run(*CLOSED)
    written(running.folder, *CLOSED[:2])
    assert running.edits.look() is None
    written(running.folder, *CLOSED, GOLD)
    assert running.edits.look() is None
    edit = running.edits.look()
    assert edit == Edit((), {CHAT: running.told})
    assert running.edits.look() is None


def test_what_changes_while_it_is_read_does_not_count_yet(tmp_path: Path) -> None:
    running = Running(tmp_path, SERVICE)

    def load_slowly() -> Documents:
        found = load([running.path])
        if later:
            written(tmp_path, later.pop())
        return found

    later = [SERVICE + "# and more\n"]
    edits = Edits([running.path], load_slowly, running.load(), {CHAT: running.started}, "127.0.0.1")
    assert edits.next() is None
    assert [edits.look(), edits.look()] == [None, Edit()]


@pytest.mark.parametrize("same_time", [False, True])
def test_an_editor_that_saves_by_renaming_is_followed(run: Run, same_time: bool) -> None:
    running = run(SERVICE)
    fresh = running.path.with_name("weir.yaml~")
    fresh.write_text(SERVICE + GOLD)
    if same_time:
        found = running.path.stat()
        os.utime(fresh, ns=(found.st_atime_ns, found.st_mtime_ns))
    fresh.rename(running.path)
    edit = running.looks()
    assert edit is not None
    assert edit.fresh == {CHAT: running.told}


def test_a_link_that_is_swapped_is_followed_as_in_a_mounted_config_map(tmp_path: Path) -> None:
    for name, parts in {"old": [SERVICE], "new": [SERVICE, GOLD]}.items():
        (tmp_path / name).mkdir()
        written(tmp_path / name, *parts)
    (tmp_path / "data").symlink_to("old")
    path = tmp_path / "data" / "weir.yaml"
    found = load([path])
    told = {CHAT: planned(found).policies}
    edits = Edits([path], lambda: load([path]), found, told, "127.0.0.1")
    assert [edits.look(), edits.look()] == [None, Edit()]
    (tmp_path / "data.new").symlink_to("new")
    (tmp_path / "data.new").rename(tmp_path / "data")
    assert edits.look() is None
    edit = edits.look()
    assert edit is not None
    assert edit.fresh == {CHAT: edits.told(CHAT)}


def test_an_edit_between_the_start_and_the_first_look_is_seen(tmp_path: Path) -> None:
    path = written(tmp_path, SERVICE)
    found = load([path])
    written(tmp_path, SERVICE, GOLD)
    told = {CHAT: planned(found).policies}
    edits = Edits([path], lambda: load([path]), found, told, "127.0.0.1")
    assert edits.look() is None
    edit = edits.look()
    assert edit is not None
    assert edit.fresh == {CHAT: edits.told(CHAT)}


# ---- what an edit may do


@pytest.mark.parametrize(
    ("started", "parts"),
    [
        pytest.param(CLOSED, [SERVICE], id="the tenants are gone"),
        pytest.param(CLOSED, [SERVICE, KEYS], id="the keys remain"),
        pytest.param(CLOSED, [SERVICE, GOLD], id="a class changed as well"),
        pytest.param(CLOSED, [SERVICE.replace("chat", "talk")], id="another service instead"),
        pytest.param(
            CLOSED, [SERVICE, TENANT.replace("app", "new")], id="another tenant without keys"
        ),
        pytest.param([ANONYMOUS], [SERVICE], id="the class of callers without a key is gone"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_no_edit_opens_a_service_by_what_is_missing(
    run: Run, started: list[str], parts: list[str], host: str
) -> None:
    running = run(*started, host=host)
    edit = running.edit(*parts)
    assert edit.fresh == {}
    assert running.told == running.started
    assert (
        f"chat: not applied: it has no tenants left, so everybody who reaches {host}"
        in (edit.notices[-1])
    )


def test_a_service_opens_where_the_files_say_so(run: Run) -> None:
    running = run(*CLOSED)
    assert running.edit(ANONYMOUS).fresh == {CHAT: running.told}
    assert (running.told.tenants, running.told.anonymous_class) == ((), "standard")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([SERVICE, TENANT], id="a Secret that is missing"),
        pytest.param([SERVICE, TENANT, KEYS.replace(HASH, "sk-a")], id="a key instead of a hash"),
        pytest.param([SERVICE, TENANT + "  # x\n", KEYS.replace(HASH, "''")], id="no hash"),
    ],
)
def test_a_broken_tenant_keeps_its_last_version_and_a_class_beside_it_changes(
    run: Run, parts: list[str]
) -> None:
    running = run(*CLOSED)
    edit = running.edit(*parts, GOLD)
    (notice,) = edit.notices
    assert notice.startswith("chat: not applied: ")
    assert notice.endswith("; it stays as it was")
    assert running.told.tenants[0].key_hashes == (HASH,)
    assert [policy.rank for policy in running.told.classes] == [9]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        pytest.param([SERVICE, "  replicas: 2\n"], "chat: spec.replicas changed", id="replicas"),
        pytest.param(
            [SERVICE.replace("model: {", "model: {adapterSlots: 2, ")],
            "spec.model.adapters (slots)",
            id="room for adapters",
        ),
        pytest.param([SERVICE.replace("chat", "talk")], "talk: is new", id="another service"),
        pytest.param(
            [SERVICE, "---\n", SERVICE.replace("chat", "talk")], "talk: is new", id="a second one"
        ),
    ],
)
def test_what_needs_a_restart_is_named(run: Run, parts: list[str], said: str) -> None:
    edit = run(SERVICE).edit(*parts)
    assert edit.fresh == {}
    assert said in edit.notices[0]
    assert "start it again" in edit.notices[0]


def test_a_key_is_revoked_in_a_service_that_was_renamed_in_the_same_edit(run: Run) -> None:
    running = run(*CLOSED)
    edit = running.edit(SERVICE.replace("chat", "talk"), TENANT, KEYS.replace(HASH, "f" * 64))
    assert [notice.partition(";")[0] for notice in edit.notices] == [
        "talk: is new",
        "chat: is no longer in the files and serves on",
    ]
    assert running.told.tenants[0].key_hashes == ("f" * 64,)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["{"], id="no YAML"),
        pytest.param([SERVICE, TENANT], id="a Secret that is missing"),
        pytest.param([*CLOSED, "---\n", SERVICE.replace("chat", "talk")], id="a second service"),
    ],
)
def test_an_edit_that_is_undone_is_said_to_be_well(run: Run, parts: list[str]) -> None:
    running = run(*CLOSED)
    assert running.edit(*parts).notices
    assert running.edit(*CLOSED) == Edit(("the files hold what is applied",))
    assert running.edit(*CLOSED, "# more\n") == Edit()


def test_a_file_is_refused_as_it_would_be_at_the_start(run: Run) -> None:
    running = run(SERVICE)
    with pytest.raises(InvalidSpec, match="no InferenceService in it"):
        planned(load([written(running.folder, GOLD)]))
    assert "no InferenceService in it" in running.edit(GOLD).notices[0]


SCALING: Final = "  scaling: {{minReplicas: {least}, maxReplicas: {most}}}\n"


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        pytest.param(1, 2, "follow the work by the new spec.scaling", id="fewer"),
        pytest.param(1, 9, "up to 3; for 9 start `weir up` again", id="more than there are places"),
        pytest.param(0, 3, "down to 1; for 0 start `weir up` again", id="none, and no gateway"),
    ],
)
def test_another_scaling_applies_while_it_runs(run: Run, least: int, most: int, said: str) -> None:
    running = run(SERVICE, SCALING.format(least=1, most=3))
    edit = running.edit(SERVICE, SCALING.format(least=least, most=most))
    assert list(edit.scaled) == [CHAT]
    (notice,) = edit.notices
    assert notice.endswith(said)


@pytest.mark.parametrize(("sleeps", "fewest"), [(True, 0), (False, 1)], ids=["woken", "never"])
def test_a_service_sleeps_only_where_its_gateway_can_be_asked(
    tmp_path: Path, sleeps: bool, fewest: int
) -> None:
    (service,) = load([written(tmp_path, SERVICE, SCALING.format(least=0, most=3))]).services
    assert policy_for(service, sleeps=sleeps).min_replicas == fewest


@pytest.mark.parametrize("scales_first", [True, False], ids=["removed", "added"])
def test_scaling_is_neither_added_nor_removed_while_it_runs(run: Run, scales_first: bool) -> None:
    with_scaling = [SERVICE, SCALING.format(least=1, most=3)]
    before, after = (with_scaling, [SERVICE]) if scales_first else ([SERVICE], with_scaling)
    edit = run(*before).edit(*after)
    assert edit.scaled == {}
    assert edit.notices == (
        "chat: spec.scaling changed; stop this `weir up` and start it again for that",
    )

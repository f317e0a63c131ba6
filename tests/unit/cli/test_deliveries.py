"""A document counts as applied when each sidecar of its service has it, and not before."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from weir_cli.deliveries import Deliveries

CHAT: Final = ("default", "chat")


def in_the_way(path: Path) -> Path:
    """Make a write fail, as a full disk would; return what has to go."""
    obstacle = path.with_name(f".{path.name}.new")
    obstacle.mkdir(parents=True)
    return obstacle


def test_a_document_is_written_until_every_file_holds_it(tmp_path: Path) -> None:
    first, second = tmp_path / "1" / "policies.json", tmp_path / "2" / "policies.json"
    first.parent.mkdir()
    obstacle = in_the_way(second)
    deliveries = Deliveries()
    deliveries.add(CHAT, "new", {first: "chat-1", second: "chat-2"}, "applied what changed")
    (notice,) = deliveries.attempt()
    assert notice.startswith("chat: not applied everywhere yet: chat-2: ")
    assert notice.endswith("; trying until it is")
    assert first.read_text() == "new"
    assert list(deliveries.attempt()) == []
    obstacle.rmdir()
    assert list(deliveries.attempt()) == ["chat: applied what changed"]
    assert second.read_text() == "new"
    assert list(deliveries.attempt()) == []


def test_a_newer_document_takes_the_place_of_one_on_its_way(tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    obstacle = in_the_way(path)
    deliveries = Deliveries()
    deliveries.add(CHAT, "old", {path: "chat-1"}, "applied the old one")
    assert len(list(deliveries.attempt())) == 1
    deliveries.add(CHAT, "new", {path: "chat-1"}, "applied the new one")
    assert len(list(deliveries.attempt())) == 1
    obstacle.rmdir()
    assert list(deliveries.attempt()) == ["chat: applied the new one"]
    assert path.read_text() == "new"


def test_services_do_not_wait_for_each_other(tmp_path: Path) -> None:
    stuck, free = tmp_path / "1" / "policies.json", tmp_path / "policies.json"
    in_the_way(stuck)
    deliveries = Deliveries()
    deliveries.add(CHAT, "new", {stuck: "chat-1"}, "applied")
    deliveries.add(("other", "chat"), "new", {free: "chat-1"}, "applied")
    assert len(list(deliveries.attempt())) == 2
    assert free.read_text() == "new"


def test_what_a_document_speaks_of_is_there_before_it(tmp_path: Path) -> None:
    path, link = tmp_path / "policies.json", tmp_path / "models" / "file-sql"
    deliveries = Deliveries()
    deliveries.add(CHAT, "new", {path: "chat-1"}, "applied", {link: tmp_path})
    (notice,) = deliveries.attempt()
    assert "not applied everywhere yet" in notice
    assert not path.exists()
    link.parent.mkdir()
    assert list(deliveries.attempt()) == ["chat: applied"]
    assert link.readlink() == tmp_path

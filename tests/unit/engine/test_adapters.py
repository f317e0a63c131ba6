"""Adapters are fetched while the pod runs, each by itself, and the sidecar reads what is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.engine.local_http import serving
from tests.unit.engine.local_hub import Hub
from weir_core.wire.adapters import Fetched, FetchedAdapter
from weir_core.wire.policies import AdapterEntry, PolicyDocument
from weir_engine.adapters import Adapters

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


class Pod:
    """The directories that the container shares with others."""

    def __init__(self, directory: Path, hub: str) -> None:
        self.models, self.told = directory / "models", directory / "adapters.json"
        self.document = directory / "policies.json"
        self.models.mkdir()
        environment = {**os.environ, "HF_ENDPOINT": hub, "WEIR_MODEL_DIR": str(self.models)}
        self.adapters = Adapters(self.document, self.told, str(self.models), environment)

    def declare(self, **uris: str) -> None:
        entries = tuple(AdapterEntry(name, uri) for name, uri in uris.items())
        self.document.write_bytes(PolicyDocument(adapters=entries).encode())

    async def until(self, told: Callable[[dict[str, FetchedAdapter]], bool]) -> None:
        """Look until the sidecar is told this."""
        async with asyncio.timeout(120):
            while True:
                self.adapters.look()
                if told(Fetched.decode(self.told.read_bytes()).sources):
                    return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def pod(directory: Path, hub: Hub) -> AsyncIterator[Pod]:
    with serving(hub) as url:
        made = Pod(directory, url)
        try:
            yield made
        finally:
            await made.adapters.close()


async def test_each_is_fetched_and_told_by_where_it_is(tmp_path: Path) -> None:
    async with pod(tmp_path, Hub({"o/sql": FILES, "o/law": FILES})) as one:
        one.declare(sql="hf://o/sql")
        await one.until(lambda told: bool(told.get("hf://o/sql", FetchedAdapter()).path))
        one.declare(sql="hf://o/sql", law="hf://o/law")
        await one.until(lambda told: bool(told.get("hf://o/law", FetchedAdapter()).path))
        for each in Fetched.decode(one.told.read_bytes()).sources.values():
            assert Path(each.path).parent == one.models
            assert FILES.keys() <= set(os.listdir(each.path))
        one.declare(law="hf://o/law")
        await one.until(lambda told: list(told) == ["hf://o/law"])


async def test_one_that_cannot_be_had_is_told_and_keeps_no_other(tmp_path: Path) -> None:
    async with pod(tmp_path, Hub({"o/sql": FILES})) as one:
        one.declare(none="hf://o/none", unmounted="pvc://claim/x", sql="hf://o/sql")
        await one.until(lambda told: len(told) == 3)
        told = Fetched.decode(one.told.read_bytes()).sources
        assert told["hf://o/sql"].path
        assert "is its volume mounted?" in told["pvc://claim/x"].error
        assert told["hf://o/none"].error.startswith("hf://o/none")


async def test_a_download_that_is_not_wanted_any_more_is_ended(tmp_path: Path) -> None:
    async with pod(tmp_path, Hub({"o/sql": FILES})) as one:
        one.declare(sql="hf://o/sql")
        one.adapters.look()
        await asyncio.sleep(0)  # it begins
        one.declare()
        await one.until(lambda told: not told)
        assert not list(one.models.glob("hf-*-????????"))


@pytest.mark.parametrize("content", [b"", b"{", b'{"adapters": 3}'])
async def test_a_document_that_cannot_be_read_changes_nothing(
    tmp_path: Path, content: bytes
) -> None:
    async with pod(tmp_path, Hub({"o/sql": FILES})) as one:
        one.declare(sql="hf://o/sql")
        await one.until(lambda told: bool(told.get("hf://o/sql", FetchedAdapter()).path))
        before = one.told.read_bytes()
        one.document.write_bytes(content)
        one.adapters.look()
        assert one.told.read_bytes() == before


async def test_a_document_that_is_away_changes_nothing(tmp_path: Path) -> None:
    async with pod(tmp_path, Hub({"o/sql": FILES})) as one:
        one.declare(sql="hf://o/sql")
        await one.until(lambda told: bool(told.get("hf://o/sql", FetchedAdapter()).path))
        before = one.told.read_bytes()
        one.document.unlink()
        one.adapters.look()
        assert one.told.read_bytes() == before


async def test_what_is_wrong_at_every_look_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with pod(tmp_path, Hub({})) as one:
        one.document.write_bytes(b"{")
        for _ in range(5):
            one.adapters.look()
        said = capsys.readouterr().err
        assert said.count("the document of adapters cannot be read") == 1
        one.declare()
        one.adapters.look()
        one.document.write_bytes(b"{")
        one.adapters.look()
        assert capsys.readouterr().err.count("the document of adapters cannot be read") == 1
        one.declare()
        one.told.parent.joinpath(f".{one.told.name}.new").mkdir()
        one.told.unlink()
        for _ in range(5):
            one.adapters.look()
        assert capsys.readouterr().err.count("the sidecar cannot be told") == 1

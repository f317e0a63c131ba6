"""Logs are kept from growing without end, whatever the disk says."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from weir_cli import logs


async def _bounded_once(folder: Path) -> list[str]:
    told: list[str] = []
    task = asyncio.create_task(logs.keep_bounded(folder, told.append))
    log = folder / "a.engine.log"
    async with asyncio.timeout(5.0):
        while log.stat().st_size:  # noqa: ASYNC110 - files tell nobody that they changed
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return told


async def test_a_log_that_grew_too_large_starts_over_and_its_past_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LARGEST_BYTES", 10)
    (tmp_path / "a.engine.log").write_text("x" * 11)
    assert await _bounded_once(tmp_path) == []
    assert (tmp_path / "a.engine.log.1").read_text() == "x" * 11


async def test_a_full_disk_costs_the_past_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(logs, "LARGEST_BYTES", 10)
    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "a.engine.log").write_text("x" * 11)
    assert await _bounded_once(tmp_path) == [
        "a.engine.log starts over, and its past is lost: no space left"
    ]


async def test_logs_that_someone_removes_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(path: Path, _: Path) -> None:
        path.unlink()

    monkeypatch.setattr(logs, "LARGEST_BYTES", 10)
    monkeypatch.setattr(shutil, "copyfile", removed)
    (tmp_path / "a.engine.log").write_text("x" * 11)
    told: list[str] = []
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(logs.keep_bounded(tmp_path, told.append, every_s=0.01), 0.1)
    assert told == []

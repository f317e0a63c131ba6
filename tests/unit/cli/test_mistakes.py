"""`weir render` answers each plausible mistake with the field and what to write, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mistakes import MISTAKES, ONE_CLASS, ONE_SERVICE, ONE_TENANT, Mistake
from weir_cli.__main__ import main
from weir_cli.documents import load

BY_ID = [pytest.param(each, id=each.id) for each in MISTAKES]


def written(folder: Path, *documents: dict[str, Any]) -> Path:
    path = folder / "weir.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines with which `weir render` refuses a file, without its name."""
    with pytest.raises(SystemExit) as left:
        main(["render", str(path)])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    return [line.removeprefix(f"weir: {path}: ") for line in err.splitlines()]


def told(mistake: Mistake, number: int = 1) -> str:
    document = mistake.document
    whose = f"{document['kind']} {document['metadata']['name']}"
    return f"document {number} ({whose}): {mistake.field}: {mistake.says}"


def test_there_are_as_many_as_promised() -> None:
    assert len({each.id for each in MISTAKES}) == len(MISTAKES) >= 29


@pytest.mark.parametrize(
    "right", [ONE_SERVICE, ONE_CLASS, ONE_TENANT], ids=lambda each: each["kind"]
)
def test_the_documents_without_a_mistake_are_accepted(
    right: dict[str, Any], tmp_path: Path
) -> None:
    load([written(tmp_path, right)])


@pytest.mark.parametrize("mistake", BY_ID)
def test_names_the_field_and_what_to_write(
    mistake: Mistake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(written(tmp_path, mistake.document), capsys) == [told(mistake)]


def test_all_mistakes_of_a_file_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, *(each.document for each in MISTAKES))
    assert refused(path, capsys) == [told(each, number) for number, each in enumerate(MISTAKES, 1)]


def test_all_mistakes_of_a_document_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_id = {each.id: each for each in MISTAKES}
    both = [by_id["a name with dots"], by_id["a rollout that replaces nothing"]]
    both += [by_id["a container without an image"], by_id["a flag's twin"]]
    change = {key: value for each in both for key, value in each.change.items()}
    document = both[0]._replace(change=change).document
    lines = refused(written(tmp_path, document), capsys)
    assert sorted(line.partition("): ")[2] for line in lines) == sorted(
        f"{each.field}: {each.says}" for each in both
    )

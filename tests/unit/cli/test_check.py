"""`weir check` names what it found, warns of what a cluster may have, and refuses the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.cli.services import GOLD, KEYS, SERVICE, TENANT
from weir_cli.__main__ import main

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


class Checked(NamedTuple):
    code: object
    found: list[str]
    said: list[str]


Check = Callable[..., Checked]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*files: Path) -> Checked:
        with pytest.raises(SystemExit) as left:
            main(["check", *map(str, files)])
        out, err = capsys.readouterr()
        return Checked(left.value.code or 0, out.splitlines(), err.splitlines())

    return run


def files(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def test_prints_a_line_for_each_resource(check: Check, tmp_path: Path) -> None:
    first, second = files(tmp_path, SERVICE + TENANT, KEYS + GOLD)
    assert check(first, second) == (
        0,
        [
            f"{first}: document 1: InferenceService default/chat",
            f"{first}: document 2: InferenceTenant default/app",
            f"{second}: document 1: Secret default/app-keys",
            f"{second}: document 2: InferencePriorityClass standard",
        ],
        [],
    )


def test_warns_once_of_what_only_a_cluster_may_have(check: Check, tmp_path: Path) -> None:
    twice = SERVICE + "---\n" + SERVICE.replace("chat", "talk") + TENANT
    (path,) = files(tmp_path, twice)
    checked = check(path)
    assert checked.code == 0
    (warning,) = checked.said
    place = f"{path}: document 3 (InferenceTenant app): spec.apiKeySecretRef"
    assert warning.startswith(f"weir: by these files alone: {place}")


def test_tells_the_faults_of_all_files_at_once(check: Check, tmp_path: Path) -> None:
    bad = SERVICE.replace("count: 0", "count: many")
    broken, listed, wrong = files(tmp_path, "a: [", "- a", bad)
    missing = tmp_path / "missing.yaml"
    checked = check(missing, broken, listed, wrong)
    assert (checked.code, checked.found) == (2, [])
    places = [line.removeprefix("weir: ").partition(": ")[0] for line in checked.said]
    assert places == [str(path) for path in (missing, broken, listed, wrong)]
    assert "spec.pools[0].accelerator.count" in checked.said[-1]


def test_files_without_a_resource_are_refused(check: Check, tmp_path: Path) -> None:
    checked = check(*files(tmp_path, "# nothing", "---"))
    assert (checked.code, checked.found) == (2, [])
    assert "no resource in any of the files" in checked.said[0]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_accepts_each_example(check: Check, example: Path) -> None:
    assert check(example).code == 0

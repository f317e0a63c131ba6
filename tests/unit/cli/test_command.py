"""The program `weir`, as pipx puts it on the PATH."""

from __future__ import annotations

import sys

import pytest

from weir_cli.command import main


def test_without_the_extra_it_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "weir_cli.__main__", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as left:
        main()
    said = str(left.value)
    assert said.startswith("weir: typer is not installed; ")
    assert said.endswith("-py3-none-any.whl[cli]'")

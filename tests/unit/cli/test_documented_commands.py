"""Every `weir ...` command a document shows is one the command line understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from weir_cli.__main__ import app

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[str]:
    """Return what stands after `weir` in backticks and on lines of blocks to be typed.

    Sketches such as `run | compare` are left out.
    """
    found = set()
    for document in DOCUMENTS:
        text = document.read_text()
        spans = re.findall(r"`(?:\.venv/bin/)?weir ([^`]+)`", text)
        typed = "".join(
            re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        )
        spans += re.findall(r"^(?:\$ )?weir ([^\n#]+)", typed, re.MULTILINE)
        found |= {span for span in spans if not set(span) & set("|[") and "..." not in span}
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(re.sub(r"\bL\b", "1", line))
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if not words or words == ["--help"]:
        return  # the name of a command, which exists
    assert not hasattr(command, "commands"), f"`weir {line}` names no command"
    command.make_context(command.name, words).close()

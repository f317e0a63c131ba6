"""Each command and each picture that a document shows has a test.

The blocks of `TESTED` are run or compared as they stand, by the tests named there. Every other one
is YAML or a diagram, or consists of commands that are read here: one that names another program
needs a reader, or a test that types it.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from weir_core.api import labels
from weir_core.wire.paths import POSTS, READS
from weir_operator.render.policies import POLICIES_ANNOTATION

ROOT: Final = Path(__file__).parents[3]
DOCUMENTS: Final = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
FENCE: Final = re.compile(r"^[ ]*```(\S*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)

TESTED: Final = (
    ("README.md", "sh", "curl *", "tests/integration/test_up_quickstart.py"),
    ("README.md", "sh", "WEIR_IMAGES=*", "e2e/test_readme.py"),
    ("docs/clients.md", "text", "event: error*", "tests/unit/packaging/test_documents_blocks.py"),
    ("docs/conditions.md", "sh", "*", "e2e/test_documents.py"),
    ("docs/priorities.md", "sh", "*", "tests/integration/test_priorities_walkthrough.py"),
    ("docs/routing.md", "sh", "*", "tests/integration/test_up_quickstart.py"),
    ("docs/routing.md", "json", "*", "tests/integration/test_up_quickstart.py"),
    ("docs/runbook.md", "sh", "*", "e2e/test_documents.py"),
    ("docs/runbook.md", "promql", "*", "tests/integration/test_alerts.py"),
    ("docs/scaling.md", "sh", "*", "tests/integration/test_up_scaling.py"),
    ("docs/watch.md", "json", '{"time":*', "tests/unit/packaging/test_documents_blocks.py"),
    ("docs/watch.md", "text", "ask *", "tests/integration/sidecar/test_collector.py"),
)
"""Document, language of a block, how the block begins, and the test that runs or compares it."""
OF_ALL_DOCUMENTS: Final = {
    "yaml": "tests/unit/packaging/test_documents_blocks.py",
    "mermaid": "tests/unit/packaging/test_site.py",
}
"""Language, and the test of all of its blocks."""
READ_HERE: Final = frozenset({"sh", "console"})


INLINE: Final = re.compile(r"`((?:curl|helm|kubectl|pipx) [^`]+)`")


class Command(NamedTuple):
    """A command as a document shows it."""

    document: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        """Return the document and how the command begins."""
        return f"{self.document.name}: {' '.join(self.words)[:50]}"


class Block(NamedTuple):
    """A block as a document shows it."""

    document: Path
    language: str
    text: str

    def __str__(self) -> str:
        """Return the document and how the block begins."""
        return f"{self.document.name}: {' '.join(self.text.split())[:50]}"

    def is_as(self, page: str, language: str, begins: str) -> bool:
        """Return whether a line of `TESTED` is about it."""
        is_there = self.document == ROOT / page and self.language == language
        return is_there and fnmatch(self.text, begins)


BLOCKS: Final = [
    Block(document, language, text)
    for document in DOCUMENTS
    for language, text in FENCE.findall(document.read_text())
]


def untested() -> list[Block]:
    """Return the blocks of which no line of `TESTED` tells."""
    return [each for each in BLOCKS if not any(each.is_as(*line[:3]) for line in TESTED)]


def commands() -> list[Command]:
    """Return what is shown to be typed and no test types, within sentences, too."""
    found = []
    for document in DOCUMENTS:
        for text in INLINE.findall(FENCE.sub("", document.read_text())):
            found += [Command(document, words) for words in split(" ".join(text.split()))]
    for block in untested():
        text = block.text if block.language == "sh" else ""
        if block.language == "console":
            text = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)", block.text, re.MULTILINE))
        found += [Command(block.document, words) for words in split(text)]
    return found


def split(script: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each simple command, without assignments."""
    script = re.sub(r"(^|\s)#.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE)
    script = re.sub(r'"\$\(([^()]*)\)"', r"$(\1)", script)
    lexer = shlex.shlex(script + "\n", posix=True, punctuation_chars="();|&\n")
    lexer.whitespace, lexer.commenters = " \t", ""
    lexer.wordchars += ",:$[]{}@%+!^#<>"
    nested: list[list[str]] = [[]]
    for token in lexer:
        if token.strip("();|&\n"):
            if nested[-1] or not re.match(r"\w+=", token):
                nested[-1].append(token)
            continue
        for sign in token:
            if sign == "(":
                nested.append([])
            elif nested[-1]:
                yield tuple(nested[-1])
                nested[-1].clear()
            if sign == ")":
                nested.pop()


# ---- what is read of a command, by its program: what it names that is not there

NAMES: Final = {POLICIES_ANNOTATION, *(str(each) for each in vars(labels).values())}
OF_THE_READER: Final = frozenset({"-", "chat.yaml", "my-values.yaml", "tenant.yaml"})
"""Files that the documents have their readers write."""
OF_KUBERNETES: Final = frozenset(
    {"controllerrevisions", "deployment", "events", "lease", "namespace", "nodes", "pod", "pods"}
    | {"quota", "secret"}
)
WITH_KIND: Final = frozenset({"annotate", "delete", "describe", "edit", "get", "patch", "scale"})
OTHER_VERBS: Final = frozenset(
    {"apply", "cordon", "create", "exec", "explain", "logs", "port-forward", "proxy", "top", "wait"}
)
TAKE_A_VALUE: Final = frozenset(
    {"-c", "--container", "-f", "--filename", "-l", "--selector", "-n", "--namespace", "-o", "-p"}
    | {"--field-selector", "--set", "--show-only", "--values"}
)


class Arguments(NamedTuple):
    """A command's arguments, up to `--`."""

    positional: list[str]
    options: list[tuple[str, str]]

    def values(self, *names: str) -> list[str]:
        """Return what some options are given."""
        return [value for name, value in self.options if name in names]


def parsed(words: tuple[str, ...]) -> Arguments:
    found = Arguments([], [])
    rest = iter(words[: words.index("--")] if "--" in words else words)
    for word in rest:
        name, sign, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            found.positional.append(word)
        else:
            given = value if sign or name not in TAKE_A_VALUE else next(rest)
            found.options.append((name, given))
    return found


def absent(files: list[str]) -> Iterator[str]:
    for name in files:
        if name not in OF_THE_READER and not (ROOT / name).exists():
            yield f"file {name}"


@cache
def kinds() -> set[str]:
    found = set(OF_KUBERNETES)
    for path in (ROOT / "crds").glob("*.yaml"):
        names = yaml.safe_load(path.read_text())["spec"]["names"]
        found |= {names["plural"], names["singular"], *names["shortNames"]}
    return found


def read_kubectl(words: tuple[str, ...]) -> Iterator[str]:
    found = parsed(words)
    verb, *rest = found.positional
    if verb in WITH_KIND:
        named = {each.partition("/")[0] for each in rest[:1] for each in each.split(",")}
        yield from (f"kind {each}" for each in named - kinds())
    elif verb not in OTHER_VERBS:
        yield f"verb {verb}"
    yield from absent(found.values("-f", "--filename"))
    yield from (
        f"container {each}"
        for each in found.values("-c", "--container")
        if each not in {"CONTAINER", *NAMES}
    )
    if "--" in words:
        yield from faults(words[words.index("--") + 1 :])


def read_helm(words: tuple[str, ...]) -> Iterator[str]:
    found = parsed(words)
    charts = [each for each in found.positional if "/" in each]
    verbs = {"install", "show", "template", "uninstall", "upgrade"}
    yield from (f"verb {each}" for each in found.positional[:1] if each not in verbs)
    yield from absent([*charts, *found.values("--values")])
    yield from absent([f"helm/weir/{each}" for each in found.values("--show-only")])
    schema = json.loads((ROOT / "helm/weir/values.schema.json").read_text())
    for each in ",".join(found.values("--set")).split(","):
        if each not in {"", "NAME=VALUE"} and not is_value(schema, each.partition("=")[0]):
            yield f"value {each}"


def is_value(schema: Mapping[str, Any], path: str) -> bool:
    for step in path.split("."):
        properties = schema.get("properties", {})
        if step not in properties:
            return False
        schema = properties[step]
    return True


def read_make(words: tuple[str, ...]) -> Iterator[str]:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    _, target, *variables = ("make", *words)
    if target not in targets:
        yield f"target {target}"
    yield from absent([each[5:] for each in variables if each.startswith("FILE=")])


def read_pipx(words: tuple[str, ...]) -> Iterator[str]:
    """The wheel is named as it is built, and has the extra."""
    if words[0] == "install":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wheel, _, extra = words[1].rstrip("]").partition("[")
        name = project["name"].replace("-", "_")
        if wheel != f"dist/{name}-{project['version']}-py3-none-any.whl":
            yield f"wheel {wheel}"
        if extra not in project["optional-dependencies"]:
            yield f"extra {extra}"


def read_sidecar(words: tuple[str, ...]) -> Iterator[str]:
    if words[0] not in {"state", "request"}:
        yield f"command {words[0]}"


def read_curl(words: tuple[str, ...]) -> Iterator[str]:
    """Its address is one that a sidecar answers, and its body is JSON."""
    for word in words:
        if word.startswith("http://127.0.0.1:8000/") and f"/{word.split('/', 3)[3]}" not in {
            *POSTS,
            *READS,
        }:
            yield f"path of {word}"
        if word.startswith("{"):
            json.loads(word)


def read_sh(words: tuple[str, ...]) -> Iterator[str]:
    """Read each command of its script."""
    yield from (each for command in split(words[1]) for each in faults(command))


def read_no_further(_: tuple[str, ...]) -> Iterator[str]:
    """Yield nothing: a program of the system, or one that another test reads."""
    yield from ()


OF_THE_SYSTEM: Final = frozenset(
    {
        "base64",
        "cat",
        "cut",
        "date",
        "du",
        "echo",
        "grep",
        "jq",
        "ls",
        "openssl",
        "printf",
        "sha256sum",
        "sort",
    }
)
READERS: Final[Mapping[str, Callable[[tuple[str, ...]], Iterator[str]]]] = {
    "curl": read_curl,
    "helm": read_helm,
    "kubectl": read_kubectl,
    "make": read_make,
    "pipx": read_pipx,
    "weir": read_no_further,  # tests/unit/cli/test_documented_commands.py reads them all
    "weir-sidecar": read_sidecar,
    "sh": read_sh,
    **dict.fromkeys(OF_THE_SYSTEM, read_no_further),
}


def faults(words: tuple[str, ...]) -> Iterator[str]:
    """Yield what a command names that is not there."""
    reader = READERS.get(words[0])
    if reader is None:
        yield f"program {words[0]}: type the block in a test, or write a reader here"
    else:
        yield from reader(words[1:])


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_that_no_test_types_names_only_what_is_there(command: Command) -> None:
    assert list(faults(command.words)) == []


@pytest.mark.parametrize("block", untested(), ids=str)
def test_a_block_has_a_test(block: Block) -> None:
    assert block.language in OF_ALL_DOCUMENTS or block.language in READ_HERE, (
        "run or compare the block in a test, and name that in TESTED"
    )


@pytest.mark.parametrize(("page", "language", "begins", "test"), TESTED)
def test_a_tested_block_is_in_its_document_and_the_document_in_its_test(
    page: str, language: str, begins: str, test: str
) -> None:
    assert any(each.is_as(page, language, begins) for each in BLOCKS)
    assert Path(page).stem in (ROOT / test).read_text()


@pytest.mark.parametrize(("language", "test"), OF_ALL_DOCUMENTS.items())
def test_the_blocks_of_a_language_have_a_test(language: str, test: str) -> None:
    assert f'"{language}"' in (ROOT / test).read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_begin_at_the_margin_where_tests_find_them(document: Path) -> None:
    assert re.findall(r"^ +```.*", document.read_text(), re.MULTILINE) == []


def test_labels_and_annotations_are_those_of_the_code() -> None:
    named = {
        (document.name, found)
        for document in DOCUMENTS
        for found in re.findall(r"serving\.weir\.dev/[a-z][\w-]*", document.read_text())
    }
    assert {(name, found) for name, found in named if found not in NAMES} == set()


PICTURE: Final = re.compile(r"!\[[^]]*\]\(([^)]+)\)")


def test_every_picture_is_taken_by_a_test() -> None:
    made = re.findall(r"^\t(\w+)=(\S+) \S+/pytest (\S+)", (ROOT / "Makefile").read_text(), re.M)
    taken = {
        (ROOT / path).resolve()
        for variable, path, test in made
        if f'"{variable}"' in (ROOT / test).read_text()
    }
    shown = {
        (document.parent / path).resolve()
        for document in DOCUMENTS
        for path in PICTURE.findall(document.read_text())
    }
    assert shown - taken == set()

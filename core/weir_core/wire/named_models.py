"""Models that the engine's arguments name beside the served one: pure.

A draft model, a tokenizer or a configuration of another repository is fetched like the model, and
the engine gets its directory instead of the name: by then it is offline. What vLLM would take for
a repository's name and Weir cannot fetch is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import pydantic

from weir_core.api.model import Source
from weir_core.errors import InvalidSpec

TEXTS: Final = ("--tokenizer", "--hf-config-path", "--generation-config")
"""Flags that name a repository of which no weights are read."""
REVISIONS: Final = {"--tokenizer": "--tokenizer-revision"}
DRAFT: Final = "--spec-model"
DRAFT_JSON: Final = ("--speculative-config", "-sc")
LORAS_JSON: Final = "--default-mm-loras"
FETCHED: Final = ("hf", "s3", "gs", "az")
NO_REPOSITORY: Final = frozenset(
    {"auto", "vllm", "ngram", "[ngram]", "ngram_gpu", "suffix", "mtp", "extract_hidden_states"}
)
"""Words that stand where a repository may, and are none."""


class Named(NamedTuple):
    """A model that an argument names."""

    position: int
    """The argument with the name in it."""
    keys: tuple[str, ...]
    """Where in the argument's JSON document the name is; empty if the argument is no document."""
    source: Source
    weights: bool
    """Whether weights are read, or only a tokenizer or a configuration."""


class _Value(NamedTuple):
    """A flag's value, wherever it is written."""

    position: int
    flag: str
    text: str


def named_models(args: Sequence[str]) -> tuple[Named, ...]:
    """Return the models that `args` name and that have to be fetched, in their order.

    Raises:
        InvalidSpec: An argument names something that cannot be fetched for it.
    """
    values = list(_values(args))
    newest = {value.flag: value.text for value in values}
    return tuple(named for value in values for named in _named(value, newest))


def with_paths(args: Sequence[str], paths: Mapping[Named, str]) -> list[str]:
    """Return `args` with the directory of each named model in place of its name."""
    replaced = list(args)
    for named, path in paths.items():
        argument = replaced[named.position]
        flag, equals, text = argument.partition("=") if argument.startswith("-") else ("", "", "")
        text = text if equals else argument
        if named.keys:
            document = json.loads(text)
            for key in named.keys:
                document[key] = path
            text = json.dumps(document)
        else:
            text = path
        replaced[named.position] = f"{flag}{equals}{text}"
    return replaced


def _values(args: Sequence[str]) -> Iterator[_Value]:
    for index, argument in enumerate(args):
        if not argument.startswith("-"):
            continue
        flag, equals, text = argument.partition("=")
        head, dot, rest = flag.partition(".")
        flag = head.replace("_", "-") + dot + rest.replace("-", "_")
        if equals:
            yield _Value(index, flag, text)
        elif index + 1 < len(args) and not args[index + 1].startswith("-"):
            yield _Value(index + 1, flag, args[index + 1])


def _named(value: _Value, newest: Mapping[str, str]) -> Iterator[Named]:
    flag = value.flag
    head, _, field = flag.partition(".")
    if flag in TEXTS:
        revision = newest.get(REVISIONS.get(flag, ""))
        yield from _of(value, (), value.text, revision, weights=False)
    elif flag == DRAFT or (head in DRAFT_JSON and field == "model"):
        revision = next(
            (newest[f"{one}.revision"] for one in DRAFT_JSON if f"{one}.revision" in newest), None
        )
        if newest.get("--spec-method", newest.get(f"{head}.method")) != "custom_class":
            yield from _of(value, (), value.text, revision, weights=True)
    elif flag in DRAFT_JSON:
        document = _document(value)
        if document.get("method") != "custom_class":
            model, revision = document.get("model"), document.get("revision")
            yield from _of(value, ("model",), model, revision, weights=True)
    elif flag == LORAS_JSON:
        for key, name in _document(value).items():
            yield from _of(value, (key,), name, None, weights=True)


def _of(
    value: _Value, keys: tuple[str, ...], name: object, revision: object, *, weights: bool
) -> Iterator[Named]:
    """Yield the model that `name` means, unless it is a path or one of vLLM's own words."""
    if not isinstance(name, str) or name in NO_REPOSITORY or name.startswith(("/", ".", "~")):
        return
    field, what = f"spec.engine.args[{value.position}]", f"{value.flag} names {name}"
    scheme, separator, _ = name.partition("://")
    if separator and scheme not in FETCHED:
        raise InvalidSpec(
            field,
            f"{what}, which is not fetched for it; write ORG/MODEL, hf://, s3://, gs:// or az://, "
            "or the path of a directory that spec.podTemplate mounts",
        )
    if not separator and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InvalidSpec(
            field, f"{what}, which is neither ORG/MODEL nor a path that begins with /"
        )
    uri = name if separator else f"hf://{name}" + (f"@{revision}" if revision else "")
    try:
        yield Named(value.position, keys, Source(uri=uri), weights)
    except pydantic.ValidationError as error:
        raise InvalidSpec(field, f"{what}, which is no uri of a model") from error


def _document(value: _Value) -> dict[str, Any]:
    field = f"spec.engine.args[{value.position}]"
    try:
        document = json.loads(value.text)
    except json.JSONDecodeError as error:
        raise InvalidSpec(field, f"{value.flag} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidSpec(field, f"{value.flag} is not a JSON object")
    return document

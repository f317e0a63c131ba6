"""A file of the user's as plain values: the JSON that `kubectl apply -f` would send of it.

A running `weir up` looks at its files again and again, and they may be anything by then: a pipe, a
disk image, a few lines whose aliases stand for a billion values. So reading has bounds, and the
only error of this module is InvalidSpec. As for kubectl, a date is text, a key is text, and what
JSON cannot say (binary data, sets, infinity) is an error.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from weir_cli.complaints import yaml_complaint
from weir_core.errors import InvalidSpec

MOST_BYTES: Final = 4 * 1024 * 1024
"""Of one file; the API server takes 1.5 MiB of one object."""
MOST_VALUES: Final = 100_000
"""Of one document, with aliases written out."""
DEEPEST: Final = 100
"""Levels of nesting of one document, with aliases written out."""
LARGEST_INTEGER: Final = 2**63 - 1

_TAG: Final = "tag:yaml.org,2002:"


def documents_of(path: Path) -> list[Any]:
    """Return the YAML documents in a file.

    Raises:
        InvalidSpec: The file cannot be read, or is not YAML of JSON's types.
    """
    try:
        return list(yaml.load_all(_contents(path), Loader=_Loader))
    except RecursionError:
        raise InvalidSpec(str(path), f"is nested more than {DEEPEST} levels deep") from None
    except yaml.constructor.ConstructorError as error:
        raise InvalidSpec(str(path), yaml_complaint(error)) from None
    except yaml.YAMLError as error:
        raise InvalidSpec(str(path), f"is not YAML: {yaml_complaint(error)}") from error


def settled_contents(path: Path) -> bytes:
    """Return what a regular file holds, without ever waiting for it.

    Raises:
        InvalidSpec: It cannot be read, or is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise InvalidSpec(str(path), "is not a regular file")
    return _contents(path)


def _contents(path: Path) -> bytes:
    """Return what a file holds; a pipe is read to its end."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                os.set_blocking(file.fileno(), True)
            found = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: of a path with a zero byte
        why = getattr(error, "strerror", None) or error
        raise InvalidSpec(str(path), f"cannot be read: {why}") from error
    if len(found) > MOST_BYTES:
        raise InvalidSpec(str(path), f"is larger than {MOST_BYTES // 1024**2} MiB")
    return found


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; opening a pipe that nothing writes to would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


class _Extent(NamedTuple):
    """How many values a node stands for, and how many levels of them."""

    values: int
    levels: int


class _Loader(yaml.SafeLoader):
    """A safe loader of JSON's types that keeps to the bounds."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Check the whole document, then make values of it."""
        self._measure(node, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Say where a value is that does not fit its tag; PyYAML raises what it happens to."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError):
            # No error quotes a value, for it may be a secret's.
            kind = node.tag.removeprefix(_TAG)
            raise _complaint(node, f"the value does not fit its type, {kind}") from None

    def _measure(self, node: yaml.Node, known: dict[int, _Extent | None]) -> _Extent:
        """Return the extent of a node, and check it and its keys on the way."""
        if id(node) in known:
            extent = known[id(node)]
            if extent is None:
                raise _complaint(node, "the value holds itself")
            return extent
        known[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        inside = [self._measure(each, known) for each in _inside(node)]
        extent = _Extent(
            1 + sum(each.values for each in inside),
            1 + max((each.levels for each in inside), default=0),
        )
        if extent.values > MOST_VALUES:
            raise _complaint(node, f"stands for more than {MOST_VALUES} values")
        if extent.levels > DEEPEST:
            raise RecursionError
        known[id(node)] = extent
        return extent

    def _integer(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if abs(value) > LARGEST_INTEGER:
            raise _complaint(node, "the number does not fit into 64 bits")
        return int(value)

    def _number(self, node: yaml.ScalarNode) -> float:
        value = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise _complaint(node, "the number is infinite or none")
        return float(value)

    def _text(self, node: yaml.ScalarNode) -> str:
        """Return text; JSON writes one character as two halves, and half a one is none."""
        text = str(self.construct_scalar(node))
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")


# Registered anew: what SafeLoader has beyond these (dates, sets, binary data) is not JSON's.
_Loader.yaml_constructors = {
    f"{_TAG}null": _Loader.construct_yaml_null,
    f"{_TAG}bool": _Loader.construct_yaml_bool,
    f"{_TAG}int": _Loader._integer,
    f"{_TAG}float": _Loader._number,
    f"{_TAG}str": _Loader._text,
    f"{_TAG}seq": _Loader.construct_yaml_seq,
    f"{_TAG}map": _Loader.construct_yaml_map,
    None: _Loader.construct_undefined,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that is written twice, of which YAML would keep the last; all keys are text."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _complaint(key, "a key must be text")
        if key.value in seen:
            raise _complaint(key, f"key {key.value!r} is written twice")
        seen.add(key.value)
        if key.tag != f"{_TAG}merge":
            key.tag = f"{_TAG}str"


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _complaint(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)

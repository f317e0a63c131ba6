"""What the sources of the pinned vLLM say of its HTTP API, read without importing vLLM."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

METHODS = frozenset({"get", "post", "put", "patch", "delete", "head", "options", "websocket"})
APART = ("launchers/dp_supervisor.py", "cli/")
"""Sources of processes that are not the API server of an engine."""


class Route(NamedTuple):
    """One route of the API server."""

    method: str
    path: str


class Module(NamedTuple):
    """One source file."""

    name: str
    tree: ast.Module


@cache
def package(name: str) -> Path:
    """Return where an installed package is."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@cache
def entrypoints() -> tuple[Module, ...]:
    """Return the sources of the API server."""
    root = package("vllm") / "entrypoints"
    files = [(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*.py"))]
    return tuple(
        Module(name, ast.parse(path.read_text()))
        for name, path in files
        if not name.startswith(APART)
    )


def routes() -> set[Route]:
    """Return every route that is registered anywhere, whatever switches it on."""
    found: set[Route] = set()
    for module in entrypoints():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found.update(_routes_of(node, node.func.attr, module.name))
    return found


def _routes_of(call: ast.Call, verb: str, source: str) -> Iterator[Route]:
    first = call.args[0] if call.args else None
    is_path = isinstance(first, ast.Constant) and str(first.value).startswith("/")
    if not is_path:
        # Some routes are copied from a router that is read here by itself.
        named = {"add_api_route", "add_api_websocket_route", "add_route", "api_route"}
        copied = {"route.path", "app.swagger_ui_oauth2_redirect_url"}
        if verb in named:
            assert first is not None, source
            assert ast.unparse(first) in copied, (source, ast.unparse(call))
        return
    assert isinstance(first, ast.Constant)
    if verb in METHODS:
        yield Route("GET" if verb == "websocket" else verb.upper(), str(first.value))
    elif verb in {"add_api_route", "api_route"}:
        methods = next(word.value for word in call.keywords if word.arg == "methods")
        for method in ast.literal_eval(methods):
            yield Route(method, str(first.value))
    elif verb == "mount":
        yield Route("GET", str(first.value))


def headers() -> dict[str, set[str]]:
    """Return each request header that is read by its name, lower case, and the files that do."""
    constants = {
        target.id: str(node.value.value).lower()
        for module in entrypoints()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: dict[str, set[str]] = {}
    for module in entrypoints():
        for node in ast.walk(module.tree):
            for name in _header_names(node):
                spelled = ast.unparse(name)
                text = name.value if isinstance(name, ast.Constant) else constants.get(spelled)
                assert text is not None, (module.name, spelled)
                found.setdefault(str(text).lower(), set()).add(module.name)
    return found


def _header_names(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what is looked up in an object that is called headers."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        held = ast.unparse(node.func.value).lower()
        if node.func.attr in {"get", "getlist"} and held.endswith("headers") and node.args:
            yield node.args[0]
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value).lower().endswith("headers"):
        if isinstance(node.ctx, ast.Load):
            yield node.slice
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
        yield from [node.left] * ast.unparse(node.comparators[0]).lower().endswith("headers")


def request_fields() -> dict[str, set[str]]:
    """Return each field of each model of a request's body, and the models that have it."""
    classes: dict[str, list[ast.ClassDef]] = {}
    for module in entrypoints():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    found: dict[str, set[str]] = {}
    for name in classes:
        if name.endswith("Request"):
            for field in _fields_of(name, classes, set()):
                found.setdefault(field, set()).add(name)
    return found


def _fields_of(name: str, classes: dict[str, list[ast.ClassDef]], seen: set[str]) -> Iterator[str]:
    if name in seen:
        return
    seen.add(name)
    for each in classes.get(name, ()):
        for statement in each.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=field), annotation=kind):
                    if not field.startswith("_") and not ast.unparse(kind).startswith("ClassVar"):
                        yield field
        for base in each.bases:
            yield from _fields_of(ast.unparse(base).split("[")[0].split(".")[-1], classes, seen)


def fields_of_class(path: str, name: str) -> set[str]:
    """Return the annotated fields of one class in a file of the package."""
    tree = ast.parse((package("vllm") / path).read_text())
    classes: dict[str, list[ast.ClassDef]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            classes.setdefault(node.name, []).append(node)
    return set(_fields_of(name, classes, set()))


def callers_of(method: str) -> set[str]:
    """Return the files of the API server that call a method."""
    return {
        module.name
        for module in entrypoints()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
    }

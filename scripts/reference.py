"""The reference pages of docs/: the command line, the chart's values, the resources.

Each is written from what the code reads itself, so that a page cannot differ from it:
the parser's help, the chart's values with their schema, the resource definitions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from weir_cli.__main__ import app
from weir_core.api.crd import custom_resource_definitions

CHART = Path(__file__).resolve().parent.parent / "helm/weir"
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} items",
}
LONGEST_DEFAULT = 60


def pages() -> dict[str, str]:
    """Return each page's text by its file in docs/."""
    return {"cli.md": _cli(), "chart.md": _chart(), "resources.md": _resources()}


def _page(title: str, source: str, opening: str, sections: Iterator[str]) -> str:
    head = (
        f"# {title}\n\n<!-- Written by `make generate` from {source}. Edit that. -->\n\n{opening}\n"
    )
    return "\n".join([head, *sections])


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )


def _cli() -> str:
    opening = (
        "`source .venv/bin/activate` puts `weir` on your PATH, or\n"
        "[pipx](install.md#write-and-check-a-spec) does. `--help` after a command prints the\n"
        "same as this page."
    )
    return _page(
        "The command line", "cli/weir_cli", opening, _commands("weir", typer.main.get_command(app))
    )


def _commands(name: str, command: Any) -> Iterator[str]:
    for word, below in command.commands.items():
        if hasattr(below, "commands"):
            yield f"## {name} {word}\n\n{below.help}\n"
            yield from _commands(f"{name} {word}", below)
        else:
            yield _command(f"{name} {word}", below)


def _command(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    words = [
        f"{each.metavar or each.name.upper()}{'...' * (each.nargs == -1)}" for each in arguments
    ]
    usage = " ".join([name, *words, *(["[OPTIONS]"] if options else [])])
    text = f"## {name}\n\n{command.help}\n\n```sh\n{usage}\n```\n"
    if command.params:
        rows = (_parameter(each) for each in (*arguments, *options))
        text += "\n" + _table(("", "default", ""), rows)
    return text


def _parameter(parameter: Any) -> tuple[str, ...]:
    words = ", ".join(parameter.opts) if parameter.param_type_name == "option" else ""
    name = f"`{' '.join(filter(None, [words, parameter.metavar])) or parameter.name.upper()}`"
    if parameter.required:
        return name, "required", parameter.help or ""
    default = parameter.default
    return name, f"`{default}`" if default and default is not True else "", parameter.help or ""


def _chart() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    opening = (
        "`helm install weir helm/weir --set NAME=VALUE`, or `--values FILE`. An unknown name is\n"
        "an error. The defaults, with more about each, are in\n"
        "[values.yaml](../helm/weir/values.yaml)."
    )
    rows = _values(schema["properties"], values, "")
    section = _table(("name", "default", "what it is"), rows)
    return _page("Values of the chart", "helm/weir/values.schema.json", opening, iter([section]))


def _values(schema: dict[str, Any], values: Any, prefix: str) -> Iterator[tuple[str, ...]]:
    for name, each in schema.items():
        value = (values or {}).get(name)
        if "properties" in each:
            yield from _values(each["properties"], value, f"{prefix}{name}.")
        elif value is not None:
            default = json.dumps(value)
            shown = f"`{default}`" if len(default) <= LONGEST_DEFAULT else "see values.yaml"
            yield f"`{prefix}{name}`", shown, _described(each)


def _resources() -> str:
    opening = (
        "The fields of Weir's resources, all of `serving.weir.dev/v1alpha1`. `[]` is an item of a\n"
        "list, `{}` a value of a map. `kubectl explain infs.spec` prints the same.\n"
        "[refused.md](refused.md) says what a spec may not say,\n"
        "[Conditions](conditions.md) what each condition of a status means."
    )
    definitions = [each["spec"] for each in custom_resource_definitions().values()]
    return _page("Resources", "core/weir_core/api", opening, map(_resource, definitions))


def _resource(definition: dict[str, Any]) -> str:
    schema = definition["versions"][0]["schema"]["openAPIV3Schema"]
    names = definition["names"]
    short = ", ".join(f"`{each}`" for each in names.get("shortNames", []))
    text = f"## {names['kind']}\n\n{schema['description']} {definition['scope']}"
    text += f"; short name {short}.\n" if short else ".\n"
    for part in ("spec", "status"):
        if part in schema["properties"]:
            rows = _fields(schema["properties"][part], "")
            text += f"\n### {names['kind']}: {part}\n\n" + _table(("field", "type", ""), rows)
    return text


def _fields(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        kind = each.get("type", "integer or string")
        yield (
            f"`{prefix}{name}`",
            f"{kind}, required" if name in required else kind,
            _described(each),
        )
        yield from _fields(each, f"{prefix}{name}.")
        yield from _fields(each.get("items", {}), f"{prefix}{name}[].")
        if isinstance(each.get("additionalProperties"), dict):
            yield from _fields(each["additionalProperties"], f"{prefix}{name}{{}}.")


def _described(schema: dict[str, Any]) -> str:
    bounds = [text.format(schema[key]) for key, text in BOUNDS.items() if key in schema]
    if "enum" in schema:
        bounds.append("one of " + ", ".join(f"`{each}`" for each in schema["enum"]))
    text = schema.get("description", "")
    return f"{text} ({'; '.join(bounds)})" if bounds else text

"""Strategic merge of a user's patch over a rendered pod template.

`spec.podTemplate` is merged the way `kubectl patch` merges a pod: objects by field, lists of named
things by their key, other lists as a whole; `null` removes a field, `$patch: delete` an item, and
`$patch: replace` stops the merging. The keys are those of the Kubernetes API.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

from weir_core.errors import InvalidSpec

ROOT: Final = "spec.podTemplate"

MERGE_KEYS: Final[dict[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Field of a pod to the key its list items are told apart by; other lists are replaced whole."""

_DIRECTIVE: Final = "$patch"
_TOP: Final = frozenset({"metadata", "spec"})


def patched(template: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return `template` with `patch` merged in; neither is changed.

    Raises:
        InvalidSpec: The patch is not of a pod template's shape.
    """
    unknown = sorted(set(patch) - _TOP)
    if unknown:
        raise InvalidSpec(f"{ROOT}.{unknown[0]}", "a pod template has only metadata and spec")
    return _merge_object(deepcopy(template), patch, ROOT)


def _merge_object(base: dict[str, Any], patch: dict[str, Any], path: str) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE, "merge")
    fields = {key: value for key, value in patch.items() if key != _DIRECTIVE}
    if directive == "replace":
        return deepcopy(fields)
    if directive not in ("merge", "delete"):
        raise InvalidSpec(f"{path}.{_DIRECTIVE}", f"{directive!r} is not merge, replace or delete")
    merged = {} if directive == "delete" else base
    for key, value in fields.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_field(key, merged.get(key), value, f"{path}.{key}")
    return merged


def _merge_field(key: str, base: Any, value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return _merge_object(base if isinstance(base, dict) else {}, value, path)
    if isinstance(value, list) and key in MERGE_KEYS:
        return _merge_list(base if isinstance(base, list) else [], value, MERGE_KEYS[key], path)
    if isinstance(base, (dict, list)) and type(base) is not type(value):
        kind = "an object" if isinstance(base, dict) else "a list"
        raise InvalidSpec(path, f"must be {kind}")
    return deepcopy(value)


def _merge_list(
    base: list[dict[str, Any]], patch: Sequence[Any], key: str, path: str
) -> list[dict[str, Any]]:
    """Merge item by item; what the patch adds comes after what was there."""
    if any(isinstance(item, dict) and item == {_DIRECTIVE: "replace"} for item in patch):
        base = []
    items = {item[key]: item for item in base}
    for index, item in enumerate(patch):
        if item == {_DIRECTIVE: "replace"}:
            continue
        if not isinstance(item, dict) or key not in item:
            raise InvalidSpec(f"{path}[{index}]", f"an item needs its {key}")
        if item.get(_DIRECTIVE) == "delete":
            items.pop(item[key], None)
        else:
            items[item[key]] = _merge_object(items.get(item[key], {}), item, f"{path}[{index}]")
    return list(items.values())

"""Strategic merge of a user's patch over a rendered pod template.

`spec.podTemplate` is merged the way `kubectl patch` merges a pod: objects by field, lists of named
things by their key, other lists as a whole. `null` removes a field, `$patch: delete` an item or an
object, and `$patch: replace` puts the patch in the place of what was there. The keys are those of
the Kubernetes API.

Of a volume's sources and a variable's values there can be only one, so another kind replaces the
rendered one rather than standing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "schedulingGates": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Field of a pod to the key its list items are told apart by; other lists are replaced whole."""

ONE_OF: Final = frozenset({"volumes", "env"})
"""Lists whose items have, beside their key, exactly one field."""

_DIRECTIVE: Final = "$patch"
_DIRECTIVES: Final = ("merge", "replace", "delete")
_TOP: Final = frozenset({"metadata", "spec"})

Object = dict[str, Any]


def patched(template: Object, patch: Object, root: str = ROOT) -> Object:
    """Return `template` with `patch` merged in; neither is changed.

    Args:
        template: What was rendered.
        patch: What the user wrote.
        root: Where that is in the spec.

    Raises:
        InvalidSpec: The patch is not of a pod template's shape.
    """
    unknown = sorted(set(patch) - _TOP)
    if unknown:
        raise InvalidSpec(f"{root}.{unknown[0]}", "a pod template has only metadata and spec")
    return _merge_object(_unshared(template), patch, root)


def _unshared(value: Any) -> Any:
    """Return a copy in which nothing occurs twice.

    `deepcopy` keeps sharing: two containers with one security context would change together.
    """
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def _merge_object(base: Object, patch: Object, path: str) -> Object:
    merged = {} if _directive(patch, path) == "replace" else base
    for key, value in patch.items():
        if key == _DIRECTIVE:
            continue
        field = f"{path}.{key}"
        if key.startswith("$"):
            raise InvalidSpec(field, f"of the directives only {_DIRECTIVE} is understood")
        if value is None or (isinstance(value, dict) and _directive(value, field) == "delete"):
            merged.pop(key, None)
        else:
            merged[key] = _merge_field(key, merged.get(key), value, field)
    return merged


def _merge_field(key: str, base: Any, value: Any, path: str) -> Any:
    if base is not None and _shape(base) != _shape(value):
        raise InvalidSpec(path, f"must be {_shape(base)}, not {_shape(value)}")
    if key in MERGE_KEYS and not isinstance(value, list):
        raise InvalidSpec(path, f"must be a list, not {_shape(value)}")
    if isinstance(value, dict):
        return _merge_object(base or {}, value, path)
    if key in MERGE_KEYS:
        return _merge_list(key, base or [], value, path)
    return _unshared(value)


def _merge_list(field: str, base: list[Object], patch: Sequence[Any], path: str) -> list[Object]:
    """Merge item by item; what the patch adds comes after what was there."""
    whole = {_DIRECTIVE: "replace"}
    items = {} if whole in patch else {item[MERGE_KEYS[field]]: item for item in base}
    for index, item in enumerate(patch):
        if item == whole:
            continue
        place = f"{path}[{index}]"
        key = _key_of(item, MERGE_KEYS[field], place)
        if _directive(item, place) == "delete":
            items.pop(key, None)
        else:
            known = items.get(key, {})
            items[key] = _merge_object(_without_rivals(field, known, item), item, place)
    return list(items.values())


def _without_rivals(field: str, base: Object, patch: Object) -> Object:
    """Return `base` without the one field that a field of `patch` stands in for."""
    if field not in ONE_OF:
        return base
    shared = {MERGE_KEYS[field], *patch}
    stands_in = len(patch.keys() - {MERGE_KEYS[field], _DIRECTIVE}) > 0
    return {key: value for key, value in base.items() if key in shared or not stands_in}


def _key_of(item: Any, key: str, path: str) -> str | int:
    if not isinstance(item, dict):
        raise InvalidSpec(path, f"must be an object, not {_shape(item)}")
    value = item.get(key)
    if not isinstance(value, str | int):
        raise InvalidSpec(f"{path}.{key}", "is missing; it says which item is meant")
    return value


def _directive(patch: Object, path: str) -> str:
    directive = patch.get(_DIRECTIVE, "merge")
    if directive not in _DIRECTIVES:
        raise InvalidSpec(f"{path}.{_DIRECTIVE}", f"must be one of {', '.join(_DIRECTIVES)}")
    return str(directive)


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else "a single value"

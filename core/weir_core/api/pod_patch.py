"""What `spec.podTemplate` may not say, as far as it can be told without the pod it changes.

The API server does not look into the patch. What only shows in the patched pod is checked where
that is rendered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from weir_core.api.base import Contradiction, FreeForm, Location
from weir_core.api.engine_environment import wrong_variable
from weir_core.api.labels import (
    ADAPTERS_CONTAINER,
    ENGINE_CONTAINER,
    MODEL_CONTAINER,
    SIDECAR_CONTAINER,
)

OURS: Final[Mapping[str, tuple[str, ...]]] = {
    "initContainers": (SIDECAR_CONTAINER, ADAPTERS_CONTAINER, MODEL_CONTAINER),
    "containers": (ENGINE_CONTAINER,),
}
"""List of a pod's spec to the containers that a replica has in it."""

READS_ENGINE_ENV: Final = (ENGINE_CONTAINER, MODEL_CONTAINER, ADAPTERS_CONTAINER)


def wrong_pod_template(template: FreeForm | None) -> Iterator[Contradiction]:
    """Yield what is wrong with a patch; what is not even of a pod's shape is passed over."""
    for where, container in _containers(template):
        yield from _without_image(where, container)
        if container.get("name") in READS_ENGINE_ENV:
            yield from _wrong_env(where, container)


def asked_for(template: FreeForm | None, resource: str) -> Iterator[tuple[Location, Any]]:
    """Yield where the patch asks for how many of `resource` for the engine."""
    for where, container in _containers(template):
        if container.get("name") == ENGINE_CONTAINER:
            for section in ("limits", "requests"):
                amounts = _dict(_dict(container.get("resources")).get(section))
                if resource in amounts:
                    yield (*where, "resources", section, resource), amounts[resource]


def _containers(template: FreeForm | None) -> Iterator[tuple[Location, dict[str, Any]]]:
    spec = _dict((template or {}).get("spec"))
    for field in OURS:
        for index, item in enumerate(_list(spec.get(field))):
            yield ("spec", field, index), _dict(item)


def _without_image(where: Location, container: dict[str, Any]) -> Iterator[Contradiction]:
    name, field = container.get("name"), str(where[1])
    is_added = isinstance(name, str) and name not in OURS[field] and "$patch" not in container
    if not is_added or container.get("image"):
        return
    home = next((other for other in OURS if name in OURS[other]), None)
    ours = ", ".join(OURS[field])
    remedy = (
        f"write it under {home}, where that container is"
        if home
        else f"write its image, or the name of the container to change ({ours})"
    )
    yield Contradiction((*where, "image"), f"{name!r} adds a container without one; {remedy}")


def _wrong_env(where: Location, container: dict[str, Any]) -> Iterator[Contradiction]:
    variables = [_dict(each) for each in _list(container.get("env"))]
    times = Counter(str(each.get("name")) for each in variables)
    for index, variable in enumerate(variables):
        name, value = str(variable.get("name")), variable.get("value", "")
        wrong = wrong_variable(name, None if "valueFrom" in variable else str(value))
        if times[name] > 1:
            wrong = f"{name!r} is written twice; leave one of them out"
            times[name] = 0
        if wrong is not None and "$patch" not in variable:
            yield Contradiction((*where, "env", index, "name"), wrong)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

"""From what the API server holds to a checked InferenceService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec


def parse(body: Mapping[str, Any]) -> InferenceService:
    """Return the service in `body`.

    Its status is left out: it is what we wrote ourselves, perhaps in an earlier version.

    Raises:
        InvalidSpec: A field is wrong; the error names it as the user wrote it, such as
            `spec.pools[1].name`.
    """
    document = {key: value for key, value in body.items() if key != "status"}
    try:
        return InferenceService.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidSpec(_path(first["loc"]), _sentence(first["msg"])) from error


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".") or "spec"


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")

"""Further names of the model, which change while vLLM runs.

vLLM takes names only at its start. This adds a path to its API by which the sidecar, which alone
reaches it, puts others in their place: every endpoint, and /v1/models, go by that one list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from weir_core.api.labels import ALIASES_PATH
from weir_core.wire.adapters import Aliases

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def serve_aliases(app: Any) -> None:
    """Add the path to vLLM's application."""
    app.router.add_route(ALIASES_PATH, _put, methods=["PUT"])


async def _put(request: Request) -> Response:
    from starlette.responses import Response

    try:
        told = msgspec.json.decode(await request.body(), type=Aliases)
    except msgspec.MsgspecError as error:
        return Response(str(error), status_code=400)
    paths: list[Any] = request.app.state.openai_serving_models.base_model_paths
    own = paths[0]
    # In place: vLLM's registry of models holds the same list.
    paths[1:] = [
        type(own)(name=alias, model_path=own.model_path)
        for alias in told.aliases
        if alias != own.name
    ]
    return Response(status_code=204)

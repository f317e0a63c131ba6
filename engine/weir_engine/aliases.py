"""Further names of the model, which change while vLLM runs.

vLLM takes names only at its start. This adds a path to its API by which the sidecar, which alone
reaches it, puts others in their place: every endpoint, and /v1/models, go by that one list.
"""

from __future__ import annotations

from asyncio import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from weir_core.api.labels import ALIASES_PATH
from weir_core.wire.adapters import Aliases

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def serve_aliases(app: Any) -> None:
    """Add the path to vLLM's application."""
    app.router.add_route(ALIASES_PATH, _put, methods=["PUT"])


class LocksInUse(WeakValueDictionary[str, Lock]):
    """A lock for each name, which is forgotten when nothing holds it or waits for it."""

    def __getitem__(self, name: str) -> Lock:
        """Return the lock of a name."""
        lock = self.get(name)
        if lock is None:
            lock = self[name] = Lock()
        return lock


def forget_unknown_names(app: Any) -> None:
    """Bound what vLLM keeps of names that it does not serve.

    Where adapters are loaded while it runs, vLLM makes a lock for each name that a client asks for,
    and keeps it with the name, which may be as long as a body.
    """
    models = getattr(app.state, "openai_serving_models", None)
    if models is not None:
        models.lora_resolver_lock = LocksInUse()


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

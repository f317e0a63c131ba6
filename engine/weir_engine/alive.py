"""`weir-engine alive`: the engine's liveness probe.

The sidecar watches the engine and knows whether it makes progress. Its word that the engine does
not is the one thing that fails the probe. A sidecar that hangs, or is being restarted, says
nothing of the engine: it has a probe of its own, and the engine keeps its weights meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http.client import HTTPException
from typing import Final

from weir_engine.sidecar import SidecarConnection

ANSWER_WITHIN_S: Final = 5.0
VERDICT: Final = 503


def is_alive(environment: Mapping[str, str]) -> bool:
    """Return False where the sidecar says that the engine is not loaded or makes no progress."""
    connection = SidecarConnection(environment, ANSWER_WITHIN_S)
    try:
        connection.request("GET", "/enginez")
        answer = connection.getresponse()
        words = answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        sys.stderr.write(f"weir-engine alive: no word of the sidecar ({error!r})\n")
        return True
    finally:
        connection.close()
    if answer.status == VERDICT:
        sys.stderr.write(f"weir-engine alive: the sidecar says: {words}\n")
    return answer.status != VERDICT

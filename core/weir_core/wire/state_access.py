"""How the operator shows a sidecar that it may read its `/state`.

The page names tenants and the sizes of their prompts, and the port that it is on is open to what
scrapes metrics. The operator holds the keys of the service's sidecars (`peer_keys` of the policy
document). It shows an HMAC over the pod's name and the time, so a proof serves for one pod and for
some minutes. The keys never cross the network.

As with peers, this is no encryption: the page itself can be read on its way.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from typing import Final

from weir_core.units import Seconds
from weir_core.wire.peer_auth import Keys, is_proof

SCHEME: Final = "Weir"
"""Of the header `Authorization`."""
HEADER: Final = "X-Weir-Authorization"
"""The same for what asks through the API server, which takes `Authorization` for itself."""
CLOCKS_DIFFER: Final = Seconds(300.0)
"""In seconds, between the operator's clock and the sidecar's at most: how long a proof serves."""
_DOMAIN: Final = b"weir state 1"
_HEADER: Final = re.compile(
    rf"{SCHEME} (?P<time>[0-9]{{1,12}})(?P<proofs>( [0-9a-f]{{64}}){{0,8}})"
)


def authorization(keys: Sequence[str], pod: str, now: float) -> str:
    """Return the header's value: the time, and a proof for each key.

    During a rotation it is not known which of the keys a sidecar holds already.

    Args:
        keys: 64 lower-case hex digits each.
        pod: Name of the pod that is asked.
        now: Unix time, in seconds.
    """
    time = str(int(now))
    proofs = [_proof(bytes.fromhex(key), pod, time).hex() for key in keys]
    return " ".join([SCHEME, time, *proofs])


def may_read(header: str, keys: Keys, pod: str, now: float) -> bool:
    """Tell whether the header shows one of the keys.

    Args:
        header: The value of `Authorization`; empty where there is none.
        keys: Those that this sidecar holds.
        pod: Its pod.
        now: Unix time, in seconds.
    """
    found = _HEADER.fullmatch(header)
    if found is None or abs(now - int(found["time"])) > CLOCKS_DIFFER:
        return False
    held = [keys.find(each) for each in keys.ids]
    expected = [_proof(key, pod, found["time"]) for key in held if key is not None]
    shown = [bytes.fromhex(each) for each in found["proofs"].split()]
    return any(is_proof(each, right) for each in shown for right in expected)


def _proof(key: bytes, pod: str, time: str) -> bytes:
    parts = (_DOMAIN, pod.encode(), time.encode())
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(key, message, "sha256")

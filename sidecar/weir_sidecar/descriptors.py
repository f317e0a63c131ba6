"""File descriptors: how many there are, and the errors that mean that they are used up.

Each client needs one, and one more for its engine connection. So clients get less than half of the
limit, and what is left over serves probes, metrics and the engine's socket: an engine must not look
gone because clients use up the sidecar's own table.
"""

from __future__ import annotations

import errno
import logging
import resource
import sys
from typing import Final

log = logging.getLogger(__name__)

RESERVED: Final = 64
"""Kept for listening sockets, the admin port, probes of the engine, files and logs."""
_OWN_SHORTAGE: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)


def raise_limit() -> None:
    """Raise this process's limit to as many as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # some systems allow less than they say
        log.warning("file descriptors stay limited", extra={"limit": soft, "error": str(error)})


def client_limit() -> int:
    """Return how many clients may be connected; asked for each, because the limit may change."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return (soft - min(RESERVED, soft // 2)) // 2


def is_own_shortage(error: BaseException) -> bool:
    """Tell whether opening a connection failed for lack of something on this side."""
    cause = caused_by(error, OSError)
    return isinstance(cause, OSError) and cause.errno in _OWN_SHORTAGE


def caused_by(error: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """Return what of these kinds is behind an error, or is it; None where nothing is.

    Compiled code sets the context of an error that it raises from another one, and not its cause.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, kinds):
        found = found.__cause__ or found.__context__
    return found

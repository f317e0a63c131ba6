"""Which part of an engine this pod holds, where the engine spreads over nodes.

LeaderWorkerSet says it in the environment. A leader that ends because it gave up on its workers, or
a worker that ends because its leader is not there yet, costs the whole group, with all that it has
fetched. So a worker waits here, before vLLM and its timeouts, until its leader listens.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from weir_core.api.labels import ENV_LEADER, ENV_RANK
from weir_core.errors import InvalidSpec, ModelUnavailable

MASTER_PORT: Final = 29500
"""Where the leader's processes and the workers' meet, in each group's own network namespace."""
ASK_EVERY_S: Final = 2.0
ANSWER_WITHIN_S: Final = 5.0
TELL_EVERY: Final = 30
"""Attempts between two lines that say what is waited for."""


FETCH_AGAIN_S: Final = 30.0


class Member(NamedTuple):
    """One node's part."""

    rank: int
    """0 is the leader."""
    leader: str
    """The leader's address."""
    own: str
    """The address at which the others reach this pod."""


def join(environment: Mapping[str, str], pause: Callable[[float], None] = time.sleep) -> Member:
    """Return which part this pod holds; in a worker, once its leader listens.

    Args:
        environment: Of the process.
        pause: Waits for some seconds.

    Raises:
        InvalidSpec: The pod is in no group.
    """
    leader, rank = environment.get(ENV_LEADER, ""), environment.get(ENV_RANK, "")
    if not leader or not rank.isdigit():
        raise InvalidSpec(
            "engine.parallelism.nodes",
            f"is above 1, and LeaderWorkerSet has set no {ENV_LEADER} and {ENV_RANK} here: such an "
            "engine runs on a cluster, in the pods that Weir's operator asks for",
        )
    if rank == "0":
        # Found in the pod's own hosts file, while the cluster's DNS may not know it yet.
        own = socket.gethostbyname(socket.gethostname())
        return Member(0, own, own)
    found, own = _meet(leader, pause)
    return Member(int(rank), found, own)


def patiently(
    fetch: Callable[[Mapping[str, str]], None],
    environment: Mapping[str, str],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch; in a group, again and again while a source cannot be had.

    A container that fails there makes the whole group begin anew, without what it has fetched.

    Args:
        fetch: Brings the weights.
        environment: Of the process.
        pause: Waits for some seconds.

    Raises:
        InvalidSpec: The configuration must be changed.
        ModelUnavailable: A source could not be had, and the pod is in no group.
    """
    while True:
        try:
            return fetch(environment)
        except ModelUnavailable as error:
            if not environment.get(ENV_LEADER):
                raise
            sys.stderr.write(f"weir-engine: {error}; again in {FETCH_AGAIN_S:.0f} s\n")
            sys.stderr.flush()
            pause(FETCH_AGAIN_S)


def _meet(leader: str, pause: Callable[[float], None]) -> tuple[str, str]:
    """Return the leader's address and ours, once it listens."""
    attempts = 0
    while True:
        try:
            with socket.create_connection((leader, MASTER_PORT), ANSWER_WITHIN_S) as met:
                return str(met.getpeername()[0]), str(met.getsockname()[0])
        except OSError as error:
            if attempts % TELL_EVERY == 0:
                sys.stderr.write(
                    f"weir-engine: waiting for the leader at {leader}:{MASTER_PORT}: {error}\n"
                )
                sys.stderr.flush()
        attempts += 1
        pause(ASK_EVERY_S)

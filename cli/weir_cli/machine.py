"""What this machine can give: free addresses, free ports, accelerators, a short private path.

Everything here looks at the machine and decides nothing else, so that a refusal comes before the
first process starts and says what to change.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from weir_core.api import labels
from weir_core.errors import MachineUnfit

SOCKET_PATH_LIMIT = 107
"""Longest path of a Unix socket, in bytes; Linux refuses longer ones."""

LAST_PORT = 65535
LAST_REPLICA = 254
LONGEST_SOCKET = f"/{LAST_REPLICA}/run/engine.sock"
SIDECAR_PORTS = (labels.API_PORT, labels.ADMIN_PORT, labels.PEER_PORT)


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Return where Weir keeps everything it puts on this machine; `make clean` removes it."""
    return Path(environ.get("WEIR_CACHE") or Path.home() / ".cache" / "weir").absolute()


def scratch_path(instance: Path) -> Path:
    """Return where an instance keeps its sockets and scratch files: a short path.

    The cache may lie at any depth, so this is under the system's temporary directory, in a folder
    named after the user and the instance.
    """
    digest = hashlib.sha256(str(instance).encode()).hexdigest()[:8]
    name = f"weir-{os.getuid()}-{digest}"
    path = Path(tempfile.gettempdir()) / name
    fits = len(f"{path}{LONGEST_SOCKET}".encode()) <= SOCKET_PATH_LIMIT
    return path if fits else Path("/tmp") / name


@contextmanager
def private_dir(path: Path) -> Iterator[None]:
    """Make a directory that only this user can enter; remove it after the block.

    Raises:
        MachineUnfit: There is something else of that name, perhaps somebody else's.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise MachineUnfit(f"{path} is not a private directory of yours; remove it and try again")
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


def claim_addresses(count: int, claims: ExitStack) -> list[str]:
    """Return `count` loopback addresses for replicas and gateways: 127.0.1.1, 127.0.1.2, ...

    Each is this process's until `claims` closes: another `weir up` cannot see on the ports that an
    address is spoken for before a sidecar listens there, seconds later.

    Raises:
        MachineUnfit: There are not enough; usually something listens on port 8000 of every
            address.
    """
    found: list[str] = []
    for address in _loopback_addresses():
        if len(found) == count:
            break
        free = all(listen_error(address, port) is None for port in SIDECAR_PORTS)
        if free and _claim(address, claims):
            found.append(address)
    if len(found) < count:
        ports = ", ".join(map(str, SIDECAR_PORTS))
        raise MachineUnfit(
            f"each replica and each gateway needs ports {ports} on a loopback address of its own, "
            f"and only {len(found)} of {count} are free from 127.0.1.1 on; something may listen on "
            f"these ports of every address: see `ss -ltnp sport = :{SIDECAR_PORTS[0]}`"
        )
    return found


def _claim(name: str, claims: ExitStack) -> bool:
    """Take something of this machine's unless it is taken; tell whether it is ours.

    A claim is a name in the kernel's list of Unix sockets. Like an address it belongs to this
    network and to no folder or user, and it goes with the process, however that ends.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0weir/{name}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    claims.enter_context(claim)
    return True


def _loopback_addresses() -> Iterator[str]:
    return (f"127.0.1.{number}" for number in range(1, LAST_REPLICA + 1))


def listen_error(address: str, port: int) -> OSError | None:
    """Return why nothing can listen on `address` and `port` now, or None."""
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error
    return None


def check_public(address: str, port: int) -> None:
    """Check that a gateway may listen there.

    Raises:
        MachineUnfit: It may not; the message says why and what else to try.
    """
    if ":" in address:
        raise MachineUnfit(f"--host {address}: give an IPv4 address, such as 127.0.0.1 or 0.0.0.0")
    if address == "0.0.0.0" and port in SIDECAR_PORTS:
        raise MachineUnfit(
            f"{address}:{port} would cover the replicas' own loopback addresses, which use port "
            f"{port} too; choose another port: --port 8080"
        )
    if port > LAST_PORT:
        raise MachineUnfit(
            f"there is no port {port}, which a further service of the files would get; choose a "
            "lower --port"
        )
    error = listen_error(address, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise MachineUnfit(
            f"{address}:{port} is taken; `weir status` tells whether it is a running `weir up` "
            "(`weir down` stops it), or choose another port: --port "
            f"{port + 100}"
        )
    raise MachineUnfit(f"cannot listen on {address}:{port}: {error.strerror}")


def check_weights(paths: Iterable[Path]) -> None:
    """Check that the directories that file:// names are there.

    Raises:
        MachineUnfit: One is not, or cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            raise MachineUnfit(f"file://{path} is not a directory on this machine")
        if not os.access(path, os.R_OK | os.X_OK):
            raise MachineUnfit(f"file://{path} cannot be read by you")


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the NVIDIA GPUs this user may use, as CUDA_VISIBLE_DEVICES would name them."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part.strip() for part in chosen.split(",") if part.strip() not in {"", "-1"})
    devices = Path("/dev").glob("nvidia[0-9]*")
    numbers = sorted(int(device.name.removeprefix("nvidia")) for device in devices)
    return tuple(str(number) for number in range(len(numbers)))


def claim_gpus(count: int, gpus: Sequence[str], claims: ExitStack) -> list[str]:
    """Return the GPUs with `count` in front that no other `weir up` gives out, if there are.

    They are this process's until `claims` closes. Those that another one has come last, and are
    not refused: engines can share one, if each is told how much of its memory to take.
    """
    free = list(itertools.islice((gpu for gpu in gpus if _claim(f"gpu/{gpu}", claims)), count))
    return [*free, *(gpu for gpu in gpus if gpu not in free)]


def assign_gpus(wanted: Sequence[int], gpus: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each replica, which wants so many GPUs, those it gets; none is promised twice.

    A replica that wants none still gets to see one where there are any, in turn and shared: vLLM's
    GPU build, which such a machine has, cannot run without.

    Raises:
        MachineUnfit: The replicas want more than there are.
    """
    if sum(wanted) > len(gpus):
        has = f"has {len(gpus)}" if gpus else "has none"
        fewer = (
            "ask for fewer replicas (--replicas, or a lower spec.scaling.maxReplicas), or "
            if gpus
            else ""
        )
        raise MachineUnfit(
            f"the replicas ask for {sum(wanted)} GPU(s) together and this machine {has}; {fewer}"
            "serve on the CPU with `accelerator: {count: 0}` in the pool "
            "(a pool that says nothing asks for one GPU a replica)"
        )
    promised = iter(gpus)
    shared = itertools.cycle(gpus[sum(wanted) :] or gpus)
    return [
        tuple(itertools.islice(promised, count)) if count else tuple(itertools.islice(shared, 1))
        for count in wanted
    ]

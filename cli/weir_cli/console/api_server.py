"""The API server as the console asks it: GET, and nothing else.

A pod asks with the token of its ServiceAccount. A user asks through `kubectl proxy`, which knows
the user's clusters and logins; it listens on a socket in a folder that only this user can open,
and passes on nothing but what the console reads.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from weir_cli import leash
from weir_core.api import labels
from weir_core.errors import ClusterUnavailable, MachineUnfit
from weir_core.wire.addresses import host_and_port

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder with the token and the authority of a pod's ServiceAccount."""
LONGEST_ANSWER: Final = 64 << 20
"""In bytes; the pods of 1,000 replicas are a fifth of it."""
_PATIENCE: Final = aiohttp.ClientTimeout(total=10.0)
_AT_ONCE: Final = 32
_PROXY_WITHIN_S: Final = 15.0
_ENDS_WITHIN_S: Final = 5.0
_PASSED_ON: Final = ",".join(
    (
        rf"^/apis/{labels.GROUP}/{labels.VERSION}/namespaces/[^/]+/inferenceservices$",
        r"^/api/v1/namespaces/[^/]+/pods$",
        r"^/api/v1/namespaces/[^/]+/secrets/[^/]+-policies$",
        rf"^/api/v1/namespaces/[^/]+/pods/[^/]+:{labels.ADMIN_PORT}/proxy/",
    )
)


class ApiServer:
    """Reads of one API server.

    Args:
        http: Its connections.
        base: Its URL.
        account: Folder with a ServiceAccount's token, which changes; None sends no token.
    """

    def __init__(self, http: aiohttp.ClientSession, base: str, account: Path | None = None) -> None:
        self._http = http
        self._base = base
        self._account = account

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None, longest: int = LONGEST_ANSWER
    ) -> bytes:
        """Return what is at a path.

        Args:
            path: Of the URL.
            headers: More of them.
            longest: Bytes of an answer that is still read.

        Raises:
            ClusterUnavailable: It is not answered, or refused; the message says why.
        """
        sent = dict(headers or {})
        url = f"{self._base}{path}"
        try:
            if self._account is not None:
                token = (self._account / "token").read_text().strip()
                sent["Authorization"] = f"Bearer {token}"
            async with self._http.get(url, headers=sent, allow_redirects=False) as answer:
                if answer.status != 200:
                    said = (await answer.content.read(300)).decode(errors="replace").strip()
                    raise ClusterUnavailable(f"{path}: {answer.status}: {said}")
                return await _whole(answer, longest)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise ClusterUnavailable(f"{path}: {why}") from error


async def _whole(answer: aiohttp.ClientResponse, longest: int) -> bytes:
    whole = bytearray()
    async for piece in answer.content.iter_any():
        whole += piece
        if len(whole) > longest:
            raise ClusterUnavailable(f"an answer of more than {longest} bytes")
    return bytes(whole)


@asynccontextmanager
async def in_a_pod(environ: Mapping[str, str], account: Path = ACCOUNT) -> AsyncIterator[ApiServer]:
    """Ask as the pod's ServiceAccount while the context lasts.

    Raises:
        MachineUnfit: This is no pod, or it has no token.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (account / "token").exists():
        raise MachineUnfit("this is no pod that has a token of its ServiceAccount")
    trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
    connector = aiohttp.TCPConnector(limit=_AT_ONCE, ssl=trusted)
    async with aiohttp.ClientSession(connector=connector, timeout=_PATIENCE) as http:
        yield ApiServer(http, f"https://{host_and_port(host, int(port))}", account)


@asynccontextmanager
async def by_kubectl(context: str) -> AsyncIterator[ApiServer]:
    """Ask as the user of the kubeconfig while the context lasts.

    Args:
        context: Of the kubeconfig; empty is the current one.

    Raises:
        MachineUnfit: kubectl is not there, or ends at once.
    """
    with tempfile.TemporaryDirectory(prefix="weir-console-") as folder:  # only this user's
        path, complaints = f"{folder}/api.sock", Path(folder) / "stderr"
        with complaints.open("wb") as stderr:
            proxy = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", leash.__file__, str(os.getpid())),
                *("kubectl", "proxy", f"--unix-socket={path}", f"--accept-paths={_PASSED_ON}"),
                "--reject-methods=POST,PUT,PATCH,DELETE,OPTIONS",
                *((f"--context={context}",) if context else ()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        try:
            await _serves(proxy, complaints)
            connector = aiohttp.UnixConnector(path, limit=_AT_ONCE)
            async with aiohttp.ClientSession(connector=connector, timeout=_PATIENCE) as http:
                yield ApiServer(http, "http://localhost")
        finally:
            await _end(proxy)


async def _serves(proxy: asyncio.subprocess.Process, complaints: Path) -> None:
    """Wait until kubectl says that it serves."""
    assert proxy.stdout is not None
    try:
        async with asyncio.timeout(_PROXY_WITHIN_S):
            said = await proxy.stdout.readline()
    except TimeoutError:
        raise MachineUnfit(f"kubectl proxy did not start within {_PROXY_WITHIN_S:.0f} s") from None
    if not said:
        raise MachineUnfit(f"kubectl proxy ended: {_text(complaints) or 'it says nothing'}")


def _text(file: Path) -> str:
    return file.read_text(errors="replace").strip()


async def _end(proxy: asyncio.subprocess.Process) -> None:
    if proxy.returncode is not None:
        return
    proxy.terminate()
    try:
        async with asyncio.timeout(_ENDS_WITHIN_S):
            await proxy.wait()
    except TimeoutError:
        proxy.kill()
        await proxy.wait()

"""A pod is reached by IPv4, by IPv6 or by both, whatever its cluster has."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.integration.sidecar.fleet import DOCUMENT, named
from tests.integration.sidecar.harness import PATIENT, House, chat, eventually
from weir_core.wire.policies import PeerEntry
from weir_sidecar.listening import any_address
from weir_sidecar.settings import ANY_ADDRESS, Addresses, Settings
from weir_sim.mock_engine import Profile

LOOPBACKS = ["127.0.0.1", "[::1]"]
IN_A_POD = replace(
    PATIENT, addresses=replace(PATIENT.addresses, host=Settings().addresses.host, pod_ip="::1")
)
"""As the operator renders it: no address to listen at, and the pod's own."""


def test_a_pod_listens_at_every_address() -> None:
    assert Settings.from_env({}).addresses.host == Addresses().host == ANY_ADDRESS


@pytest.mark.parametrize("address", LOOPBACKS)
async def test_every_port_answers_both_families(house: House, address: str) -> None:
    house.policies(msgspec.structs.replace(DOCUMENT, anonymous_class="standard"))
    await house.mock_engine(Profile())
    running = await house.sidecar(IN_A_POD)
    sidecar = running.sidecar
    async with running.session.get(f"http://{address}:{sidecar.admin_port}/readyz") as answer:
        assert answer.status == 200
    url = f"http://{address}:{sidecar.api_port}/v1/chat/completions"
    async with running.session.post(url, json=chat()) as answer:
        assert answer.status == 200
    peer_port = int(sidecar.peers.own.address.rpartition(":")[2])
    _, writer = await asyncio.open_connection(address.strip("[]"), peer_port)
    writer.close()
    await writer.wait_closed()


async def test_a_client_by_ipv4_is_known_by_its_ipv4_address(house: House) -> None:
    running = await house.sidecar(IN_A_POD, ready=False)
    await running.raw()
    (client,) = running.sidecar.server.http.connections
    assert client.remote == "127.0.0.1"


async def test_sidecars_find_each_other_by_ipv6(house: House) -> None:
    other = House(Path(tempfile.mkdtemp(prefix="weir-")), house.stack)
    house.stack.callback(shutil.rmtree, other.run_dir)
    replicas = []
    for number, each in enumerate((house, other)):
        each.policies(DOCUMENT)
        await each.mock_engine(Profile())
        replicas.append(await each.sidecar(named(IN_A_POD, f"r{number}")))
    owns = [replica.sidecar.peers.own for replica in replicas]
    assert all(own.address.startswith("[::1]:") for own in owns)
    peers = tuple(PeerEntry(own.name, own.address) for own in owns)
    for each in (house, other):
        each.policies(msgspec.structs.replace(DOCUMENT, peers=peers))
    await eventually(lambda: all(r.sidecar.peers.usable == 1 for r in replicas))


def test_a_kernel_without_ipv6_gives_a_socket_of_ipv4() -> None:
    with any_address(0, both=False) as made:
        assert made.family is socket.AF_INET
        assert made.getsockname()[0] == "0.0.0.0"


def test_an_address_of_both_families_is_one_socket() -> None:
    with any_address(0, both=True) as made, contextlib.closing(socket.socket()) as client:
        made.listen()
        client.connect(("127.0.0.1", made.getsockname()[1]))
        accepted, _ = made.accept()
        accepted.close()

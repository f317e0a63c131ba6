"""The client's side of an exchange."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.sidecar.fakes import http_request
from weir_sidecar.frontend.client import Client


class Refusing(asyncio.Transport):
    """Refuses to write, as uvloop's transports do once their handle is closed."""

    def __init__(self, *, closed: bool) -> None:
        super().__init__()
        self.closed = closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError(f"unable to write {len(data)} bytes; the handler is closed")

    def is_closing(self) -> bool:
        return self.closed


def test_bytes_for_a_client_that_has_just_left_are_dropped() -> None:
    client = Client(http_request(), lambda: False)
    client.transport = Refusing(closed=True)
    client.write(b"a token")


def test_another_error_of_a_write_is_not_hidden() -> None:
    client = Client(http_request(), lambda: False)
    client.transport = Refusing(closed=False)
    with pytest.raises(RuntimeError, match="unable to write 7 bytes"):
        client.write(b"a token")

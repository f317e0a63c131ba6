"""File descriptors are divided between clients, their engine connections, and the sidecar."""

from __future__ import annotations

import errno
import logging
import resource

import pytest

from weir_core.errors import EngineUnavailable
from weir_sidecar.descriptors import RESERVED, client_limit, is_own_shortage
from weir_sidecar.telemetry.logs import Seldom


def test_each_client_leaves_room_for_an_engine_connection_and_all_for_the_reserve() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 2 * client_limit() + min(RESERVED, soft // 2) <= soft


def _behind(error: BaseException) -> BaseException:
    """An error as compiled code raises it from another one: with a context, without a cause."""
    found = EngineUnavailable("cannot connect")
    found.__context__ = error
    return found


@pytest.mark.parametrize(
    ("error", "want"),
    [
        pytest.param(OSError(errno.EMFILE, "x"), True, id="no descriptor left"),
        pytest.param(OSError(errno.EADDRNOTAVAIL, "x"), True, id="no local port left"),
        pytest.param(ConnectionRefusedError(errno.ECONNREFUSED, "x"), False, id="refused"),
        pytest.param(FileNotFoundError(errno.ENOENT, "x"), False, id="no socket"),
        pytest.param(TimeoutError(), False, id="late"),
        pytest.param(_behind(OSError(errno.EMFILE, "x")), True, id="behind another error"),
        pytest.param(_behind(TimeoutError()), False, id="late, behind another error"),
    ],
)
def test_a_shortage_of_ones_own_is_told_from_the_others_failure(
    error: BaseException, want: bool
) -> None:
    assert is_own_shortage(error) is want


def test_a_warning_is_repeated_seldom_and_says_how_often_it_was_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    seldom = Seldom(lambda: now, period_s=10.0)
    for now in (0.0, 1.0, 2.0, 10.0, 11.0):
        seldom.warn(logging.getLogger("test"), "short", {"at": now})
    assert [(record.at, record.left_out) for record in caplog.records] == [(0.0, 0), (10.0, 2)]  # type: ignore[attr-defined]

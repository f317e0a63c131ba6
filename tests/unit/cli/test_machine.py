"""What the machine can give is looked at before anything starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from weir_cli import machine
from weir_core.errors import MachineUnfit


@pytest.mark.parametrize(
    ("wanted", "gpus", "given"),
    [
        pytest.param([0, 0], [], [(), ()], id="none where there are none"),
        pytest.param([1, 1], ["0", "1"], [("0",), ("1",)], id="one each"),
        pytest.param([2, 1], ["4", "5", "7"], [("4", "5"), ("7",)], id="none is given twice"),
        pytest.param(
            [0, 1, 0], ["0", "1"], [("1",), ("0",), ("1",)], id="CPU replicas share what is left"
        ),
        pytest.param([0, 1], ["0"], [("0",), ("0",)], id="CPU replicas share the only one"),
    ],
)
def test_gives_out_gpus(wanted: list[int], gpus: list[str], given: list[tuple[str, ...]]) -> None:
    assert machine.assign_gpus(wanted, gpus) == given


@pytest.mark.parametrize(
    ("wanted", "gpus", "message"),
    [
        pytest.param([1], [], r"ask for 1 GPU.* this machine has none", id="no GPU at all"),
        pytest.param([2, 1], ["0", "1"], r"ask for 3 GPU.* this machine has 2", id="too few"),
    ],
)
def test_refuses_gpus_that_are_not_there(wanted: list[int], gpus: list[str], message: str) -> None:
    with pytest.raises(MachineUnfit, match=message) as caught:
        machine.assign_gpus(wanted, gpus)
    assert "accelerator: {count: 0}" in str(caught.value)


def test_a_second_one_is_given_the_gpus_that_are_left_and_shares_the_others() -> None:
    gpus = [f"test-{number}" for number in range(3)]
    with ExitStack() as first, ExitStack() as second:
        assert machine.claim_gpus(2, gpus, first) == ["test-0", "test-1", "test-2"]
        assert machine.claim_gpus(2, gpus, second) == ["test-2", "test-0", "test-1"]
    with ExitStack() as third:
        assert machine.claim_gpus(0, gpus, third) == gpus


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, ("2", "5")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
    ],
)
def test_heeds_the_gpus_the_user_chose(environ: dict[str, str], gpus: tuple[str, ...]) -> None:
    assert machine.visible_gpus(environ) == gpus


def test_two_that_start_at_once_get_different_addresses() -> None:
    with ExitStack() as first, ExitStack() as second:
        addresses = [*machine.claim_addresses(2, first), *machine.claim_addresses(2, second)]
    assert len(set(addresses)) == 4


def test_an_address_is_free_again_when_its_owner_is_killed() -> None:
    claims = "from contextlib import ExitStack; from weir_cli.machine import claim_addresses"
    claim = f"{claims}; s = ExitStack(); print(*claim_addresses(1, s), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", claim], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        address = owner.stdout.readline().strip()
        with ExitStack() as claims_meanwhile:
            assert address not in machine.claim_addresses(3, claims_meanwhile)
        owner.kill()
    with ExitStack() as claims_after:
        assert address in machine.claim_addresses(3, claims_after)


def test_says_what_to_do_when_the_public_port_is_taken() -> None:
    with socket.create_server(("127.0.2.9", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineUnfit, match=f"127.0.2.9:{port} is taken; `weir status`"):
            machine.check_public("127.0.2.9", port)
    machine.check_public("127.0.2.9", port)


def test_refuses_a_public_address_that_covers_the_replicas() -> None:
    with pytest.raises(MachineUnfit, match="choose another port: --port 8080"):
        machine.check_public("0.0.0.0", 8000)


def test_refuses_a_port_that_does_not_exist() -> None:
    with pytest.raises(MachineUnfit, match=r"no port 65540.*choose a lower --port"):
        machine.check_public("127.0.0.1", 65540)


def test_refuses_an_address_the_front_cannot_read() -> None:
    with pytest.raises(MachineUnfit, match="give an IPv4 address"):
        machine.check_public("::1", 8000)


def test_refuses_an_address_of_another_machine() -> None:
    with pytest.raises(MachineUnfit, match=r"cannot listen on 192.0.2.1:8000"):
        machine.check_public("192.0.2.1", 8000)


def test_scratch_is_short_enough_for_sockets_wherever_the_cache_is() -> None:
    deep = Path("/home/someone") / ("a-long-folder-name/" * 12)
    scratch = machine.scratch_path(deep)
    assert len(f"{scratch}{machine.LONGEST_SOCKET}") <= machine.SOCKET_PATH_LIMIT
    assert machine.scratch_path(deep) == scratch
    assert machine.scratch_path(deep / "other") != scratch


def test_scratch_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    with machine.private_dir(scratch):
        (scratch / "1" / "run").mkdir(parents=True)
        assert scratch.stat().st_mode & 0o777 == 0o700
    assert not scratch.exists()


def test_refuses_a_scratch_folder_that_others_can_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with (
        pytest.raises(MachineUnfit, match="is not a private directory of yours"),
        machine.private_dir(tmp_path),
    ):
        pass
    assert tmp_path.exists()


def test_refuses_a_scratch_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "scratch").touch()
    with (
        pytest.raises(MachineUnfit, match="is not a private directory of yours"),
        machine.private_dir(tmp_path / "scratch"),
    ):
        pass


def test_refuses_weights_that_are_not_there(tmp_path: Path) -> None:
    machine.check_weights([tmp_path])
    with pytest.raises(MachineUnfit, match=r"absent is not a directory on this machine"):
        machine.check_weights([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("environ", "want"),
    [
        ({"WEIR_CACHE": "/big/disk"}, Path("/big/disk")),
        ({}, Path.home() / ".cache/weir"),
        ({"WEIR_CACHE": ""}, Path.home() / ".cache/weir"),
    ],
)
def test_everything_is_kept_in_one_place(environ: dict[str, str], want: Path) -> None:
    assert machine.cache_dir(environ) == want

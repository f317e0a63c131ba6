"""Where weights are mounted and found: what the operator and the engine must agree on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.api.model import Source
from weir_core.errors import InvalidSpec
from weir_core.wire.engine import local_path, locate, mount_of


@pytest.mark.parametrize(
    ("uri", "kind", "volume", "sub_path"),
    [
        pytest.param("pvc://claim/a/b/", "pvc", "claim", "a/b", id="path in a claim"),
        pytest.param("pvc://claim", "pvc", "claim", "", id="whole claim"),
        pytest.param("file:///data/m/", "file", "/data/m", "", id="directory of the node"),
        pytest.param("oci://ghcr.io/o/m:1", "oci", "ghcr.io/o/m:1", "", id="image"),
    ],
)
def test_a_volume_is_mounted_whole_below_the_model_directory(
    uri: str, kind: str, volume: str, sub_path: str
) -> None:
    source = Source(uri=uri)
    mount = mount_of(source)
    assert mount is not None
    assert (mount.kind, mount.volume, mount.sub_path) == (kind, volume, sub_path)
    assert local_path(source) == "/".join(filter(None, (mount.mount_path, sub_path)))


@pytest.mark.parametrize(
    "uri", ["hf://org/model", "s3://bucket/path", "gs://bucket", "az://container/path", "tiny://5m"]
)
def test_what_is_fetched_needs_no_volume(uri: str) -> None:
    assert mount_of(Source(uri=uri)) is None


def test_two_paths_of_one_claim_share_a_mount() -> None:
    first, second = (mount_of(Source(uri=f"pvc://claim/{path}")) for path in ("a", "b"))
    assert first is not None
    assert second is not None
    assert first.mount_path == second.mount_path


@pytest.mark.parametrize(
    ("uri", "place", "path", "revision"),
    [
        pytest.param("hf://gpt2", "gpt2", "", None, id="without an organization"),
        pytest.param("hf://a/b@refs/pr/1", "a/b", "", "refs/pr/1", id="revision with slashes"),
        pytest.param("hf://a/b/c/d", "a/b", "c/d", None, id="folder"),
        pytest.param("hf://a/b/c/@v1", "a/b", "c", "v1", id="folder and revision"),
    ],
)
def test_a_repository_may_have_a_folder_and_a_revision(
    uri: str, place: str, path: str, revision: str | None
) -> None:
    assert locate(Source(uri=uri)) == ("hf", place, path, revision)


def test_the_model_directory_can_be_elsewhere() -> None:
    assert local_path(Source(uri="tiny://"), "/cache") == "/cache/tiny"


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("file://data/model", id="relative path"),
        pytest.param("pvc:///path", id="no claim"),
        pytest.param("pvc://claim/../other", id="path that leaves the claim"),
        pytest.param("file:///data/../etc", id="path that leaves its directory"),
        pytest.param("hf://a/b/../c", id="folder that leaves the repository"),
        pytest.param("hf://a//b", id="empty part"),
        pytest.param("hf://a/b?x=1", id="query"),
    ],
)
def test_refuses_what_names_nothing(uri: str) -> None:
    with pytest.raises(InvalidSpec, match=r"source\.uri"):
        local_path(Source(uri=uri))


@given(st.from_regex(r"\A(s3|oci|pvc)://[A-Za-z0-9][A-Za-z0-9._:/-]{0,100}\Z"))
def test_every_place_has_a_name_of_its_own_that_kubernetes_takes(uri: str) -> None:
    try:
        name = local_path(Source(uri=uri)).split("/")[2]
    except InvalidSpec:
        return
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    if not uri.startswith("pvc://"):
        assert local_path(Source(uri=uri)) != local_path(Source(uri=uri + "x"))

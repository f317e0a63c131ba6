"""s3:// sources against a store on the loopback that speaks as much S3 as is needed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.unit.engine.local_http import Answer, Asked, serving
from weir_core.api.model import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import EngineConfig, local_path
from weir_engine.bucket import bucket_of, download
from weir_engine.fetch import fetch
from weir_engine.s3_signature import Credentials, signed_headers
from weir_engine.transfer import Interrupted

SOURCE = Source(uri="s3://weights/llama/8b")
OBJECTS = {
    "llama/8b/config.json": b"{}",
    "llama/8b/model.safetensors": bytes(range(256)) * 40,
    "llama/8b/sub/adapter.bin": b"x",
    "llama/8b-other/config.json": b"not this one",
}
KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "sEcReT", "AWS_REGION": "eu-west-1"}


class Store:
    """Answers list and get; `page` objects per listing; `cut` bytes before it breaks off."""

    def __init__(self, page: int = 1000, cut: int | None = None, status: int = 200) -> None:
        self.page = page
        self.cut = cut
        self.status = status
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.status != 200:
            return Answer(self.status)
        parts = urlsplit(asked.path)
        if parts.path == "/weights":
            return self._listing(parse_qs(parts.query))
        body = OBJECTS[parts.path.removeprefix("/weights/")]
        if "range" in asked.headers:
            start = int(asked.headers["range"].removeprefix("bytes=").rstrip("-"))
            return Answer(206, body[start:])
        if self.cut is not None and len(body) > self.cut:
            cut, self.cut = self.cut, None
            return Answer(200, body[:cut], length=len(body))
        return Answer(200, body)

    def _listing(self, query: dict[str, list[str]]) -> Answer:
        keys = [key for key in sorted(OBJECTS) if key.startswith(query["prefix"][0])]
        start = int(query.get("continuation-token", ["0"])[0])
        shown = keys[start : start + self.page]
        more = start + self.page < len(keys)
        body = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(OBJECTS[key])}</Size></Contents>"
            for key in shown
        )
        token = f"<NextContinuationToken>{start + self.page}</NextContinuationToken>"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        page = f'<ListBucketResult xmlns="{space}">{body}{token if more else ""}</ListBucketResult>'
        return Answer(200, page.encode())


def run_fetch(store: Store, models: Path, **environment: str) -> Path:
    with serving(store) as url:
        fetch(
            {
                "WEIR_ENGINE_CONFIG": EngineConfig(name="m", source=SOURCE).model_dump_json(),
                "WEIR_MODEL_DIR": str(models),
                "AWS_ENDPOINT_URL": url,
                **environment,
            }
        )
    return Path(local_path(SOURCE, str(models)))


def found(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("page", [1, 1000])
def test_brings_every_object_below_the_path(tmp_path: Path, page: int) -> None:
    directory = run_fetch(Store(page), tmp_path)
    prefix = "llama/8b/"
    assert found(directory) == {
        key.removeprefix(prefix): body for key, body in OBJECTS.items() if key.startswith(prefix)
    }


def test_a_second_fetch_asks_for_nothing(tmp_path: Path) -> None:
    run_fetch(Store(), tmp_path)
    again = Store()
    run_fetch(again, tmp_path)
    assert again.asked == []


def test_goes_on_where_a_broken_download_stopped(tmp_path: Path) -> None:
    store = Store(cut=1000)
    directory = run_fetch(store, tmp_path)
    assert found(directory)["model.safetensors"] == OBJECTS["llama/8b/model.safetensors"]
    assert [one.headers["range"] for one in store.asked if "range" in one.headers] == [
        "bytes=1000-"
    ]


def test_nothing_half_done_is_left_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        run_fetch(Store(status=403), tmp_path)
    assert not Path(local_path(SOURCE, str(tmp_path))).exists()


@pytest.mark.parametrize(
    ("status", "environment", "want"),
    [
        pytest.param(403, {}, "anonymous requests may not .* secretRef", id="no credentials"),
        pytest.param(403, KEYS, "these credentials may not", id="too few rights"),
        pytest.param(404, KEYS, "no such bucket", id="no bucket"),
        pytest.param(301, KEYS, "another region than eu-west-1: set AWS_REGION", id="region"),
    ],
)
def test_says_what_to_do(
    tmp_path: Path, status: int, environment: dict[str, str], want: str
) -> None:
    with pytest.raises(ModelUnavailable, match=rf"s3://weights/llama/8b: .*{want}") as caught:
        run_fetch(Store(status=status), tmp_path, **environment)
    assert "sEcReT" not in str(caught.value)


def test_an_empty_path_is_named(tmp_path: Path) -> None:
    from weir_core.wire.engine import locate

    with serving(Store()) as url, pytest.raises(ModelUnavailable, match="nothing is stored below"):
        download(locate(Source(uri="s3://weights/none")), tmp_path, {"AWS_ENDPOINT_URL": url})


def test_a_store_in_trouble_is_tried_again_later(tmp_path: Path) -> None:
    from weir_core.wire.engine import locate

    with serving(Store(status=503)) as url, pytest.raises(Interrupted, match="answered 503"):
        download(locate(SOURCE), tmp_path, {"AWS_ENDPOINT_URL": url})


def test_a_store_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    from weir_core.wire.engine import locate

    with serving(Store()) as url:
        pass
    with pytest.raises(Interrupted, match="cannot be reached"):
        download(locate(SOURCE), tmp_path, {"AWS_ENDPOINT_URL": url})


def test_signs_requests_when_there_are_credentials(tmp_path: Path) -> None:
    store = Store()
    run_fetch(store, tmp_path, **KEYS)
    first = store.asked[0].headers["authorization"]
    assert first.startswith("AWS4-HMAC-SHA256 Credential=AKID/")
    assert "/eu-west-1/s3/aws4_request,SignedHeaders=host;" in first


def test_the_default_store_is_that_of_the_region() -> None:
    assert bucket_of("b", {"AWS_REGION": "eu-north-1"}).endpoint == (
        "https://s3.eu-north-1.amazonaws.com"
    )


def test_a_bucket_never_shows_its_secret() -> None:
    assert "sEcReT" not in repr(bucket_of("b", KEYS))


def test_signature_is_the_one_of_the_published_example() -> None:
    """The GET object example of AWS's page on signature version 4."""
    signed = signed_headers(
        "https://examplebucket.s3.amazonaws.com/test.txt",
        {"range": "bytes=0-9"},
        Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        "us-east-1",
        datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert signed["authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )

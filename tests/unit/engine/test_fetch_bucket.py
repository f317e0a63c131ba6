"""s3://, gs:// and az:// sources against stores on the loopback that speak as much as is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.unit.engine.local_http import Answer, Asked, serving
from weir_core.api.model import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import EngineConfig, local_path, locate
from weir_engine import bucket
from weir_engine.bucket import CREDENTIALS, download
from weir_engine.fetch import CHOICES_FILE, fetch
from weir_engine.transfer import Interrupted

SOURCE = Source(uri="s3://weights/llama/8b")
WEIGHTS = bytes(range(256)) * 40
OBJECTS = {
    "llama/8b/config.json": b"{}",
    "llama/8b/model.safetensors": WEIGHTS,
    "llama/8b/sub/": b"",
    "llama/8b/sub/adapter.bin": b"x",
    "llama/8b/with space+plus.txt": b"odd",
    "llama/8b-other/config.json": b"not this one",
}
WANTED = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "sub/adapter.bin": b"x",
    "with space+plus.txt": b"odd",
}
KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "sEcReT", "AWS_REGION": "eu-west-1"}
MODIFIED = "Sun, 01 Nov 2026 10:00:00 GMT"
STAMP = "2026-11-01T10:00:00Z"
UNSET = [name for names in CREDENTIALS.values() for name in names]
"""What a developer's own environment may hold."""


class Store:
    """Answers list and get as S3 and GCS do; `page` objects a page."""

    def __init__(self, page: int = 1000, status: int = 200, version: str = "1") -> None:
        self.page = page
        self.status = status
        self.version = version
        self.refused_from: int | None = None
        """Answer 500 to ranges that begin there or later."""
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.status != 200:
            return Answer(self.status)
        parts = urlsplit(asked.path)
        if parts.path.rstrip("/") == "/weights":
            return self._listing(parse_qs(parts.query))
        return self._object(unquote(parts.path).removeprefix("/weights/"), asked)

    def ranges(self) -> list[str]:
        return [one.headers["range"] for one in self.asked if "range" in one.headers]

    def _object(self, key: str, asked: Asked) -> Answer:
        body = OBJECTS[key]
        if asked.headers.get("if-match", self._etag(key)) != self._etag(key):
            return Answer(412)
        start, end = map(int, re.findall(r"\d+", asked.headers["range"]))
        if self.refused_from is not None and start >= self.refused_from:
            return Answer(404)
        headers = {"etag": self._etag(key), "last-modified": MODIFIED}
        headers["content-range"] = f"bytes {start}-{end}/{len(body)}"
        return Answer(206, body[start : end + 1], headers)

    def _listing(self, query: dict[str, list[str]]) -> Answer:
        keys = [key for key in sorted(OBJECTS) if key.startswith(query["prefix"][0])]
        start = int(query.get("continuation-token", ["0"])[0])
        shown = keys[start : start + self.page]
        more = start + self.page < len(keys)
        body = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(OBJECTS[key])}</Size>"
            f"<LastModified>{STAMP}</LastModified><ETag>{self._etag(key)}</ETag></Contents>"
            for key in shown
        )
        token = f"<NextContinuationToken>{start + self.page}</NextContinuationToken>"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        page = f'<ListBucketResult xmlns="{space}">{body}{token if more else ""}</ListBucketResult>'
        return Answer(200, page.encode())

    def _etag(self, key: str) -> str:
        return f'"{len(key)}-{self.version}"'


class AzureStore(Store):
    """Answers list and get as Azure does."""

    def _listing(self, query: dict[str, list[str]]) -> Answer:
        blobs = "".join(
            f"<Blob><Name>{key}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified>"
            f"<Content-Length>{len(body)}</Content-Length><Etag>{self._etag(key)}</Etag>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for key, body in OBJECTS.items()
            if key.startswith(query["prefix"][0])
        )
        page = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        return Answer(200, page.encode())


class Setting:
    """The environment of a fetch, which the client reads itself."""

    def __init__(self, patch: pytest.MonkeyPatch, models: Path) -> None:
        self._patch = patch
        self.models = models
        self.environment: dict[str, str] = {}

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._patch.setenv(name, value)
        self.environment |= variables

    @contextmanager
    def serving(self, store: Store, **variables: str) -> Iterator[None]:
        with serving(store) as url:
            self.set(AWS_ENDPOINT_URL=url, **variables)
            yield

    def fetch(self, store: Store, source: Source = SOURCE, **variables: str) -> Path:
        config = EngineConfig(name="m", source=source)
        with self.serving(store, **variables):
            fetch(
                self.environment
                | {
                    "WEIR_ENGINE_CONFIG": config.model_dump_json(),
                    "WEIR_MODEL_DIR": str(self.models),
                }
            )
        return Path(local_path(source, str(self.models)))

    def download(self, store: Store, directory: Path, **variables: str) -> None:
        """One attempt, without the tries that come on top."""
        directory.mkdir(exist_ok=True)
        with self.serving(store, **variables):
            download(locate(SOURCE), directory, self.environment)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting:
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    return Setting(monkeypatch, tmp_path)


def found(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != CHOICES_FILE
    }


@pytest.mark.parametrize("page", [1, 1000])
def test_brings_every_object_below_the_path(setting: Setting, page: int) -> None:
    assert found(setting.fetch(Store(page))) == WANTED


def test_a_second_fetch_asks_for_nothing(setting: Setting) -> None:
    setting.fetch(Store())
    again = Store()
    setting.fetch(again)
    assert again.asked == []


def test_goes_on_where_a_broken_download_stopped(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART_BYTES", 4000)
    broken, again = Store(), Store()
    broken.refused_from = 8000
    with pytest.raises(ModelUnavailable):
        setting.download(broken, tmp_path / "m")
    setting.download(again, tmp_path / "m")
    assert found(tmp_path / "m") == WANTED
    assert "bytes=8000-10239" in again.ranges()
    assert not {"bytes=0-3999", "bytes=4000-7999"} & set(again.ranges())


def test_an_object_that_was_replaced_meanwhile_is_downloaded_anew(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART_BYTES", 4000)
    broken, again = Store(), Store(version="2")
    broken.refused_from = 8000
    with pytest.raises(ModelUnavailable):
        setting.download(broken, tmp_path / "m")
    setting.download(again, tmp_path / "m")
    assert found(tmp_path / "m") == WANTED
    assert {"bytes=0-3999", "bytes=4000-7999", "bytes=8000-10239"} <= set(again.ranges())


def test_nothing_half_done_is_left_in_its_place(setting: Setting) -> None:
    with pytest.raises(ModelUnavailable):
        setting.fetch(Store(status=403))
    assert not Path(local_path(SOURCE, str(setting.models))).exists()


@pytest.mark.parametrize(
    ("status", "environment", "want"),
    [
        pytest.param(403, {}, "anonymous requests may not .* secretRef", id="no credentials"),
        pytest.param(403, KEYS, "these credentials may not", id="too few rights"),
        pytest.param(401, KEYS, "these credentials may not", id="unknown credentials"),
        pytest.param(404, KEYS, "no such bucket", id="no bucket"),
        pytest.param(301, KEYS, "another region: set AWS_REGION", id="region"),
        pytest.param(400, KEYS, "another region: set AWS_REGION", id="region of the signature"),
    ],
)
def test_says_what_to_do(
    setting: Setting, status: int, environment: dict[str, str], want: str
) -> None:
    with pytest.raises(ModelUnavailable, match=rf"s3://weights/llama/8b: .*{want}") as caught:
        setting.fetch(Store(status=status), SOURCE, **environment)
    assert "sEcReT" not in str(caught.value)


def test_an_empty_path_is_named(setting: Setting) -> None:
    with pytest.raises(ModelUnavailable, match="nothing is stored below"):
        setting.fetch(Store(), Source(uri="s3://weights/none"))


def test_a_store_in_trouble_is_tried_again_later(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="503"):
        setting.download(Store(status=503), tmp_path)


def test_a_store_that_is_not_there_is_tried_again_later(setting: Setting, tmp_path: Path) -> None:
    with setting.serving(Store()):
        pass
    with pytest.raises(Interrupted, match="cannot be reached"):
        download(locate(SOURCE), tmp_path, setting.environment)


def test_signs_requests_when_there_are_keys_and_only_then(setting: Setting) -> None:
    public, private = Store(), Store()
    setting.fetch(public)
    setting.fetch(private, Source(uri="s3://weights/llama"), **KEYS)
    assert {one.headers.get("authorization") for one in public.asked} == {None}
    for one in private.asked:
        assert one.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
        assert "/eu-west-1/s3/aws4_request" in one.headers["authorization"]


class Identity(Store):
    """A store beside the agent that gives a pod of EKS its role."""

    def __call__(self, asked: Asked) -> Answer:
        if asked.path != "/identity":
            return super().__call__(asked)
        assert asked.headers["authorization"] == "of the service account"
        issued = {"AccessKeyId": "AROLE", "SecretAccessKey": "sEcReT", "Token": "session"}
        return Answer(200, json.dumps(issued | {"Expiration": "2036-01-01T00:00:00Z"}).encode())


def test_takes_the_role_of_a_pod_identity(setting: Setting) -> None:
    token = setting.models / "token"
    token.write_text("of the service account")
    store = Identity()
    with serving(store) as url:
        setting.set(
            AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{url}/identity",
            AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(token),
        )
        assert found(setting.fetch(store)) == WANTED
    for one in store.asked:
        assert "Credential=AROLE/" in one.headers["authorization"]
        assert one.headers["x-amz-security-token"] == "session"


def test_asks_for_the_role_of_a_service_account(setting: Setting, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of the service account")
    store, asked = Store(), list[Asked]()

    def proxy(one: Asked) -> Answer:
        asked.append(one)
        return Answer(403)

    with serving(proxy) as url:
        # The client speaks to the token service over TLS only.
        setting.set(
            AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
            AWS_ROLE_ARN="arn:aws:iam::123456789012:role/reader",
            AWS_REGION="eu-west-1",
            HTTPS_PROXY=url,
        )
        with pytest.raises(Interrupted, match="cannot be reached"):
            setting.download(store, tmp_path)
    assert {one.path for one in asked} == {"sts.eu-west-1.amazonaws.com:443"}
    assert store.asked == []


def test_google_buckets_are_public_or_read_as_the_pods_own_identity(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Private(Store):
        def __call__(self, asked: Asked) -> Answer:
            if "/service-accounts/" in asked.path:
                return Answer(200, b'{"access_token": "t0ken", "expires_in": 3600}')
            if asked.headers.get("authorization") != "Bearer t0ken":
                return Answer(401)
            return super().__call__(asked)

    public = Store()
    with serving(public) as url:
        home = setting.fetch(public, Source(uri="gs://weights/llama/8b"), GOOGLE_BASE_URL=url)
    assert found(home) == WANTED
    with serving(Private()) as url:
        # In the place of metadata.google.internal; on Google's machines no variable tells of it.
        monkeypatch.setenv("GCE_METADATA_HOST", url.removeprefix("http://"))
        home = setting.fetch(Store(), Source(uri="gs://weights/llama"), GOOGLE_BASE_URL=url)
    assert found(home / "8b") == WANTED


@pytest.mark.parametrize(
    ("variables", "want"),
    [
        pytest.param({}, None, id="public"),
        pytest.param({"AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}, "SharedKey acc:", id="key"),
    ],
)
def test_azure_containers_are_public_or_read_with_the_accounts_key(
    setting: Setting, variables: dict[str, str], want: str | None
) -> None:
    store = AzureStore()
    with serving(store) as url:
        variables = variables | {"AZURE_STORAGE_ENDPOINT": url, "AZURE_STORAGE_ACCOUNT_NAME": "acc"}
        home = setting.fetch(store, Source(uri="az://weights/llama/8b"), **variables)
    assert found(home) == WANTED
    shown = store.asked[0].headers.get("authorization")
    assert (shown is None) if want is None else (shown or "").startswith(want)


def test_an_azure_container_needs_the_name_of_its_account(setting: Setting) -> None:
    with pytest.raises(ModelUnavailable, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        setting.fetch(Store(), Source(uri="az://weights/llama"))

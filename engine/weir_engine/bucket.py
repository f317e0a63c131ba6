"""s3:// sources: the objects below a path of a bucket, of AWS or of anything that speaks S3.

A client of its own, because three requests are all it takes (list, get, get the rest) and an SDK
would weigh more than the engine's own code. The environment is the SDK's: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (from the source's secretRef; without them requests
are anonymous), AWS_REGION, AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import Location
from weir_engine.s3_signature import Credentials, signed_headers
from weir_engine.transfer import Interrupted, check_room, say

TIMEOUT_S: Final = 60.0
"""Longest silence of the store."""
PARALLEL_FILES: Final = 8
CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Object:
    """One object of a bucket."""

    key: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Bucket:
    """A bucket, reached by path-style addresses, which every store understands."""

    name: str
    endpoint: str
    region: str
    credentials: Credentials | None

    def objects(self, prefix: str) -> Iterator[Object]:
        """Yield the objects whose keys start with `prefix`."""
        query = {"list-type": "2", "prefix": prefix}
        while True:
            with self._open("", query, {}) as response:
                page = ElementTree.fromstring(response.read())
            for item in page.iterfind("{*}Contents"):
                yield Object(item.findtext("{*}Key", ""), int(item.findtext("{*}Size", "0")))
            token = page.findtext("{*}NextContinuationToken")
            if not token:
                return
            query["continuation-token"] = token

    def download(self, item: Object, path: Path) -> None:
        """Write the object to `path`, going on where an earlier download stopped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        have = path.stat().st_size if path.exists() else 0
        if have > item.size:
            path.unlink()
            have = 0
        if have < item.size or not path.exists():
            headers = {"range": f"bytes={have}-"} if have else {}
            with self._open(item.key, {}, headers) as response, path.open("ab") as file:
                if have and response.status != http.client.PARTIAL_CONTENT:
                    file.truncate(0)
                shutil.copyfileobj(response, file, CHUNK_BYTES)
        if path.stat().st_size != item.size:
            raise Interrupted(f"{item.key} broke off at {path.stat().st_size} of {item.size} bytes")

    def _open(
        self, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        path = f"/{quote(self.name)}/{quote(key)}" if key else f"/{quote(self.name)}"
        # Sorted and percent-encoded, as the signature wants it.
        text = urlencode(sorted(query.items()), quote_via=quote, safe="")
        url = f"{self.endpoint}{path}{'?' + text if text else ''}"
        sent = dict(headers)
        if self.credentials is not None:
            now = datetime.now(UTC)
            sent |= signed_headers(url, headers, self.credentials, self.region, now)
        request = urllib.request.Request(url, headers=sent)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        return response


def bucket_of(name: str, environment: Mapping[str, str]) -> Bucket:
    """Return the bucket as the environment describes where it is and who asks."""
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or f"https://s3.{region}.amazonaws.com"
    )
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    credentials = None
    if key and secret:
        credentials = Credentials(key, secret, environment.get("AWS_SESSION_TOKEN") or None)
    return Bucket(name, endpoint.rstrip("/"), region, credentials)


def download(location: Location, directory: Path, environment: Mapping[str, str]) -> None:
    """Download every object below the path into `directory`.

    Raises:
        Interrupted: Trying again may help.
        ModelUnavailable: It cannot, and the message says what would.
    """
    bucket = bucket_of(location.place, environment)
    try:
        _download(bucket, location, directory)
    except urllib.error.HTTPError as error:
        with error:
            raise _explained(location, bucket, error) from error
    except urllib.error.URLError as error:
        raise Interrupted(f"{bucket.endpoint} cannot be reached ({error.reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise Interrupted(f"{bucket.endpoint} broke off ({error!r})") from error


def _download(bucket: Bucket, location: Location, directory: Path) -> None:
    prefix = f"{location.path}/" if location.path else ""
    objects = [item for item in bucket.objects(prefix) if not item.key.endswith("/")]
    if not objects:
        raise ModelUnavailable(
            f"{_uri(location)}: nothing is stored below this path; check bucket and path"
        )
    check_room(directory, sum(item.size for item in objects))

    def one(item: Object) -> None:
        name = item.key.removeprefix(prefix)
        if ".." in name.split("/"):
            raise ModelUnavailable(f"{_uri(location)}: refusing the key {item.key}")
        bucket.download(item, directory / name)
        say(f"{_uri(location)}: {name} ({item.size / 2**20:.1f} MiB)")

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        for _ in pool.map(one, objects):
            pass


def _explained(location: Location, bucket: Bucket, error: urllib.error.HTTPError) -> Exception:
    """Return what an answer of the store means for the user."""
    uri = _uri(location)
    match error.code:
        case 403 | 401:
            who = "these credentials" if bucket.credentials else "anonymous requests"
            return ModelUnavailable(
                f"{uri}: {who} may not list and read it; set secretRef to a Secret with "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that may"
            )
        case 404:
            return ModelUnavailable(f"{uri}: no such bucket at {bucket.endpoint}; check the uri")
        case 301 | 307 | 400:
            return ModelUnavailable(
                f"{uri}: {bucket.endpoint} answers {error.code}; the bucket is probably in another "
                f"region than {bucket.region}: set AWS_REGION"
            )
        case _:
            return Interrupted(f"{bucket.endpoint} answered {error.code}")


def _uri(location: Location) -> str:
    return f"s3://{location.place}/{location.path}"

"""s3://, gs:// and az:// sources: the objects below a path of a bucket, by the client obstore.

The environment is the client's. Keys come from the source's secretRef (AWS_ACCESS_KEY_ID,
GOOGLE_SERVICE_ACCOUNT_KEY, AZURE_STORAGE_ACCOUNT_KEY and their like); roles from what a cluster
puts into the pods of a service account (IRSA and Pod Identity of EKS, Workload Identity of AKS and
GKE). Where there is neither, requests are anonymous, as for a public bucket.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import Location
from weir_engine.transfer import Interrupted, check_room, progress, say

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

    Store = S3Store | GCSStore | AzureStore

CONNECT_TIMEOUT_S: Final = 10
PART_TIMEOUT_S: Final = 120
"""Longest time for one part, or for one page of a listing."""
PART_BYTES: Final = 16 * 2**20
PARALLEL_FILES: Final = 8
RETRIES: Final = 2
"""Of one request, within `PART_TIMEOUT_S`; `transfer.retry` comes on top."""

PARTS: Final = ".parts"
"""Directory with what is not whole yet, named after key and version of each object."""

CREDENTIALS: Final = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_METADATA_ENDPOINT"),
        *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    ),
    "gs": (
        *("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BEARER_TOKEN", "GCE_METADATA_HOST"),
    ),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"),
        *("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN"),
        *("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"),
        *("AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT", "IDENTITY_ENDPOINT"),
    ),
}
"""Variables of which one tells the client by which credentials to sign."""

ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables with the address of a store that is not the cloud's own."""

SECRETS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT_KEY",
    "az": "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}


class Refused(ModelUnavailable):
    """The store does not let these requests read the bucket."""


@dataclass(frozen=True)
class Bucket:
    """A bucket and who asks."""

    uri: str
    """The uri of the source, for messages."""
    scheme: str
    store: Store
    prefix: str
    """What the keys of the source begin with, with a slash at its end; empty for all."""
    signed: bool


def download(location: Location, directory: Path, environment: Mapping[str, str]) -> Path:
    """Download every object below the path into `directory`.

    Returns:
        `directory`.

    Raises:
        Interrupted: Trying again may help.
        ModelUnavailable: It cannot, and the message says what would.
    """
    bucket = _bucket(location, environment, _signs(location.scheme, environment))
    try:
        objects = _objects(bucket)
    except Refused:
        if bucket.signed or bucket.scheme != "gs":
            raise
        # Workload Identity of GKE sets no variable: the node answers for the pod, or there is none.
        say(f"{bucket.uri}: not public; trying the pod's own identity")
        bucket = _bucket(location, environment, signed=True)
        objects = _objects(bucket)
    total = sum(one["size"] for one in objects)
    check_room(directory, total)
    with progress(bucket.uri, directory, total):
        asyncio.run(_all(bucket, objects, directory))
    _put(bucket, objects, directory)
    return directory


def _signs(scheme: str, environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in CREDENTIALS[scheme])


def _bucket(location: Location, environment: Mapping[str, str], signed: bool) -> Bucket:
    from obstore.store import AzureStore, GCSStore, S3Store

    uri = f"{location.scheme}://{location.place}/{location.path}"
    options: ClientConfig = {
        "timeout": timedelta(seconds=PART_TIMEOUT_S),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        # The address is what the user wrote, in the source's Secret or in engine.env.
        "allow_http": _plain(location.scheme, environment),
    }
    retries: RetryConfig = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=PART_TIMEOUT_S),
    }
    stores = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    if location.scheme == "az" and not environment.get("AZURE_STORAGE_ACCOUNT_NAME"):
        raise ModelUnavailable(
            f"{uri}: set AZURE_STORAGE_ACCOUNT_NAME in the source's Secret or in spec.engine.env"
        )
    store = stores[location.scheme](
        location.place, skip_signature=not signed, client_options=options, retry_config=retries
    )
    prefix = f"{location.path}/" if location.path else ""
    return Bucket(uri, location.scheme, store, prefix, signed)


def _plain(scheme: str, environment: Mapping[str, str]) -> bool:
    addresses = (environment.get(name, "") for name in ENDPOINTS[scheme])
    return any(address.startswith("http://") for address in addresses)


def _objects(bucket: Bucket) -> list[ObjectMeta]:
    """Return the objects of the source."""
    try:
        listed = bucket.store.list(bucket.prefix or None).collect()
    except Exception as error:
        raise _explained(bucket, error) from error
    paths = {one["path"] for one in listed}
    # Some tools store an empty object for each folder.
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    objects = [
        one
        for one in listed
        if one["path"].startswith(bucket.prefix) and one["path"] not in folders
    ]
    if not objects:
        raise ModelUnavailable(
            f"{bucket.uri}: nothing is stored below this path; check bucket and path"
        )
    for one in objects:
        if ".." in one["path"].split("/"):
            raise ModelUnavailable(f"{bucket.uri}: refusing the key {one['path']}")
    return objects


async def _all(bucket: Bucket, objects: Sequence[ObjectMeta], directory: Path) -> None:
    """Download what is missing of the objects, a few at a time."""
    places = asyncio.Semaphore(PARALLEL_FILES)
    (directory / PARTS).mkdir(exist_ok=True)

    async def one(item: ObjectMeta) -> None:
        async with places:
            await _one(bucket, item, _part(item, directory))
        name = item["path"].removeprefix(bucket.prefix)
        say(f"{bucket.uri}: {name} ({item['size'] / 2**20:.1f} MiB)")

    try:
        async with asyncio.TaskGroup() as tasks:
            for item in objects:
                tasks.create_task(one(item))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _one(bucket: Bucket, item: ObjectMeta, path: Path) -> None:
    """Write the object to `path`, going on where an earlier download stopped."""
    with path.open("ab") as file:
        while (have := file.tell()) < item["size"]:
            end = min(have + PART_BYTES, item["size"])
            try:
                answer = await bucket.store.get_async(
                    item["path"], options={"range": (have, end), "if_match": item["e_tag"]}
                )
                part = memoryview(await answer.bytes_async())
            except Exception as error:
                raise _explained(bucket, error) from error
            if len(part) != end - have:
                raise Interrupted(f"{item['path']} broke off at {have + len(part)} bytes")
            file.write(part)


def _part(item: ObjectMeta, directory: Path) -> Path:
    """Return where the object is until all are whole; another version of it goes elsewhere."""
    version = f"{item['path']} {item['e_tag']} {item['size']} {item['last_modified']}"
    return directory / PARTS / hashlib.sha256(version.encode()).hexdigest()


def _put(bucket: Bucket, objects: Sequence[ObjectMeta], directory: Path) -> None:
    for item in objects:
        path = directory / item["path"].removeprefix(bucket.prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(_part(item, directory), path)
    shutil.rmtree(directory / PARTS)


def _explained(bucket: Bucket, error: Exception) -> Exception:
    """Return what a failure of the store means for the user."""
    match _status(error):
        case 401 | 403:
            asks = "these credentials" if bucket.signed else "anonymous requests"
            return Refused(
                f"{bucket.uri}: {asks} may not list and read it; set secretRef to a Secret with "
                f"{SECRETS[bucket.scheme]} that may, or give the pods' service account a role"
            )
        case 404:
            return ModelUnavailable(f"{bucket.uri}: no such bucket; check the uri and the endpoint")
        case 412:
            return Interrupted("an object was replaced meanwhile")
        case 301 | 307 | 400 if bucket.scheme == "s3":
            return ModelUnavailable(
                f"{bucket.uri}: the store does not take the request; the bucket is probably in "
                "another region: set AWS_REGION"
            )
        case _:
            # What stands behind the first paragraph is the client's own; a query may hold a key.
            text = re.sub(r"\?[^\s\"')]+", "?...", str(error).partition("\n\n")[0].strip())
            return Interrupted(f"the store cannot be reached or is in trouble ({text})")


def _status(error: Exception) -> int | None:
    """Return the status that the store answered with."""
    from obstore.exceptions import PermissionDeniedError, PreconditionError, UnauthenticatedError

    match error:
        case PermissionDeniedError() | UnauthenticatedError():
            return 403
        case FileNotFoundError():
            return 404
        case PreconditionError():
            return 412
    if "incorrectly configured region" in str(error):
        return 301
    # Of a listing's failure the client tells the status in words only.
    found = re.search(r"status(?: code)?:? (\d{3})", str(error))
    return int(found[1]) if found else None

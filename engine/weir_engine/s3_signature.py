"""Signs a GET request the way S3 wants it: AWS Signature Version 4.

Pure, so that the example AWS publishes is its test.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import urlsplit

_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


class Credentials(NamedTuple):
    """Who asks."""

    key_id: str
    secret: str
    session_token: str | None = None

    def __repr__(self) -> str:
        """Name the key, never the secret: this may end up in a log."""
        return f"Credentials({self.key_id})"


def signed_headers(
    url: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """Return the headers that sign a GET of `url` sent with `headers` (names in lower case).

    Path and query must be percent-encoded already, the query sorted by name.
    """
    parts = urlsplit(url)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    added = {"x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": stamp}
    if credentials.session_token:
        added["x-amz-security-token"] = credentials.session_token
    covered = {"host": parts.netloc, **headers, **added}
    names = ";".join(sorted(covered))
    listing = "".join(f"{name}:{covered[name].strip()}\n" for name in sorted(covered))
    canonical = "\n".join(["GET", parts.path, parts.query, listing, names, _EMPTY_SHA256])
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, digest])
    key = f"AWS4{credentials.secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = _hmac(key, part)
    return added | {
        "authorization": f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope},"
        f"SignedHeaders={names},Signature={_hmac(key, to_sign).hex()}"
    }


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()

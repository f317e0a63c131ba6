"""A hub on the loopback that speaks as much of the Hugging Face hub's API as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from tests.unit.engine.local_http import Answer, Asked

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Answers the page of a repository, its tree and its files."""

    def __init__(
        self,
        repositories: Mapping[str, Mapping[str, bytes]],
        refused: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        """Serve `repositories`; answer paths that match a key of `refused` with its status."""
        self.repositories = repositories
        self.refused = refused or {}
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        path = asked.path.partition("?")[0]
        for pattern, (status, code) in self.refused.items():
            if re.search(pattern, path):
                return Answer(status, b"{}", {"x-error-code": code})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path)
        if found is not None:
            return self._page(found[1], found[2] or "")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if found is None or found[2] not in self.repositories.get(found[1], {}):
            return Answer(404, b"{}", {"x-error-code": "EntryNotFound"})
        return _file(self.repositories[found[1]][found[2]], asked)

    def files_sent(self) -> list[str]:
        """Return the names of the files whose contents were asked for, in order."""
        asked = (one.path.partition("?")[0] for one in self.asked if one.method == "GET")
        return [path.split("/", 5)[5] for path in asked if "/resolve/" in path]

    def _page(self, repository: str, part: str) -> Answer:
        files = self.repositories.get(repository)
        if files is None:
            return Answer(404, b"{}", {"x-error-code": "RepoNotFound"})
        document: object = {
            "id": repository,
            "sha": COMMIT,
            "tags": [],
            "siblings": [{"rfilename": name, "size": len(body)} for name, body in files.items()],
        }
        if part.startswith("/tree/"):
            document = [
                {"type": "file", "path": name, "size": len(body), "oid": _etag(body)}
                for name, body in files.items()
            ]
        return Answer(200, json.dumps(document).encode(), {"content-type": "application/json"})


def _file(body: bytes, asked: Asked) -> Answer:
    headers = {"x-repo-commit": COMMIT, "etag": f'"{_etag(body)}"', "accept-ranges": "bytes"}
    first = re.fullmatch(r"bytes=(\d+)-\d*", asked.headers.get("range", ""))
    if first is None:
        return Answer(200, body, headers)
    start = int(first[1])
    headers["content-range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return Answer(206, body[start:], headers)


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()

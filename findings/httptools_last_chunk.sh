#!/usr/bin/env bash
# httptools 0.9.0, seen on 2026-11-30.
# HttpResponseParser calls on_chunk_header and on_chunk_complete for the chunk of size 0 that ends a
# chunked body, too, between the last on_body and on_message_complete. Who counts chunks to count what
# an event stream brought counts one too many of each stream that ends well, and none too many of one
# that breaks off.
# Output: "chunks: 2, bodies: 1, whole: 1" for a body of one chunk. Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check httptools==0.9.0
got="$("$dir/venv/bin/python" - <<'PYTHON'
import httptools

class Seen:
    chunks = bodies = whole = 0
    def on_chunk_header(self): self.chunks += 1
    def on_body(self, body): self.bodies += 1
    def on_message_complete(self): self.whole += 1

seen = Seen()
answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
httptools.HttpResponseParser(seen).feed_data(answer)
print(f"chunks: {seen.chunks}, bodies: {seen.bodies}, whole: {seen.whole}")
PYTHON
)"
echo "$got"
[ "$got" = "chunks: 2, bodies: 1, whole: 1" ]

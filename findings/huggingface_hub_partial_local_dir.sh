#!/usr/bin/env bash
# huggingface_hub 2.4.0, Python 3.11, seen on 2026-11-29.
# snapshot_download(local_dir=...) returns a directory that holds one file of two, as if it were the
# snapshot, when the listing of the repository fails: the answer of the hub is logged as a warning.
# A directory of an interrupted download looks complete while the hub is in trouble.
# Output: "config.json". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
cat > "$dir/show.py" <<'PYTHON'
import http.server
import json
import os
import pathlib
import sys
import threading


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path.startswith("/api/models/org/model?") or "/revision/" in self.path
        body = json.dumps({"id": "org/model", "sha": "0" * 40, "siblings": []}).encode()
        self.send_response(200 if known else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
from huggingface_hub import snapshot_download  # noqa: E402

part = pathlib.Path(sys.argv[1], "part")
part.mkdir()
(part / "config.json").write_text("{}")
found = snapshot_download("org/model", local_dir=part, allow_patterns=["*.json", "*.safetensors"])
print(*sorted(path.name for path in pathlib.Path(found).iterdir() if path.is_file()))
PYTHON
got="$(HOME="$dir" "$dir/venv/bin/python" "$dir/show.py" "$dir" 2> /dev/null)"
echo "$got"
[ "$got" = "config.json" ]

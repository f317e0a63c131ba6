#!/usr/bin/env bash
# openai 3.57.0 for Python, seen on 2026-11-29.
# The Responses API documents two events for a stream that fails: `error` and `response.failed`. The
# loop over `responses.create(stream=True)` raises on neither: it yields the event and ends like one
# that succeeded. Only `{"error": {...}}` without a type, which that API does not document, raises.
# Output: "error: ended", "response.failed: ended", "untyped: APIError". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
cat > "$dir/show.py" <<'PYTHON'
import http.server
import json
import threading

import openai

MADE = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [],
        "parallel_tool_calls": False, "tool_choice": "auto", "tools": []}
FAILURE = {"code": "server_error", "message": "The model failed."}
LAST = {
    "error": {"type": "error", "param": None, "sequence_number": 1, **FAILURE},
    "response.failed": {"type": "response.failed", "sequence_number": 1,
                        "response": {**MADE, "status": "failed", "error": FAILURE}},
    "untyped": {"error": {"type": "server_error", "param": None, **FAILURE}},
}
FIRST = {"type": "response.created", "sequence_number": 0,
         "response": {**MADE, "status": "in_progress"}}


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in (FIRST, LAST[asked["input"]]):
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k",
                       max_retries=0)
for kind in LAST:
    try:
        for _ in client.responses.create(model="m", input=kind, stream=True):
            pass
        print(f"{kind}: ended")
    except openai.OpenAIError as error:
        print(f"{kind}: {type(error).__name__}")
PYTHON
got="$("$dir/venv/bin/python" "$dir/show.py")"
echo "$got"
[ "$got" = $'error: ended\nresponse.failed: ended\nuntyped: APIError' ]

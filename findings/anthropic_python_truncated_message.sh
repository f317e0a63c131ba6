#!/usr/bin/env bash
# anthropic 2.14.0 for Python, seen on 2026-11-29.
# `messages.stream(...).get_final_message()` exists to assemble a whole message. A stream that ends
# after its first text, without message_delta and message_stop, is returned as a message all the same:
# the text so far, stop_reason None, no exception.
# Output: "Half a None". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check anthropic==2.14.0
cat > "$dir/show.py" <<'PYTHON'
import http.server
import json
import threading

import anthropic

EVENTS = [
    {"type": "message_start", "message": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 0}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Half a"}},
]


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in EVENTS:
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.server_port}", api_key="k")
asked = [{"role": "user", "content": "Say something."}]
with client.messages.stream(model="m", max_tokens=9, messages=asked) as stream:
    message = stream.get_final_message()
print(message.content[0].text, message.stop_reason)
PYTHON
got="$("$dir/venv/bin/python" "$dir/show.py")"
echo "$got"
[ "$got" = "Half a None" ]

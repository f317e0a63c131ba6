#!/usr/bin/env bash
# uvicorn 0.54.0 with httptools 0.9.0 and with h11 0.16.0, Python 3.11, seen on 2026-11-29.
# Java's HttpClient asks for HTTP/2 with each request over plain text: `Connection: Upgrade,
# HTTP2-Settings`, `Upgrade: h2c`. RFC 9110 lets a server ignore that and answer the request as it
# is. uvicorn says that it does ("Unsupported upgrade request"), and with h11 the application gets
# the body. With httptools, which uvicorn prefers where it is installed, the application gets an
# empty body: the parser takes what follows the head for bytes of the other protocol. vLLM serves
# with httptools, so such a client's chat is refused there as one without a body.
# Output: "httptools 0", "h11 2". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0
cat > "$dir/show.py" <<'PYTHON'
import asyncio
import sys

import uvicorn


async def app(scope, receive, send):
    body = b""
    message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    answer = str(len(body)).encode()
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def main(http):
    config = uvicorn.Config(app, port=0, http=http, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Length: 2\r\n\r\n{}"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 "), head
    print(http, (await asyncio.wait_for(reader.readexactly(1), 10)).decode())
    writer.close()
    server.should_exit = True
    await serving


asyncio.run(main(sys.argv[1]))
PYTHON
got="$(for http in httptools h11; do "$dir/venv/bin/python" "$dir/show.py" "$http"; done)"
echo "$got"
[ "$got" = $'httptools 0\nh11 2' ]

#!/usr/bin/env bash
# uvloop 0.23.0, Python 3.11, seen on 2026-11-29.
# A task that awaits create_unix_connection and is cancelled after the protocol's connection_made
# closes the connection. With asyncio's own loop the protocol hears of it by connection_lost. With
# uvloop it does not: a protocol that keeps its transport until connection_lost keeps it for ever,
# and the two are a reference cycle that only the garbage collector ends.
# Output: "asyncio made lost", "uvloop made". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
cat > "$dir/show.py" <<'PYTHON'
import asyncio
import sys

import uvloop


class Told(asyncio.Protocol):
    def __init__(self):
        self.heard = []

    def connection_made(self, transport):
        self.heard.append("made")
        self.connecting.cancel()

    def connection_lost(self, exc):
        self.heard.append("lost")


async def main(path):
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(asyncio.Protocol, path)
    told = Told()
    told.connecting = loop.create_task(loop.create_unix_connection(lambda: told, path))
    try:
        await told.connecting
    except asyncio.CancelledError:
        pass
    await asyncio.sleep(0.5)
    server.close()
    return told.heard


for name, factory in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=factory) as runner:
        print(name, *runner.run(main(f"{sys.argv[1]}/{name}")))
PYTHON
got="$("$dir/venv/bin/python" "$dir/show.py" "$dir")"
echo "$got"
[ "$got" = $'asyncio made lost\nuvloop made' ]

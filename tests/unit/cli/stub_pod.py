"""Stand-ins for a pod's programs, a few milliseconds to start; each writes down what it did.

    python stub_pod.py ROLE FOLDER [ADDRESS]

ROLE is fetch, sidecar, engine or drain. The engine is up while FOLDER/engine-up exists, and the
sidecar's /readyz says so. `fail-ROLE` in FOLDER makes that role exit with 7 at once, `refuse-ROLE`
with 2; while FOLDER/hang is there, the sidecar accepts connections and answers nothing.
"""

from __future__ import annotations

import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROLE, FOLDER = sys.argv[1], Path(sys.argv[2])
UP = FOLDER / "engine-up"


def note(event: str) -> None:
    with (FOLDER / "events").open("a") as events:
        events.write(event + "\n")


class Admin(BaseHTTPRequestHandler):
    """The sidecar's admin port."""

    def do_GET(self) -> None:
        if (FOLDER / "hang").exists():
            threading.Event().wait()
        fine = self.path == "/healthz" or UP.exists()
        self.send_response(200 if fine else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def wait_for_sigterm() -> None:
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    note(f"{ROLE} up")
    done.wait()


def main() -> None:
    if (FOLDER / f"fail-{ROLE}").exists():
        print(f"{ROLE} cannot start: no such thing")  # noqa: T201
        sys.exit(7)
    if (FOLDER / f"refuse-{ROLE}").exists():
        print("source.uri: no such model")  # noqa: T201
        sys.exit(2)
    if ROLE == "sidecar":
        server = ThreadingHTTPServer((sys.argv[3], 8001), Admin)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wait_for_sigterm()
    elif ROLE == "engine":
        UP.touch()
        wait_for_sigterm()
        UP.unlink()
    note(f"{ROLE} done")


if __name__ == "__main__":
    main()

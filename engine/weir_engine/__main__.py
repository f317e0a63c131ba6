"""The engine's commands; each imports only what it needs, because `drain` may not be late.

Exit codes: 0 done, 1 failed and may work when tried again, 2 the configuration must be changed.
"""

from __future__ import annotations

import os
import sys

from weir_core.errors import InvalidSpec, MachineUnfit, WeirError
from weir_engine.first_process import heed_sigterm

USAGE = """\
usage: weir-engine {serve,fetch,adapters,drain,alive}

  serve     run vLLM, listening on the run directory's socket
  fetch     bring the weights into the model directory, if they are not there
  adapters  bring the adapters that the policies name into the model directory, until it is ended
  drain     have the sidecar finish all streams, and wait for it (the preStop hook)
  alive     fail if the sidecar says that the engine makes no progress (the liveness probe)

Configuration comes from the environment: WEIR_ENGINE_CONFIG, WEIR_RUN_DIR, WEIR_MODEL_DIR.
"""


def main() -> int:
    """Run one command."""
    heed_sigterm()
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        return _run(command)
    except (InvalidSpec, MachineUnfit) as error:
        return _fail(error, 2)
    except WeirError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130


def _run(command: str) -> int:
    match command:
        case "serve":
            from weir_engine.serve import serve

            serve(os.environ)
        case "fetch":
            from weir_engine.fetch import fetch
            from weir_engine.group import patiently

            patiently(fetch, os.environ)
        case "adapters":
            from weir_engine.adapters import keep_fetching

            keep_fetching(os.environ)
        case "drain":
            from weir_engine.drain import drain

            drain(os.environ)
        case "alive":
            from weir_engine.alive import is_alive

            return 0 if is_alive(os.environ) else 1
        case "--help" | "-h" | "help":
            sys.stdout.write(USAGE)
        case _:
            sys.stderr.write(USAGE)
            return 2
    return 0


def _fail(error: WeirError, code: int) -> int:
    sys.stderr.write(f"weir-engine: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

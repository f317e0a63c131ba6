#!/usr/bin/env bash
# mypyc of mypy 2.4.1, Python 3.11, seen on 2026-11-29.
# `raise New() from error`, compiled, sets the new exception's __context__ and leaves its __cause__
# None. Code that looks at __cause__ to find out why something failed sees no reason once the module
# that raises is compiled, although its own module is not.
# Output: "interpreted OSError OSError", "compiled None OSError" (cause, context). Fails if that
# changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check mypy==2.4.1 setuptools==83.0.0
cat > "$dir/raises.py" <<'PYTHON'
def fail() -> None:
    try:
        raise OSError("why")
    except OSError as error:
        raise ValueError("what") from error
PYTHON
cat > "$dir/show.py" <<'PYTHON'
import sys

import raises

try:
    raises.fail()
except ValueError as error:
    how = "interpreted" if raises.__file__.endswith(".py") else "compiled"
    print(how, *(type(e).__name__ if e else e for e in (error.__cause__, error.__context__)))
PYTHON
cd "$dir"
got="$(venv/bin/python show.py)"
venv/bin/mypyc raises.py > /dev/null 2>&1
got="$got"$'\n'"$(venv/bin/python show.py)"
echo "$got"
[ "$got" = $'interpreted OSError OSError\ncompiled None OSError' ]

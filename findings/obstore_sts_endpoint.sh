#!/usr/bin/env bash
# obstore 0.12.1, Python 3.11, seen on 2026-11-29.
# S3Config documents `sts_endpoint` and the variable AWS_STS_ENDPOINT for the service that exchanges
# a web identity token (IRSA). The key is refused, and the variable is ignored.
# Output: "Configuration key: 'sts_endpoint' is not valid for store 'S3'.". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
grep -q "sts_endpoint: str" "$dir"/venv/lib/python3*/site-packages/obstore/_store/_aws.pyi
got="$("$dir/venv/bin/python" - <<'PYTHON'
from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import S3Store

try:
    S3Store("bucket", sts_endpoint="https://sts.example.com")
except UnknownConfigurationKeyError as error:
    print(str(error).splitlines()[0])
PYTHON
)"
echo "$got"
[ "$got" = "Configuration key: 'sts_endpoint' is not valid for store 'S3'." ]

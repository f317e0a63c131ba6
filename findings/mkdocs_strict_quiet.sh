#!/usr/bin/env bash
# mkdocs 1.6.1, seen on 2026-11-30.
# `mkdocs build --strict` fails on a link that leads nowhere. With --quiet beside it, it succeeds:
# --quiet raises the level of mkdocs' logger, and --strict counts the warnings that the logger lets
# pass. A check of links in CI that wants short logs then checks nothing.
# Output: "strict: fails", "strict and quiet: succeeds". Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check mkdocs==1.6.1
mkdir "$dir/docs"
echo 'site_name: x' > "$dir/mkdocs.yml"
echo '[nowhere](none.md)' > "$dir/docs/index.md"
outcome() {
  if "$dir/venv/bin/mkdocs" build --config-file "$dir/mkdocs.yml" "$@" > "$dir/log" 2>&1
  then echo succeeds; else echo fails; fi
}
got="strict: $(outcome --strict)
strict and quiet: $(outcome --strict --quiet)"
echo "$got"
[ "$got" = $'strict: fails\nstrict and quiet: succeeds' ]

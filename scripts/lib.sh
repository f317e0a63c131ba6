# Shared by the scripts beside it: where things are, and how they speak.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export WEIR_CACHE="${WEIR_CACHE:-$HOME/.cache/weir}"

say() { printf '\033[1mweir:\033[0m %s\n' "$*" >&2; }
fail() { printf '\033[1;31mweir:\033[0m %s\n' "$*" >&2; exit 1; }

# uv from PATH, or from our own cache.
uv() {
  if [ -x "$WEIR_CACHE/uv/bin/uv" ]; then "$WEIR_CACHE/uv/bin/uv" "$@"; else command uv "$@"; fi
}

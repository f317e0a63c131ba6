#!/usr/bin/env bash
# containerd 2.3.7 and the containerd of Debian 12 (1.6.20), seen on 2026-11-30. Needs root, Go 1.26.8
# and apt-get; compiling takes some minutes.
# containerd starts the first containerd-shim-runc-v2 of its PATH, and the one beside itself only
# where there is none, though the two speak different versions of a protocol. A containerd 2 that is
# unpacked beside the distribution's starts no container with it, and the error names no file and no
# version: "start failed: io.containerd.runc.v2: type with url x: not found".
# Output: the end of that error. Fails if that changes.
set -euo pipefail
dir="$(mktemp -d)"
trap 'kill "${daemon:-}" 2> /dev/null || true; wait; rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download containerd > /dev/null 2>&1 && dpkg -x containerd_*.deb debian)
for name in containerd containerd-shim-runc-v2; do
  CGO_ENABLED=0 GOFLAGS=-modcacherw GOBIN="$dir/new" \
    go install -trimpath -ldflags "-s -w" "github.com/containerd/containerd/v2/cmd/$name@v2.3.7"
done
cat > "$dir/config.toml" << TOML
version = 3
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[grpc]
  address = "$dir/socket"
TOML
mkdir "$dir/rootfs"
PATH="$dir/debian/usr/bin:$PATH" "$dir/new/containerd" --config "$dir/config.toml" &> "$dir/log" &
daemon=$!
ctr=("$dir/debian/usr/bin/ctr" --address "$dir/socket")
for _ in $(seq 100); do "${ctr[@]}" version &> /dev/null && break; sleep 0.1; done
got="$("${ctr[@]}" run --rootfs "$dir/rootfs" x /x 2>&1 || true)"
echo "${got##*start shim: }"
[[ "$got" == *"start failed: io.containerd.runc.v2: type with url x: not found"* ]]

#!/bin/bash
# Runs the conformance specs: serves the test images, and talks to a runtime's socket.
#
#   conformance.sh SOCKET [go test's arguments]        a runtime that can reach the registry
#   conformance.sh containerd [go test's arguments]    Debian's containerd, started for this run
#
# With a SOCKET, REGISTRY_DIR must be the folder of a running `test-images serve --push` whose
# registries.conf the runtime uses; PRIVATE_DIR may be that of one with `--private`.
# TEST_IMAGES is the test-images program (default: the one in target/release or target/debug).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
socket=${1:?"a socket, or the word containerd"}
shift
extra=()
if [ "$socket" = containerd ]; then
	target=${CARGO_TARGET_DIR:-$here/../../target}
	for program in "${TEST_IMAGES-}" "$target/release/test-images" "$target/debug/test-images"; do
		if [ -x "$program" ]; then break; fi
	done
	dir=$(mktemp -d)
	trap '"$here/containerd.sh" stop "$dir/containerd"; "$program" stop --dir "$dir/registry"; "$program" stop --dir "$dir/private"; rm -rf "$dir"' EXIT
	REGISTRY_DIR=$dir/registry PRIVATE_DIR=$dir/private
	"$program" serve --dir "$REGISTRY_DIR" --push >/dev/null
	"$program" serve --dir "$PRIVATE_DIR" --private --push test/single-12:1 >/dev/null
	"$here/containerd.sh" start "$dir/containerd" "$(cat "$REGISTRY_DIR/address")"
	socket=$dir/containerd/containerd.sock
	extra=(-runtime containerd)
fi
export CRI_ENDPOINT=$socket CRI_REGISTRY
CRI_REGISTRY=$(cat "${REGISTRY_DIR:?"the registry's folder"}/address")
if [ -e "${PRIVATE_DIR-}/address" ]; then
	export CRI_PRIVATE_REGISTRY
	CRI_PRIVATE_REGISTRY=$(cat "$PRIVATE_DIR/address")
fi
cd "$here/../conformance"
go test -count=1 -timeout 20m -parallel 4 . "$@" ${extra[@]+"${extra[@]}"}

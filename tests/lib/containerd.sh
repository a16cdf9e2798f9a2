#!/bin/bash
# Starts and ends Debian's containerd as a CRI runtime with everything below one folder, to test
# the conformance specs against another implementation.
#
#   containerd.sh start DIR REGISTRY     REGISTRY is host:port, filled by test-images
#   containerd.sh stop DIR
#
# The socket is DIR/containerd.sock. Pods get addresses of 10.99.77.0/24 from a bridge of their own.
set -eu
# Debian's runc, whatever else may be installed.
PATH=/usr/sbin:/usr/bin:/sbin:/bin

bridge=criod-conf0

start() {
	local dir=$1 registry=$2 host
	mkdir -p "$dir/cni"
	dir=$(realpath "$dir")
	for host in docker.io registry.k8s.io gcr.io quay.io; do
		mkdir -p "$dir/certs/$host"
		cat >"$dir/certs/$host/hosts.toml" <<-EOF
			server = "http://$registry"
			[host."http://$registry"]
			capabilities = ["pull", "resolve"]
		EOF
	done
	cat >"$dir/cni/10-test.conflist" <<-EOF
		{"cniVersion": "0.4.0", "name": "test", "plugins": [
		 {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipam": {"type": "host-local",
		  "dataDir": "$dir/ipam", "ranges": [[{"subnet": "10.99.77.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		 {"type": "portmap", "capabilities": {"portMappings": true}}]}
	EOF
	cat >"$dir/config.toml" <<-EOF
		version = 2
		root = "$dir/root"
		state = "$dir/state"
		[grpc]
		address = "$dir/containerd.sock"
		[plugins."io.containerd.grpc.v1.cri"]
		sandbox_image = "$registry/test/pause:1"
		disable_apparmor = true
		restrict_oom_score_adj = true
		[plugins."io.containerd.grpc.v1.cri".cni]
		bin_dir = "/usr/lib/cni"
		conf_dir = "$dir/cni"
		[plugins."io.containerd.grpc.v1.cri".registry]
		config_path = "$dir/certs"
	EOF
	setsid containerd -c "$dir/config.toml" >"$dir/log" 2>&1 </dev/null &
	echo $! >"$dir/pid"
	for _ in $(seq 100); do
		if ctr -a "$dir/containerd.sock" version >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	tail "$dir/log" >&2
	return 1
}

stop() {
	local dir=$1 pid
	[ -e "$dir/pid" ] || return 0
	dir=$(realpath "$dir")
	pid=$(cat "$dir/pid")
	# Only the process that was started with this folder.
	if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$dir/config.toml"; then
		kill "$pid"
		for _ in $(seq 100); do [ -d "/proc/$pid" ] && sleep 0.1 || break; done
	fi
	rm "$dir/pid"
	grep -F " $dir/" /proc/mounts | cut -d' ' -f2 | sort -r | while read -r mount; do umount -l "$mount"; done
	ip link delete "$bridge" 2>/dev/null || true
}

case ${1-} in
start) start "$2" "$3" ;;
stop) stop "$2" ;;
*) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac

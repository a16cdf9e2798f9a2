# Shared by the scripts below tests/: a whole criod below one temporary folder, and its end.
#
#   source tests/setup/lib.sh
#   node_begin NAME           makes $NODE (the folder); it goes with all below it when the script ends
#   node_registry [IMAGE…]    test images, served on loopback; sets $REGISTRY
#   node_criod [FLAG…]        starts criod and waits until it is ready; sets $CRIOD_PID, $ENDPOINT
#   node_restart              writes $NODE/restart: `restart kill` kills that criod, `restart start`
#                             starts it again, `restart start next` another copy of the program
#   node_end                  called on exit: pods, processes, mounts, cgroups and files go
#
# With $NODE_RUNC the handler "runc" is that program instead of the one in PATH.
# $CRIOD_BIN is the folder with the programs. Call it in a network namespace of your own, so that
# bridges and rules go with that.

die() {
    printf '%s: %s\n' "${NODE_NAME:-${0##*/}}" "$*" >&2
    exit 1
}

# The root of a new network namespace with only loopback in it.
in_own_network() {
    [ "${CRIOD_OWN_NETWORK:-}" = "$$" ] && {
        ip link set lo up
        return
    }
    # exec keeps the process id, by which the new image knows where it is.
    CRIOD_OWN_NETWORK=$$ exec unshare --net -- "$0" "$@"
}

node_begin() {
    NODE_NAME=$1
    [ "$(id -u)" = 0 ] || die "must be root"
    [ -x "${CRIOD_BIN:-}/criod" ] || die "CRIOD_BIN (${CRIOD_BIN:-not set}) holds no criod: run make build"
    NODE=$(mktemp -d "${TMPDIR:-/tmp}/criod-$1.XXXXXX") || die "no temporary folder"
    # The root of a pod with a user namespace of its own passes through it.
    chmod 711 "$NODE"
    NODE_CGROUPS=$(node_cgroups)
    CRIOD_PID=
    trap node_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mkdir -p "$NODE/cni" "$NODE/pods"
    # Any private network: nobody but pods of this network namespace sees it.
    cat >"$NODE/cni/10-bridge.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "bridge",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "$NODE/cni-leases",
        "ranges": [[{ "subnet": "10.85.0.0/16" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
JSON
}

node_registry() {
    REGISTRY=$("$CRIOD_BIN/test-images" serve --dir "$NODE/registry" --push "$@") ||
        die "the registry did not start"
}

node_criod() {
    ENDPOINT=unix://$NODE/criod.sock
    export CONTAINER_RUNTIME_ENDPOINT=$ENDPOINT
    CRIOD_FLAGS=(--config "" --config-dir ""
        --root "$NODE/lib" --runroot "$NODE/run" --listen "$NODE/criod.sock"
        --log-dir "$NODE/pods" --cgroup-manager cgroupfs --default-runtime "${NODE_RUNTIME:-runc}"
        --cni-config-dir "$NODE/cni" --cni-plugin-dir /usr/lib/cni
        --registries-conf "$NODE/registry/registries.conf" --registries-conf-dir "$NODE/registries.d"
        ${NODE_RUNC:+--runtimes "runc:$NODE_RUNC:"} "$@")
    node_start "$CRIOD_BIN" || die "criod does not answer"
}

# Starts the criod of a folder with $CRIOD_FLAGS, and waits until it answers.
node_start() {
    "$1/criod" "${CRIOD_FLAGS[@]}" >>"$NODE/criod.log" 2>&1 </dev/null &
    CRIOD_PID=$!
    echo $CRIOD_PID >"$NODE/criod.pid"
    local i
    for i in $(seq 200); do
        "$CRIOD_BIN/criod" status --timeout 2s >/dev/null 2>&1 && return
        kill -0 $CRIOD_PID 2>/dev/null || break
        sleep 0.05
    done
    return 1
}

# Kills the criod that was started last, and waits until it is dead.
node_kill() {
    local pid i
    pid=$(cat "$NODE/criod.pid")
    grep -qaF "$NODE/" "/proc/$pid/cmdline" || return
    kill -9 "$pid"
    for i in $(seq 1000); do
        node_dead "$pid" && return
        sleep 0.01
    done
    return 1
}

# Has a successor take over from the criod that was started last, and waits until that answers.
node_reload() {
    local pid i
    pid=$(cat "$NODE/criod.pid")
    grep -qaF "$NODE/" "/proc/$pid/cmdline" || return
    kill -HUP "$pid"
    for i in $(seq 1000); do
        CRIOD_PID=$(sed -n 's/.*the successor serves pid=\([0-9]*\).*/\1/p' "$NODE/criod.log" | tail -n 1)
        if [ -n "$CRIOD_PID" ] && [ "$CRIOD_PID" != "$pid" ] && [ -d "/proc/$CRIOD_PID" ]; then
            echo "$CRIOD_PID" >"$NODE/criod.pid"
            "$CRIOD_BIN/criod" status --timeout 10s >/dev/null
            return
        fi
        sleep 0.01
    done
    return 1
}

# Whether a process is dead. Whoever is its parent may be slow to bury it; and while any of its threads
# still closes what it had open, the first of them a zombie long since, its locks and ports are taken.
node_dead() {
    ! grep -qs '^State:.[^ZX]' "/proc/$1/task/"*/status
}

node_restart() {
    mkdir "$NODE/next"
    cp "$CRIOD_BIN"/criod* "$NODE/next"
    {
        echo '#!/usr/bin/env bash'
        declare -p NODE CRIOD_BIN CRIOD_FLAGS
        declare -f node_start node_kill node_reload node_dead
        # shellcheck disable=SC2016
        echo 'case ${1-} in
            kill) node_kill ;;
            reload) node_reload ;;
            start) [ "${2-}" != next ] || CRIOD_BIN=$NODE/next; node_start "$CRIOD_BIN" ;;
            *) exit 2 ;;
        esac'
    } >"$NODE/restart"
    chmod 755 "$NODE/restart"
    # Its death is no news.
    disown "$CRIOD_PID"
}

# Processes of this node with one of these programs (criod, criod-monitor, …): their ids.
node_processes() {
    local exe program pid
    : "${NODE:?}"
    { find /proc/[0-9]*/exe -maxdepth 0 -printf '%p %l\n' 2>/dev/null || true; } | while read -r exe program _; do
        [[ " $* " = *" ${program##*/} "* ]] || continue
        pid=${exe#/proc/}
        pid=${pid%/exe}
        # Its folder stands in its arguments, its working folder, or a file that it has open.
        if grep -qaF "$NODE/" "/proc/$pid/cmdline" ||
            readlink "/proc/$pid/cwd" "/proc/$pid/fd/"* | grep -qF "$NODE/"; then
            echo "$pid"
        fi 2>/dev/null
    done
}

# Containers of this node that still run: processes elsewhere whose root file system lies in it.
node_containers() {
    local here ns place pid
    : "${NODE:?}"
    here=$(readlink /proc/self/ns/mnt) || return
    { find /proc/[0-9]*/ns/mnt -maxdepth 0 -printf '%p %l\n' 2>/dev/null || true; } | while read -r ns place; do
        # A name that cannot be read says nothing: never guess whom to kill.
        [[ $place == mnt:* && $place != "$here" ]] || continue
        pid=${ns#/proc/}
        pid=${pid%%/*}
        # Its root, and no other mount: whoever made a namespace of his own meanwhile has all of ours.
        if awk '$5 == "/"' "/proc/$pid/mountinfo" 2>/dev/null | grep -qF "$NODE/"; then echo "$pid"; fi
    done
}

node_mounts() {
    # Deepest first.
    awk -v dir="${NODE:?}/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r
}

# cgroups that a criod can have made, whoever's it is.
node_cgroups() {
    find /sys/fs/cgroup -type d \( -name 'criod*' -o -name 'crio-*' -o -name 'kubepods*' -o -path '*/crio/pod*' \) 2>/dev/null | sort
}

node_end() {
    local status=$? pid dir i
    trap - EXIT INT TERM HUP
    [ -d "${NODE:-}" ] || exit $status
    set +eu
    if [ $status != 0 ] && [ -s "$NODE/criod.log" ]; then
        echo "--- what criod's log has of warnings and worse, the end:" >&2
        grep -v ' INFO ' "$NODE/criod.log" | tail -n "${NODE_SHOW_LOG:-20}" >&2
    fi
    # The one that `restart` started last, if that still runs.
    pid=$(cat "$NODE/criod.pid" 2>/dev/null)
    if [ -n "$pid" ] && node_processes criod | grep -qx "$pid"; then CRIOD_PID=$pid; fi
    if [ -n "$CRIOD_PID" ] && kill -0 "$CRIOD_PID" 2>/dev/null; then
        "$CRIOD_BIN/criod" pods -q 2>/dev/null |
            xargs -r timeout 60 "$CRIOD_BIN/criod" rm -f >/dev/null 2>&1
        kill "$CRIOD_PID" 2>/dev/null
        for i in $(seq 50); do
            kill -0 "$CRIOD_PID" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$CRIOD_PID" 2>/dev/null
        wait "$CRIOD_PID" 2>/dev/null
    fi
    [ -f "$NODE/registry/registry.pid" ] && "$CRIOD_BIN/test-images" stop --dir "$NODE/registry"
    [ -f "$NODE/private/registry.pid" ] && "$CRIOD_BIN/test-images" stop --dir "$NODE/private"
    # What is left of it after an orderly end: the keeper. After another one: anything.
    for i in $(seq 50); do
        pid="$(node_processes criod criod-keeper criod-monitor criod-pause criod-stream) $(node_containers)"
        [ -n "${pid// /}" ] || break
        # shellcheck disable=SC2086
        kill -9 $pid 2>/dev/null
        sleep 0.05
    done
    node_mounts | while read -r dir; do umount -l "$dir"; done
    # Deepest first; one that is in use says so by staying.
    comm -13 <(printf '%s\n' "$NODE_CGROUPS") <(node_cgroups) | sort -r | while read -r dir; do
        rmdir "$dir" 2>/dev/null
    done
    rm -rf --one-file-system "$NODE"
    exit $status
}

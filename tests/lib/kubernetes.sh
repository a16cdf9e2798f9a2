#!/usr/bin/env bash
# A kubelet, and what it joins, beside the criod of tests/setup/lib.sh; sourced after it.
#
#   kube_begin            the node's address and cgroups, the kubelet's configuration, and
#                         $KUBE_KUBELET: `kubelet start [FLAG…]` starts it with these flags (or those
#                         of before) and waits until it answers, `kubelet stop` ends it, `kubelet kill`
#                         kills it
#   kube_control_plane    starts etcd and an API server, and waits until that answers
#   kube_end              called on exit: all of these go, then node_end
#
# $KUBE_TOOLS is the folder with the programs; logs are kept in $CRIOD_KEEP_LOGS, where that is set.

# An address of the node that no pod has; the kubelet refuses a loopback one.
KUBE_ADDRESS=10.84.0.1
KUBE_KUBECTL=$KUBE_TOOLS/kubectl

# Makes a cgroup in each hierarchy, below which the kubelet puts its own.
kube_cgroups() {
    KUBE_CGROUP=/criod-kubernetes-${NODE##*.}
    local kind mount options each
    while read -r _ mount kind options _; do
        case $kind in cgroup | cgroup2) ;; *) continue ;; esac
        if [ $kind = cgroup2 ] && [ -s "$mount/cgroup.controllers" ]; then
            for each in $(cat "$mount/cgroup.controllers"); do
                echo "+$each" >"$mount/cgroup.subtree_control"
            done
        fi
        mkdir "$mount$KUBE_CGROUP"
        if [[ ,$options, = *,cpuset,* ]]; then
            for each in cpuset.cpus cpuset.mems; do
                cat "$mount/$each" >"$mount$KUBE_CGROUP/$each"
            done
        fi
    done </proc/mounts
}

# The trees of these cgroups go, deepest first.
kube_cgroups_end() {
    local tree i
    [ -n "${KUBE_CGROUP:-}" ] || return
    for i in $(seq 50); do
        tree=$(find /sys/fs/cgroup -type d -path "*$KUBE_CGROUP*" 2>/dev/null | sort -r)
        [ -n "$tree" ] || return
        xargs rmdir <<<"$tree" 2>/dev/null
        sleep 0.1
    done
}

kube_begin() {
    kube_cgroups
    ip link add node0 type bridge
    ip address add "$KUBE_ADDRESS/32" dev node0
    ip link set node0 up
    # The kubelet has some folders with fixed names; what it makes there goes with the mount namespace.
    local each
    for each in lib log; do
        mkdir -p "$NODE/var/$each" "$NODE/var/$each.work"
        mount -t overlay -o "lowerdir=/var/$each,upperdir=$NODE/var/$each,workdir=$NODE/var/$each.work" \
            criod-var "/var/$each"
    done
    # It sets values of the kernel, too, and is shown files as if these were what it wants. They lie in
    # another file system than the node's: that one it knows by any of the places where it is mounted.
    mkdir -p "$NODE/kernel" "$NODE/manifests" "$NODE/kubelet-root" "$NODE/plugins"
    mount -t tmpfs -o mode=755 criod-kernel "$NODE/kernel"
    printf '%s\n' 1 >"$NODE/kernel/vm.overcommit_memory"
    printf '%s\n' 0 >"$NODE/kernel/vm.panic_on_oom"
    printf '%s\n' 10 >"$NODE/kernel/kernel.panic"
    printf '%s\n' 1 >"$NODE/kernel/kernel.panic_on_oops"
    printf '%s\n' 1000000 >"$NODE/kernel/kernel.keys.root_maxkeys"
    printf '%s\n' 25000000 >"$NODE/kernel/kernel.keys.root_maxbytes"
    cat >"$NODE/kubelet-begin" <<'SH'
#!/bin/sh
# In the kubelet's own mount namespace.
set -e
mount --make-private /proc
for each in "$NODE"/kernel/*; do
    mount --bind "$each" "/proc/sys/$(echo "${each##*/}" | tr . /)"
done
exec "$@"
SH
    echo 'nameserver 10.84.0.1' >"$NODE/resolv.conf"
    # Images that nothing uses are removed whenever the kubelet starts.
    cat >"$NODE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$NODE/criod.sock
staticPodPath: $NODE/manifests
podLogsDir: $NODE/pods
volumePluginDir: $NODE/plugins
resolvConf: $NODE/resolv.conf
address: $KUBE_ADDRESS
readOnlyPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: $KUBE_CGROUP
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
makeIPTablesUtilChains: false
syncFrequency: 5s
fileCheckFrequency: 1s
nodeStatusUpdateFrequency: 2s
imageGCHighThresholdPercent: 1
imageGCLowThresholdPercent: 0
containerLogMaxSize: 256Ki
containerLogMaxFiles: 1000
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
volumeStatsAggPeriod: 1s
YAML
    chmod 755 "$NODE/kubelet-begin"
    {
        echo '#!/usr/bin/env bash'
        declare -p NODE KUBE_TOOLS KUBE_ADDRESS
        declare -f kube_kill kube_kubelet_start node_dead
        # shellcheck disable=SC2016
        echo 'case ${1-} in
            start) shift; kube_kubelet_start "$@" ;;
            stop) kube_kill kubelet TERM ;;
            kill) kube_kill kubelet KILL ;;
            *) exit 2 ;;
        esac'
    } >"$NODE/kubelet"
    chmod 755 "$NODE/kubelet"
    KUBE_KUBELET=$NODE/kubelet
}

kube_kubelet_start() {
    [ $# = 0 ] || printf '%s\n' "$@" >"$NODE/kubelet.flags"
    local flags=() i
    [ ! -e "$NODE/kubelet.flags" ] || mapfile -t flags <"$NODE/kubelet.flags"
    NODE=$NODE setsid unshare --mount --propagation shared -- "$NODE/kubelet-begin" "$KUBE_TOOLS/kubelet" \
        --config "$NODE/kubelet.yaml" --root-dir "$NODE/kubelet-root" --cert-dir "$NODE/kubelet-certs" \
        --hostname-override node1 --node-ip "$KUBE_ADDRESS" \
        --minimum-image-ttl-duration 0 "${flags[@]}" \
        >>"$NODE/kubelet.log" 2>&1 </dev/null &
    echo $! >"$NODE/kubelet.pid"
    for i in $(seq 600); do
        "$KUBE_TOOLS/kubectl" --server "https://$KUBE_ADDRESS:10250" --token any --insecure-skip-tls-verify \
            --request-timeout 5s get --raw /healthz >/dev/null 2>&1 && return
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    echo "the kubelet does not answer; its log ends with:" >&2
    tail -n 20 "$NODE/kubelet.log" >&2
    return 1
}

# Sends a program that was started here a signal, and waits until it is dead.
kube_kill() {
    local pid i
    pid=$(cat "$NODE/$1.pid")
    [[ $(readlink "/proc/$pid/exe") = "$KUBE_TOOLS/$1"* ]] || return
    kill "-$2" "$pid"
    for i in $(seq 600); do
        node_dead "$pid" && return
        sleep 0.05
    done
    return 1
}

# Writes a file with an address and a token to talk to it.
kube_config() {
    cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: it, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: $2, user: {token: $2-token}}]
contexts: [{name: it, context: {cluster: it, user: $2}}]
current-context: it
YAML
}

kube_control_plane() {
    "$KUBE_TOOLS/etcd" --data-dir "$NODE/etcd-data" --unsafe-no-fsync \
        >"$NODE/etcd.log" 2>&1 </dev/null &
    echo $! >"$NODE/etcd.pid"
    printf '%s\n' 'admin-token,admin,admin,system:masters' \
        'node-token,system:node:node1,node1,system:nodes' >"$NODE/tokens.csv"
    kube_config "$NODE/admin.conf" admin
    kube_config "$NODE/node.conf" node
    # Any key signs tokens that nobody asks for; the kubelet has made one.
    local key=$NODE/kubelet-certs/kubelet.key
    "$KUBE_TOOLS/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --cert-dir "$NODE/api-certs" \
        --bind-address 127.0.0.1 --advertise-address "$KUBE_ADDRESS" --secure-port 6443 \
        --service-cluster-ip-range 10.96.0.0/16 \
        --service-account-issuer https://node1 --service-account-key-file "$key" \
        --service-account-signing-key-file "$key" --token-auth-file "$NODE/tokens.csv" \
        --authorization-mode RBAC,Node --kubelet-preferred-address-types InternalIP \
        --disable-admission-plugins ServiceAccount >"$NODE/kube-apiserver.log" 2>&1 </dev/null &
    echo $! >"$NODE/kube-apiserver.pid"
    local i
    for i in $(seq 600); do
        "$KUBE_TOOLS/kubectl" --kubeconfig "$NODE/admin.conf" --request-timeout 5s \
            get --raw /readyz >/dev/null 2>&1 && return
        kill -0 $! 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$NODE/kube-apiserver.log" >&2
    die "the API server does not answer"
}

kube_end() {
    local status=$? name
    trap - EXIT
    set +eu
    if [ $status != 0 ] && [ -s "$NODE/kubelet.log" ]; then
        echo "--- what the kubelet's log has of errors, the end:" >&2
        grep '^E' "$NODE/kubelet.log" | tail -n "${NODE_SHOW_LOG:-20}" >&2
    fi
    [ -z "${CRIOD_KEEP_LOGS:-}" ] || cp "$NODE"/*.log "$CRIOD_KEEP_LOGS"
    for name in kubelet kube-apiserver etcd; do
        [ ! -e "$NODE/$name.pid" ] || kube_kill $name KILL 2>/dev/null
    done
    (exit $status)
    (node_end)
    kube_cgroups_end
    exit $status
}

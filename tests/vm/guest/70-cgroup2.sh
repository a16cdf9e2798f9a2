# Limits, their changes, statistics and ends on pure cgroup version 2.

registry
dd if=/dev/zero of=/var/swap bs=1M count=64 status=none && chmod 600 /var/swap && mkswap -q /var/swap
check "the machine has swap" swapon /var/swap

criod run --detach --name limited --memory 64Mi --cpus 0.5 $IMAGE -- sleep 1000 >/dev/null
limited=/sys/fs/cgroup$(group "$(pid limited)")
check "memory.max" equal "$(cat "$limited/memory.max")" 67108864
check "memory.swap.max: no swap beyond the limit" equal "$(cat "$limited/memory.swap.max")" 0
check "cpu.max" equal "$(cat "$limited/cpu.max")" "50000 100000"
check "the pod's cgroup is not limited" equal "$(cat "${limited%/*}/memory.max")" max
check "statistics have pressure of processor, memory and disk" \
    equal "$(criod stats -o json | grep -c '"psi"')" 3
check "the container is stopped" criod stop --timeout 60s limited

criod run --detach --name greedy --memory 32Mi $IMAGE -- sh -c 'sleep 1; exec tail /dev/zero' >/dev/null
check "a container that takes more than its limit ends" eventually equal_field greedy state CONTAINER_EXITED
check "with 137" equal_field greedy exitCode 137
check "for want of memory" equal_field greedy reason OOMKilled

# Children that do not want to end.
criod run --detach --name many $IMAGE -- sh -c 'trap "" TERM; for i in $(seq 20); do
    (trap "" TERM; while :; do sleep 100 & wait; done) & done; wait' >/dev/null
many=/sys/fs/cgroup$(group "$(pid many)")
check "many processes run" eventually shell "[ \$(wc -l <$many/cgroup.procs) -ge 40 ]"
check "they are stopped" criod rm -f many
check "and gone, with their cgroup" not test -e "$many"

check "what systemd does to the hierarchy does not take controllers away" shell '
    before=$(cat /sys/fs/cgroup/crio/cgroup.controllers) && systemctl daemon-reload &&
    systemctl restart systemd-logind && [ "$(cat /sys/fs/cgroup/crio/cgroup.controllers)" = "$before" ]'
criod rm -f limited greedy >/dev/null

# The specs of this that conformance has, which the machines of developers may run on version 1 alone.
if [ -x /opt/vm/specs ]; then
    cd /opt/vm || exit
    CRI_ENDPOINT=$SOCKET CRI_REGISTRY=127.0.0.1:5000 CRI_RUNTIME_HANDLER=runc ./specs -test.v -test.parallel 2 \
        -test.timeout 10m -test.run "$SPECS" >/var/log/vm/specs 2>&1
    code=$?
    sed -n 's/^--- PASS: \(Test[^ ]*\).*/ok conformance \1/p; s/^--- FAIL: \(Test[^ ]*\).*/not ok conformance \1/p' \
        /var/log/vm/specs >&3
    grep -E '^ +[a-z_]+_test.go' /var/log/vm/specs | sed 's/^/#   /' >&3
    check "conformance specs of resources, ends and statistics ran" equal $code 0
    cd /opt/vm/guest || exit
fi
swapoff /var/swap
check "nothing is left of all these pods" equal "$(criod pods -q)$(criod ps -aq)" ""
check "no cgroup of a pod is left" equal "$(find /sys/fs/cgroup -name 'pod*' -o -name 'crio-*')" ""

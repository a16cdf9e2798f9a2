# A pod, and where its processes and criod's are.

check "a registry with a test image" registry
check "a container is started" counter one
check "it counts" eventually beyond one 5
check "its pod has an address" shell "criod exec one ip -4 -o addr show eth0 | grep -q 10.85"
one=$(pid one)
monitor=$(monitors)
check "there is one monitor" equal "$(wc -w <<<"$monitor")" 1
check "the monitor is below the keeper's unit" equal "$(group "$monitor")" /system.slice/criod-keeper.service
check "the container is not below a unit" shell "grep -q '^0::/crio/pod' /proc/$one/cgroup"
check "whoever is out of memory ends before its monitor does" \
    equal "$(cat /proc/$one/oom_score_adj) $(cat "/proc/$monitor/oom_score_adj")" "0 -999"
check "the kernel gives the container's cgroup its controllers" \
    shell "grep -q memory.*pids /sys/fs/cgroup$(group "$one")/cgroup.controllers"

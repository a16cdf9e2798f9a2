# Stops, restarts and deaths of each service under a container that counts.

# death WHAT SERVICE COMMAND…: the command ends the service's process; afterwards there is another.
death() {
    local what=$1 service=$2 before
    shift 2
    before=$(main_pid "$service")
    check "$what" "$@"
    check "$what: $service is another process" eventually another "$before" "$service"
    check "$what: criod answers" answers
    check "$what: the container goes on" goes_on one "$one"
    check "$what: its monitor is the same" equal "$(monitors)" "$monitor"
}
stop_and_start() { systemctl stop criod.socket criod && systemctl start criod.socket criod; }

death "criod is restarted" criod systemctl restart criod
death "criod is killed" criod shell 'kill -9 $(systemctl show --value -p MainPID criod)'
death "criod is stopped, and started" criod stop_and_start
death "the keeper is restarted" criod-keeper systemctl restart criod-keeper
death "the keeper is killed" criod-keeper shell 'kill -9 $(systemctl show --value -p MainPID criod-keeper)'
check "the keeper is systemd's, and no other" \
    equal "$(pgrep -c -x criod-keeper) $(group "$(pgrep -x criod-keeper)")" "1 /system.slice/criod-keeper.service"
death "both are killed" criod shell \
    'kill -9 $(systemctl show --value -p MainPID criod) $(systemctl show --value -p MainPID criod-keeper)'

check "systemd executes itself anew" systemctl daemon-reexec
check "systemd executes itself anew: the container goes on" goes_on one "$one"
check "systemd reads its units anew" systemctl daemon-reload
check "systemd reads its units anew: the container goes on" goes_on one "$one"

kill -9 "$monitor"
check "the monitor is killed: there is another" eventually shell "p=\$(pgrep -x criod-monitor) && [ \"\$p\" != $monitor ]"
monitor=$(monitors)
check "the monitor is killed: the container goes on" goes_on one "$one"
check "the new monitor is below the keeper's unit, too" equal "$(group "$monitor")" /system.slice/criod-keeper.service

# Its end, while nobody is there to hear of it.
criod run --detach --name ender --log-dir /var/log/vm/ender $IMAGE -- \
    sh -c 'while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3' >/dev/null
ender=$(pid ender)
systemctl stop criod.socket criod
: >"/proc/$ender/root/tmp/end"
check "a container ends while criod is stopped" eventually not test -e "/proc/$ender"
systemctl start criod.socket criod
check "its exit code is exact" eventually equal_field ender exitCode 3
check "it can be removed" criod rm ender

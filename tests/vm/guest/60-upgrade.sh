# Other programs on disk, and a restart: containers and monitors of before go on.

exe() { readlink "/proc/$1/exe"; }
check "an upgrade replaces the programs" shell '
    for program in /usr/bin/criod /usr/libexec/criod/*; do
        cp "$program" "$program.new" && mv "$program.new" "$program" || exit
    done'
before=$(main_pid)
check "the running criod is the old one" equal "$(exe "$before")" "/usr/bin/criod (deleted)"
check "criod is restarted" systemctl restart criod
check "it is the new one" equal "$(exe "$(main_pid)")" /usr/bin/criod
check "the monitor is not stopped for it" equal "$(monitors)" "$monitor"
check "the container goes on" goes_on one "$one"
check "a new container has a new monitor" counter two
check "it counts" eventually beyond two 5
check "the keeper is restarted" systemctl restart criod-keeper
check "containers with old and new monitors go on" goes_on one "$one"
check "containers with old and new monitors go on" goes_on two "$(pid two)"
check "the stop of a container with an old monitor" criod stop one
check "its exit code is exact" equal_field one exitCode 7
check "its log is whole" no_gap one
check "it can be removed" criod rm -f one
check "so can the others" criod rm -f two
check "nothing of them is left in the keeper's cgroup" \
    equal "$(cat /sys/fs/cgroup/system.slice/criod-keeper.service/cgroup.procs | wc -l)" 1

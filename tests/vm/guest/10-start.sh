# The units as they are installed: enabled, and started by whoever calls first.

check "the hierarchy is version 2 alone" equal "$(stat -f -c %T /sys/fs/cgroup)" cgroup2fs
check "systemd finds nothing wrong with the units" \
    equal "$(systemd-analyze verify --man=no criod.service criod-keeper.service criod.socket 2>&1 | grep criod)" ""
check "they can be enabled" systemctl enable criod-keeper criod criod.socket
check "the socket is opened" systemctl start criod.socket
check "criod does not run yet" equal "$(unit criod ActiveState)" inactive
check "whoever calls starts it, and is answered" answers
check "criod is ready" equal "$(unit criod ActiveState) $(unit criod SubState)" "active running"
check "the keeper was started with it" equal "$(unit criod-keeper ActiveState)" active
check "nobody had to be started twice" equal "$(restarts) $(restarts criod-keeper)" "0 0"
check "criod is in its unit's cgroup" equal "$(group "$(main_pid)")" /system.slice/criod.service
check "the socket is root's" equal "$(stat -c '%U:%G %a' $SOCKET)" "root:root 660"
check "only one process listens there" equal "$(ss -Hxl src $SOCKET | wc -l)" 1
check "the journal has criod's lines with a priority" \
    shell "journalctl -b -u criod -o json | grep -q '\"MESSAGE\":\"serving the CRI.*\"PRIORITY\":\"[56]\"\|\"PRIORITY\":\"[56]\".*\"MESSAGE\":\"serving the CRI'"

# systemd ends a criod that does not answer, and only such a one.

wait_for=8
mkdir -p /run/systemd/system/criod.service.d
printf '[Service]\nWatchdogSec=%s\n' $wait_for >/run/systemd/system/criod.service.d/vm.conf
systemctl daemon-reload
systemctl restart criod
check "with a shorter watchdog criod is ready" answers

before=$(main_pid) cursor=$(now)
kill -STOP "$before"
check "criod that is stopped by a signal is ended" eventually another "$before"
check "it was the watchdog" told "$cursor" 'Watchdog timeout'
check "the next one answers" answers
check "the container goes on" goes_on one "$one"

# A plugin that hangs: the network is not criod's to heal.
mkdir -p /opt/vm/cni
printf '#!/bin/sh\n[ "$CNI_COMMAND" = VERSION ] && echo "{\\"cniVersion\\":\\"1.0.0\\",\\"supportedVersions\\":[\\"1.0.0\\"]}" && exit\n[ ! -e /run/vm-hangs ] || exec sleep 3000\n' >/opt/vm/cni/hangs
chmod 755 /opt/vm/cni/hangs
printf '{"cniVersion":"1.0.0","name":"hangs","plugins":[{"type":"hangs"}]}\n' >/etc/cni/net.d/01-hangs.conflist
touch /run/vm-hangs
sleep 1
before=$(main_pid) many=$(restarts)
criod run --detach --name stuck $IMAGE -- true >/dev/null 2>&1 &
stuck=$!
sleep $((wait_for * 5 / 2))
check "a pod whose plugin hangs is not there yet" kill -0 $stuck
check "criod is the same process, which a watchdog has not ended" equal "$(main_pid) $(restarts)" "$before $many"
check "other calls are answered" criod exec one true
kill $stuck
rm /etc/cni/net.d/01-hangs.conflist /run/vm-hangs
pkill -x -f 'sleep 3000'

mv /etc/cni/net.d /etc/cni/away
mkdir /etc/cni/net.d
check "without a network's configuration the network is not ready" \
    eventually shell "criod status | grep -q 'NetworkReady *false'"
sleep $((wait_for * 3 / 2))
check "that is no reason to end criod either" equal "$(main_pid) $(restarts)" "$before $many"
rmdir /etc/cni/net.d
mv /etc/cni/away /etc/cni/net.d
check "the network is ready again" eventually shell "criod status | grep -q 'NetworkReady *true'"

# What criod finds out itself.
before=$(main_pid) cursor=$(now)
rm $SOCKET
check "criod whose socket was removed is ended" eventually another "$before"
check "it says why" told "$cursor" "self-check: the CRI's socket does not answer"
check "callers reach the next one" eventually answers
before=$(main_pid) cursor=$(now)
rm /run/criod/lock
check "criod whose lock was removed is ended" eventually another "$before"
check "it says why" told "$cursor" 'self-check: /run/criod/lock is not the file'
check "the container goes on" goes_on one "$one"

rm /run/systemd/system/criod.service.d/vm.conf
systemctl daemon-reload
systemctl stop criod.socket criod
systemctl start criod.socket criod

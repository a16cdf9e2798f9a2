# Whoever calls waits; nobody is refused.

file() { stat -c %i $SOCKET; }
# Calls, again and again, and notes what it is told when it fails.
caller() {
    while [ ! -e /run/vm-caller-end ]; do
        criod version --timeout 60s >/dev/null || criod ps --timeout 60s >/dev/null
    done 2>>/run/vm-caller
}

check "the socket is the one that systemd opened" equal "$(unit criod.socket ActiveState)" active
before=$(main_pid)
check "criod is stopped, and its socket is not" systemctl stop criod
check "a call starts it" answers
check "it is another process" another "$before"

socket=$(file)
rm -f /run/vm-caller /run/vm-caller-end
caller &
caller=$!
for round in 1 2 3; do
    systemctl restart criod
    answers >/dev/null
    kill -9 "$(main_pid)"
    answers >/dev/null
    systemctl stop criod
    answers >/dev/null
done
: >/run/vm-caller-end
wait $caller
check "through restarts, kills and stops no call finds nobody listening" \
    equal "$(grep -E 'not running|cannot reach|refused' /run/vm-caller)" ""
check "the socket's file is the same" equal "$(file)" "$socket"
check "only one process listens there" equal "$(ss -Hxl src $SOCKET | wc -l)" 1

# Without systemd's socket: the keeper has a copy.
check "criod and its socket are stopped" systemctl stop criod.socket criod
check "the file of the socket is the same" equal "$(file)" "$socket"
criod ps --timeout 60s >/run/vm-waits 2>&1 &
waits=$!
sleep 2
check "whoever calls waits, and is not refused" kill -0 $waits
check "nobody has started criod" equal "$(unit criod ActiveState)" inactive
check "criod is started without systemd's socket" systemctl start criod
wait $waits
check "whoever waited is answered" equal $? 0
check "by the keeper's copy of the socket" equal "$(file)" "$socket"

# systemd makes another file: criod must not go on with the keeper's copy of the old one.
systemctl stop criod
check "systemd opens the socket again" systemctl start criod.socket
check "it is another file" not equal "$(file)" "$socket"
check "criod serves that" answers
check "the keeper has forgotten the old one" equal "$(ss -Hxl src $SOCKET | wc -l)" 1
socket=$(file)
check "criod is restarted" systemctl restart criod
check "criod still serves that" answers
check "and no other" equal "$(file) $(ss -Hxl src $SOCKET | wc -l)" "$socket 1"

# A mistake: systemd's socket is not that of `listen`.
mkdir -p /run/systemd/system/criod.socket.d
printf '[Socket]\nListenStream=\nListenStream=/run/crio/other.sock\n' >/run/systemd/system/criod.socket.d/vm.conf
systemctl stop criod.socket criod
systemctl daemon-reload
systemctl start criod.socket
cursor=$(now)
check "a socket at another path than listen is refused" not systemctl start criod
check "criod says so" told "$cursor" 'listens at /run/crio/other.sock, but `listen` is /run/crio/crio.sock'
check "and is not started again" equal "$(unit criod ActiveState) $(unit criod ExecMainStatus)" "failed 78"
rm -r /run/systemd/system/criod.socket.d
systemctl stop criod.socket
systemctl daemon-reload
systemctl reset-failed criod
check "once that is mended it starts" systemctl start criod.socket criod
check "and answers" answers
check "the container goes on" goes_on one "$one"

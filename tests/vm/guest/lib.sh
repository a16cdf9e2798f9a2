# What the parts have in common. Each check is one line of the report, on the second serial line.

STATE=/var/lib/vm
IMAGE=127.0.0.1:5000/test/busybox:1
SOCKET=/run/crio/crio.sock
# A field of what `inspect` says, and its value.
equal_field() { equal "$(field "$1" "$2")" "$3"; }
# The addresses that are taken.
equal_leases() { equal "$(find /var/lib/cni/networks/criod -name "10.*" | wc -l)" "$1"; }
# How long something may take that is waited for, in tenths of a second: the machine is emulated.
PATIENCE=600

# Which specs of conformance: those that go by the version of cgroups.
SPECS="Resources|OutOfMemory|Stats|StopContainer(Kills|EndsTheWhole)|ExecIsIn|PodWhoseCgroup|SeesItsOwnCgroup"

stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3>/dev/ttyS1
mkdir -p /var/log/vm

say() { printf '# %s\n' "$*" >&3; }
# Runs a command, which is to succeed; says what that shows.
check() {
    local what=$1 said status=0
    shift
    said=$("$@" 2>&1) || status=$?
    if [ $status = 0 ]; then
        printf 'ok %s\n' "$what" >&3
        return
    fi
    printf 'not ok %s\n#   %s: exit code %s\n' "$what" "$*" $status >&3
    sed 's/^/#   /' <<<"$said" | head -n 30 >&3
    journalctl -q -b -n 25 -o cat -p warning -u criod -u criod-keeper | sed 's/^/#   | /' >&3
    return 1
}
# Tries a command until it succeeds.
eventually() {
    local i
    for ((i = 0; i < PATIENCE; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "not within $((PATIENCE / 10)) s; at last:"
    "$@"
}
not() { ! "$@"; }
equal() { [ "$1" = "$2" ] || { echo "\"$1\" is not \"$2\""; return 1; }; }
shell() { bash -c "$1"; }
# In what `show` says of a unit.
unit() { systemctl show --value -p "$2" "$1"; }
main_pid() { unit "${1:-criod}" MainPID; }
restarts() { unit "${1:-criod}" NRestarts; }
# Another process than that before is criod, and serves.
another() { local pid; pid=$(main_pid "${2:-criod}"); [ "$pid" != 0 ] && [ "$pid" != "$1" ]; }
answers() { criod status --timeout 60s; }
# The journal of this boot since then (a cursor, see `now`).
now() { journalctl -q -n 0 --show-cursor | sed -n 's/^-- cursor: //p'; }
told() { journalctl -q --after-cursor "$1" -o cat | grep -E -- "$2"; }
id() { criod inspect "$1" | sed -n 's/^ *"id": *"\([0-9a-f]*\)".*/\1/p' | head -n 1; }
pid() { criod inspect "$1" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1; }
field() { criod inspect "$1" | sed -n "s/.*\"$2\": *\"\{0,1\}\([^\",]*\).*/\1/p" | head -n 1; }
# The cgroup (there is one hierarchy) of a process.
group() { sed -n 's/^0:://p' "/proc/$1/cgroup"; }
monitors() {
    find /proc/[0-9]*/exe -maxdepth 0 -printf '%p %l\n' 2>/dev/null |
        sed -n 's|^/proc/\([0-9]*\)/exe .*/criod-monitor\( (deleted)\)\{0,1\}$|\1|p'
}

# A container that counts, and ends with 7 when it is asked to.
counter() {
    criod run --detach --name "$1" --log-dir "/var/log/vm/$1" $IMAGE -- sh -c \
        'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done'
}
log_of() { find "/var/log/vm/$1" -name '*.log' | head -n 1; }
# The number of the last whole line of its log.
counted() { awk '$2 == "stdout" && $3 == "F" { n = $4 } END { print n + 0 }' "$(log_of "$1")"; }
beyond() { [ "$(counted "$1")" -gt "$2" ]; }
no_gap() { awk '$4 != NR { print "line " NR ": " $0; bad = 1; exit } END { exit bad || NR == 0 }' "$(log_of "$1")"; }
# The container goes on: the same process, and the count goes on from here, without a gap; it is served.
goes_on() {
    local name=$1 before=$2 count seen
    count=$(counted "$name")
    seen=$(criod inspect "$name") || return
    grep -q "\"pid\": *$before\b" <<<"$seen" && grep -q '"state": *"CONTAINER_RUNNING"' <<<"$seen" || {
        echo "$seen"
        return 1
    }
    eventually beyond "$name" "$count" && no_gap "$name" && criod exec "$name" true
}

registry() {
    [ -e /run/registry/address ] && return
    rm -rf /run/registry
    /opt/vm/test-images serve --dir /run/registry --port 5000 --push test/busybox:1 >/dev/null
}

# Boots the machine, and goes on with the next part.
boot() {
    say "booting"
    sed -i 1d $STATE/left
    sync
    systemctl --no-block reboot
    # It ends with the machine.
    sleep infinity
}

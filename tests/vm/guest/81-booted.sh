check "the machine was booted" not equal "$(cat /proc/sys/kernel/random/boot_id)" "$(cat $STATE/boot)"
check "criod has been started" eventually answers
check "it is ready" eventually equal "$(unit criod ActiveState)" active
check "by systemd's socket" equal "$(unit criod.socket ActiveState)" active
check "the socket was there before criod" shell '
    [ "$(systemctl show --value -p ActiveEnterTimestampMonotonic criod.socket)" -lt \
      "$(systemctl show --value -p ExecMainStartTimestampMonotonic criod)" ]'
check "a container that had run is EXITED" equal_field runs state CONTAINER_EXITED
check "its exit code is that of an unknown end" equal_field runs exitCode 255
check "one that had ended before kept its exit code" equal_field ended exitCode 3
check "pods are NOTREADY" equal "$(criod pods -o json | grep -c SANDBOX_NOTREADY) $(criod pods -o json | grep -c SANDBOX_READY)" "2 0"
check "images are as they were" equal "$(criod images -q)" "$(cat $STATE/images)"
check "addresses were returned" eventually equal_leases 0
check "nothing is mounted" equal "$(awk '$5 ~ "^/(run|var/lib)/criod/" { print $5 }' /proc/self/mountinfo)" ""
check "no monitor runs" equal "$(monitors)" ""
check "they can be removed" criod rm -f runs ended
check "nothing of them is left" equal "$(criod pods -q)$(criod ps -aq)$(ls /var/lib/criod/containers /var/lib/criod/pods | grep -v : | grep .)" ""
criod run --detach --name after --pull never $IMAGE -- sleep 1000 >/dev/null
check "a pod runs, with the image of before" criod exec after true
check "it has an address" equal_leases 1
check "its monitor is below the keeper's unit" equal "$(group "$(monitors)")" /system.slice/criod-keeper.service
check "it can be removed" criod rm -f after
check "its address is returned" equal_leases 0

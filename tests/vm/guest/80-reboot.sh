# The machine is booted: what containers were is known, what they had is returned.

registry
counter runs >/dev/null
criod run --detach --name ended $IMAGE -- sh -c 'exit 3' >/dev/null
check "a container has ended before the boot" eventually equal_field ended state CONTAINER_EXITED
check "another one runs" eventually beyond runs 3
check "both pods have an address" equal "$(ls /var/lib/cni/networks/criod | grep -c '^10\.')" 2
criod images -q >$STATE/images
cat /proc/sys/kernel/random/boot_id >$STATE/boot
boot

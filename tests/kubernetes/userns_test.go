package kubernetes

import (
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// Root of a pod with users of its own is nobody on the node, and owns what it writes.
func TestAloneUserNamespace(t *testing.T) {
	t.Parallel()
	no := false
	p := static(t, ofPod("users-own", v1.RestartPolicyAlways, []v1.Container{
		probed(sh("it", "touch /tmp/fine; "+idle), execProbe("test -e /tmp/fine")), sh("other", idle)},
		emptyDir("work", "/scratch"),
		func(spec *v1.PodSpec) { spec.HostUsers = &no }))
	p.untilReady()
	lines := strings.Fields(p.exec("it", "cat /proc/self/uid_map"))
	if len(lines) != 3 || lines[0] != "0" || lines[1] == "0" || lines[2] != "65536" {
		t.Errorf("uid_map: %q", lines)
	}
	equal(t, "the pod's containers share it", p.exec("other", "readlink /proc/1/ns/user"), p.exec("it", "readlink /proc/1/ns/user"))
	ours := must[string](t, "namespace")(os.Readlink("/proc/self/ns/user"))
	if p.exec("it", "readlink /proc/self/ns/user") == ours+"\n" {
		t.Error("it has the node's users")
	}
	equal(t, "owner", p.exec("it", "id -u; echo x >/scratch/file; stat -c %u /scratch/file /bin/busybox /etc/hosts"), "0\n0\n0\n0\n")
	p.exec("it", "echo words >/dev/termination-log")
}

package kubernetes

import (
	"encoding/json"
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

// An image is a folder of the pod, which it may only read.
func TestAloneImageVolume(t *testing.T) {
	t.Parallel()
	c := sh("it", idle)
	c.VolumeMounts = []v1.VolumeMount{{Name: "image", MountPath: "/image"}, {Name: "image", MountPath: "/below", SubPath: "bin"}}
	p := static(t, ofPod("image-volume", v1.RestartPolicyAlways, []v1.Container{c}, func(spec *v1.PodSpec) {
		spec.Volumes = []v1.Volume{{Name: "image", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{
			Reference: image("docker:1"), PullPolicy: v1.PullIfNotPresent}}}}
	}))
	p.untilReady()
	equal(t, "files", p.exec("it", "test -x /image/bin/busybox && cmp /image/bin/busybox /below/busybox && echo same"), "same\n")
	equal(t, "write", p.exec("it", "touch /image/x /below/x 2>/dev/null || echo refused"), "refused\n")
}

// New limits come into force in a container that goes on.
func TestJoinedResize(t *testing.T) {
	t.Parallel()
	c := sh("it", idle)
	c.Resources = v1.ResourceRequirements{Limits: amounts("200m", "64Mi"), Requests: amounts("100m", "32Mi")}
	p := create(t, ofPod("resize", v1.RestartPolicyAlways, []v1.Container{c}))
	before := p.untilReady()
	id := bare(status(before, "it").ContainerID)
	equal(t, "memory before", cgroupFile(t, id, "memory.limit_in_bytes", "memory.max"), "67108864")
	for _, each := range []struct{ cpu, memory, quota, bytes string }{
		{"400m", "96Mi", "40000", "100663296"},
		{"300m", "80Mi", "30000", "83886080"},
	} {
		wanted := v1.ResourceRequirements{Limits: amounts(each.cpu, each.memory), Requests: amounts("150m", "48Mi")}
		patch := must[[]byte](t, "patch")(json.Marshal(map[string]any{"spec": map[string]any{
			"containers": []any{map[string]any{"name": "it", "resources": wanted}}}}))
		succeeds(t, "patch", "pod", p.name, "--subresource", "resize", "--patch", string(patch))
		p.until("resized", func(pod *v1.Pod) bool {
			now := status(pod, "it").Resources
			return now != nil && now.Limits.Memory().Equal(wanted.Limits[v1.ResourceMemory]) &&
				now.Limits.Cpu().Equal(wanted.Limits[v1.ResourceCPU])
		})
		equal(t, "memory", cgroupFile(t, id, "memory.limit_in_bytes", "memory.max"), each.bytes)
		quota := cgroupFile(t, id, "cpu.cfs_quota_us", "cpu.max")
		if quota != each.quota && quota != each.quota+" 100000" {
			t.Errorf("quota %q", quota)
		}
	}
	after := p.untilReady()
	equal(t, "id", bare(status(after, "it").ContainerID), id)
	equal(t, "restarts", status(after, "it").RestartCount, 0)
}

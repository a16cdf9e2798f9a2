package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sprint(values ...any) string { return fmt.Sprint(values...) }

// uidOf is the name that logs and cgroups of a static pod have: its file's hash.
func uidOf(pod *v1.Pod) string {
	if hash := pod.Annotations["kubernetes.io/config.hash"]; hash != "" {
		return hash
	}
	return string(pod.UID)
}

// cgroupFile reads a value of a container's cgroup: the file's name in either version of cgroups.
func cgroupFile(t *testing.T, id, first, second string) string {
	t.Helper()
	for _, controller := range []string{"", "memory", "cpu", "pids"} {
		root := filepath.Join("/sys/fs/cgroup", controller, os.Getenv("KUBE_CGROUP"))
		for _, name := range []string{first, second} {
			found, _ := filepath.Glob(root + "/kubepods/pod*/*" + id + "*/" + name)
			more, _ := filepath.Glob(root + "/kubepods/*/pod*/*" + id + "*/" + name)
			for _, path := range append(found, more...) {
				return strings.TrimSpace(string(must[[]byte](t, path)(os.ReadFile(path))))
			}
		}
	}
	t.Fatalf("container %s has neither %s nor %s", id, first, second)
	return ""
}

func amounts(cpu, memory string) v1.ResourceList {
	return v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
}

func TestAloneLimits(t *testing.T) {
	t.Parallel()
	c := sh("it", idle)
	c.Resources = v1.ResourceRequirements{Limits: amounts("200m", "64Mi"), Requests: amounts("100m", "32Mi")}
	p := static(t, ofPod("limits", v1.RestartPolicyAlways, []v1.Container{c}))
	id := bare(status(p.untilReady(), "it").ContainerID)
	equal(t, "memory", cgroupFile(t, id, "memory.limit_in_bytes", "memory.max"), "67108864")
	quota := cgroupFile(t, id, "cpu.cfs_quota_us", "cpu.max")
	if quota != "20000" && quota != "20000 100000" {
		t.Errorf("quota %q", quota)
	}
}

func TestAloneOutOfMemory(t *testing.T) {
	t.Parallel()
	c := sh("it", "x=0123456789abcdef; while :; do x=$x$x; done")
	c.Resources = v1.ResourceRequirements{Limits: amounts("1", "24Mi"), Requests: amounts("10m", "24Mi")}
	p := static(t, ofPod("memory", v1.RestartPolicyNever, []v1.Container{c, sh("other", idle)}))
	pod := p.until("killed", func(pod *v1.Pod) bool { return status(pod, "it").State.Terminated != nil })
	equal(t, "reason", ended(pod, "it").Reason, "OOMKilled")
	equal(t, "exit code", ended(pod, "it").ExitCode, 137)
	if status(pod, "other").State.Running == nil {
		t.Error("the other container does not run")
	}
}

func TestAloneVolumes(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	ok(t, os.MkdirAll(filepath.Join(host, "deep/er"), 0o755), "folder")
	ok(t, os.WriteFile(filepath.Join(host, "deep/er/file"), []byte("of the host\n"), 0o644), "file")
	c := sh("it", idle)
	mount := func(name, path, sub string, readOnly bool) {
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: name, MountPath: path, SubPath: sub, ReadOnly: readOnly})
	}
	// Each under another, listed in the wrong order.
	mount("memory", "/host/deep/er/memory", "", false)
	mount("host", "/host", "", false)
	mount("host", "/read-only", "deep", true)
	mount("host", "/one-file", "deep/er/file", false)
	mount("about", "/about", "", true)
	mount("shared", "/shared", "", false)
	other := sh("other", "echo from the other >/shared/file; "+idle)
	other.VolumeMounts = []v1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	c.Env = []v1.EnvVar{
		{Name: "POD_IP", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "status.podIP"}}},
	}
	field := func(path, from string) v1.DownwardAPIVolumeFile {
		return v1.DownwardAPIVolumeFile{Path: path, FieldRef: &v1.ObjectFieldSelector{APIVersion: "v1", FieldPath: from}}
	}
	p := static(t, ofPod("volumes", v1.RestartPolicyAlways, []v1.Container{c, other}, func(spec *v1.PodSpec) {
		mode := int32(0o640)
		size := resource.MustParse("8Mi")
		spec.Volumes = []v1.Volume{
			{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host}}},
			{Name: "shared", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{
				Medium: v1.StorageMediumMemory, SizeLimit: &size}}},
			{Name: "about", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{
				DefaultMode: &mode,
				Items:       []v1.DownwardAPIVolumeFile{field("name", "metadata.name"), field("labels", "metadata.labels")},
			}}},
		}
	}))
	pod := p.untilReady()
	for _, each := range [][2]string{
		{"cat /host/deep/er/file /one-file", "of the host\nof the host\n"},
		{"cat /read-only/er/file", "of the host\n"},
		{"touch /read-only/er/new 2>/dev/null || echo refused", "refused\n"},
		{"cat /about/name; stat -Lc %a /about/name", "volumes-node1640\n"},
		{"cat /about/labels", `test="volumes"`},
		{"until [ -s /shared/file ]; do sleep 0.1; done; cat /shared/file", "from the other\n"},
		{"grep -c ' /host/deep/er/memory tmpfs ' /proc/mounts", "1\n"},
		{"df -m /host/deep/er/memory | awk 'NR == 2 { print $2 }'", "8\n"},
		{"echo new >/one-file; cat /host/deep/er/file", "new\n"},
		{"echo $POD_IP", pod.Status.PodIP + "\n"},
	} {
		equal(t, each[0], p.exec("it", each[0]), each[1])
	}
	if _, err := os.Stat(filepath.Join(host, "deep/er/memory")); err != nil {
		t.Errorf("the place of the mount below: %v", err)
	}
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

func TestAloneHostNetwork(t *testing.T) {
	t.Parallel()
	c := probed(sh("it", background("nc -ll -p 9191 -e cat")), tcpProbe(9191))
	c.Ports = []v1.ContainerPort{{ContainerPort: 9191, HostPort: 9191, Protocol: v1.ProtocolTCP}}
	p := static(t, ofPod("host-network", v1.RestartPolicyAlways, []v1.Container{c},
		func(spec *v1.PodSpec) { spec.HostNetwork = true }))
	p.untilReady()
	ours := must[string](t, "namespace")(os.Readlink("/proc/self/ns/net"))
	equal(t, "network namespace", p.exec("it", "readlink /proc/self/ns/net"), ours+"\n")
	sandbox := p.sandbox()
	equal(t, "mode of the network", sandbox.GetLinux().GetNamespaces().GetOptions().GetNetwork(), cri.NamespaceMode_NODE)
}

// A port of the node leads to the pod until that is gone.
func TestAloneHostPort(t *testing.T) {
	t.Parallel()
	c := probed(sh("it", background(webServer)), httpProbe("/healthz"))
	c.Ports = []v1.ContainerPort{{ContainerPort: 8080, HostPort: 18080, Protocol: v1.ProtocolTCP}}
	p := static(t, ofPod("host-port", v1.RestartPolicyAlways, []v1.Container{c}))
	p.untilReady()
	address := os.Getenv("KUBE_ADDRESS") + ":18080"
	answer := must[*http.Response](t, "web")(http.Get("http://" + address + "/healthz"))
	equal(t, "web", string(must[[]byte](t, "web")(io.ReadAll(answer.Body))), "fine\n")
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	p.end()
	eventually(t, "the end of the port", func() (bool, string) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err != nil, "it answers"
	})
}

func TestAloneSharedProcessNamespace(t *testing.T) {
	t.Parallel()
	yes := true
	p := static(t, ofPod("shared-pid", v1.RestartPolicyAlways, []v1.Container{
		sh("one", "sleep 987654 & "+idle), sh("two", idle)},
		func(spec *v1.PodSpec) { spec.ShareProcessNamespace = &yes }))
	p.untilReady()
	eventually(t, "the other's process", func() (bool, string) {
		list := p.exec("two", "ps")
		return strings.Contains(list, "sleep 987654"), list
	})
	p.exec("two", "kill -9 $(ps | awk '/sleep 98765[4]/ { print $1 }')")
}

// Names and addresses that the kubelet writes into files of the pod.
func TestAloneNames(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("names", v1.RestartPolicyAlways, []v1.Container{sh("it", idle)}, func(spec *v1.PodSpec) {
		spec.Hostname = "by-name"
		spec.HostAliases = []v1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"alias"}}}
		spec.DNSPolicy = v1.DNSNone
		five := "5"
		spec.DNSConfig = &v1.PodDNSConfig{
			Nameservers: []string{"192.0.2.53"}, Searches: []string{"search.test"},
			Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &five}},
		}
	}))
	pod := p.untilReady()
	equal(t, "hostname", p.exec("it", "hostname; echo $HOSTNAME"), "by-name\nby-name\n")
	equal(t, "resolv.conf", p.exec("it", "cat /etc/resolv.conf"),
		"search search.test\nnameserver 192.0.2.53\noptions ndots:5\n")
	hosts := p.exec("it", "cat /etc/hosts")
	for _, want := range []string{pod.Status.PodIP + "\tby-name\n", "192.0.2.7\talias\n"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("/etc/hosts lacks %q: %s", want, hosts)
		}
	}
}

// A user of the image is no root, and whoever must not be root is refused where it would be.
func TestAloneUsers(t *testing.T) {
	t.Parallel()
	yes := true
	named := sh("named", "id -u; "+idle)
	named.Image = image("user-1002:1")
	named.SecurityContext = &v1.SecurityContext{RunAsNonRoot: &yes}
	given := sh("given", "id -u; id -g; id -G; cat /proc/self/status; "+idle)
	user, group, files := int64(1234), int64(2345), int64(3456)
	given.SecurityContext = &v1.SecurityContext{
		RunAsUser: &user, RunAsGroup: &group, ReadOnlyRootFilesystem: &yes,
		AllowPrivilegeEscalation: new(bool), Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}},
		SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault},
	}
	root := sh("root", "true")
	root.SecurityContext = &v1.SecurityContext{RunAsNonRoot: &yes}
	p := static(t, ofPod("users", v1.RestartPolicyAlways, []v1.Container{named, given, root}, emptyDir("work", "/scratch"),
		func(spec *v1.PodSpec) { spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &files} }))
	p.until("two of three", func(pod *v1.Pod) bool {
		waiting := status(pod, "root").State.Waiting
		return status(pod, "named").Ready && status(pod, "given").Ready &&
			waiting != nil && waiting.Reason == "CreateContainerConfigError"
	})
	equal(t, "user of the image", p.exec("named", "id -u"), "1002\n")
	equal(t, "ids", p.exec("given", "id -u; id -g; id -G"), "1234\n2345\n2345 3456\n")
	equal(t, "root file system", p.exec("given", "touch /x 2>/dev/null || echo refused"), "refused\n")
	equal(t, "volume", p.exec("given", "echo x >/scratch/file; stat -c %g /scratch/file"), "3456\n")
	for _, want := range []string{"CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if got := p.exec("given", "cat /proc/1/status"); !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

// sandbox is the status of the pod's sandbox.
func (p *pod) sandbox() *cri.PodSandboxStatus {
	p.t.Helper()
	list := must[[]*cri.PodSandbox](p.t, "sandboxes")(
		runtime.ListPodSandbox(context.Background(), &cri.PodSandboxFilter{LabelSelector: p.labels()}))
	if len(list) != 1 {
		p.t.Fatalf("pod %s has %d sandboxes", p.name, len(list))
	}
	answer := must[*cri.PodSandboxStatusResponse](p.t, "sandbox")(
		runtime.PodSandboxStatus(context.Background(), list[0].Id, false))
	return answer.GetStatus()
}

// What the kubelet reads of criod's answers, as it is for a pod of its own.
func TestAloneWhatTheKubeletReads(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// Its last bytes are there once it is said to have ended.
	p := static(t, ofPod("facts", v1.RestartPolicyOnFailure, []v1.Container{
		sh("runs", idle),
		sh("ends", "seq 4000; [ -e /scratch/tried ] || { touch /scratch/tried; exit 1; }; "+idle),
	}, emptyDir("work", "/scratch")))
	pod := p.until("restarted", func(pod *v1.Pod) bool {
		ends := status(pod, "ends")
		return ends.RestartCount == 1 && ends.State.Running != nil
	})

	sandbox := p.sandbox()
	equal(t, "state", sandbox.GetState(), cri.PodSandboxState_SANDBOX_READY)
	equal(t, "network", sandbox.GetLinux().GetNamespaces().GetOptions().GetNetwork(), cri.NamespaceMode_POD)
	equal(t, "address", sandbox.GetNetwork().GetIp(), pod.Status.PodIP)
	equal(t, "uid", sandbox.GetLabels()["io.kubernetes.pod.uid"], uidOf(pod))
	if sandbox.GetAnnotations()["kubernetes.io/config.source"] != "file" {
		t.Errorf("annotations of the sandbox: %v", sandbox.GetAnnotations())
	}
	id := must[*cri.ImageStatusResponse](t, "image")(
		images.ImageStatus(ctx, &cri.ImageSpec{Image: image("busybox:1")}, false)).GetImage().GetId()

	all := must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{LabelSelector: p.labels()}))
	created := map[string][]int64{}
	for _, each := range all {
		s := must[*cri.ContainerStatusResponse](t, "status")(runtime.ContainerStatus(ctx, each.Id, false)).GetStatus()
		name := s.GetLabels()["io.kubernetes.container.name"]
		attempt := s.GetMetadata().GetAttempt()
		what := fmt.Sprintf("%s/%d: ", name, attempt)
		equal(t, what+"log path", s.GetLogPath(),
			fmt.Sprintf("%s/pods/default_%s_%s/%s/%d.log", folder, p.name, uidOf(pod), name, attempt))
		equal(t, what+"id of the image in the list", each.GetImageId(), id)
		equal(t, what+"id of the image", s.GetImageId(), id)
		equal(t, what+"name of the image", s.GetImage().GetImage() != "", true)
		for _, label := range []string{"io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.pod.uid"} {
			equal(t, what+label, s.GetLabels()[label], sandbox.GetLabels()[label])
		}
		for _, note := range []string{"io.kubernetes.container.hash", "io.kubernetes.container.restartCount"} {
			if s.GetAnnotations()[note] == "" {
				t.Errorf("%sno annotation %s", what, note)
			}
		}
		created[name] = append(created[name], s.GetCreatedAt())
		var messages bool
		for _, m := range s.GetMounts() {
			messages = messages || m.GetContainerPath() == "/dev/termination-log" && strings.HasPrefix(m.GetHostPath(), folder)
		}
		equal(t, what+"mount of the termination log", messages, true)
		if s.GetState() != cri.ContainerState_CONTAINER_EXITED {
			continue
		}
		log := must[[]byte](t, what+"log")(os.ReadFile(s.GetLogPath()))
		equal(t, what+"lines", bytes.Count(log, []byte{'\n'}), 4000)
	}
	equal(t, "containers", len(created["ends"]), 2)
	equal(t, "different times of creation", created["ends"][0] != created["ends"][1], true)

	info := must[*cri.ImageFsInfoResponse](t, "ImageFsInfo")(images.ImageFsInfo(ctx))
	for name, list := range map[string][]*cri.FilesystemUsage{
		"images": info.GetImageFilesystems(), "containers": info.GetContainerFilesystems(),
	} {
		if len(list) != 1 || list[0].GetUsedBytes() == nil || list[0].GetFsId().GetMountpoint() == "" {
			t.Errorf("file systems of %s: %v", name, list)
		}
	}
}

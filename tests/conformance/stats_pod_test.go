package conformance

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ownCgroup gives the pod a cgroup of its own, as the kubelet does; whoever makes it removes it.
func ownCgroup(t *testing.T) func(*cri.PodSandboxConfig) {
	return func(cfg *cri.PodSandboxConfig) {
		name := "/" + unique("conformance-pod")
		cfg.Linux.CgroupParent = name
		t.Cleanup(func() {
			for _, dir := range cgroups(name) {
				// Groups of containers are gone: anything in it is a mistake.
				if err := os.Remove(dir); err != nil {
					t.Errorf("the pod's cgroup: %v", err)
				}
			}
		})
	}
}

// cgroups are the folders of a cgroup, one for each hierarchy.
func cgroups(name string) (found []string) {
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		files, _ := filepath.Glob(filepath.Join(mount, name, "cgroup.procs"))
		for _, file := range files {
			// Where the specs hide a hierarchy from crun, it makes folders that are none.
			var fs unix.Statfs_t
			if unix.Statfs(file, &fs) == nil && (fs.Type == unix.CGROUP_SUPER_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC) {
				found = append(found, filepath.Dir(file))
			}
		}
	}
	return found
}

func podStats(t *testing.T, p *pod) *cri.PodSandboxStats {
	t.Helper()
	s := must[*cri.PodSandboxStats](t, "PodSandboxStats")(runtime.PodSandboxStats(p.ctx, p.id))
	if a := s.GetAttributes(); a.GetId() != p.id || a.GetMetadata().GetName() != p.cfg.Metadata.Name || a.GetLabels()["conformance"] != p.cfg.Metadata.Name {
		t.Errorf("attributes %v", a)
	}
	if s.GetLinux() == nil {
		t.Fatal("no statistics of Linux")
	}
	return s
}

func checkPodStats(t *testing.T, p *pod, containers ...*container) {
	t.Helper()
	var s *cri.LinuxPodSandboxStats
	eventually(t, "the pod's processor time and rate", func() bool {
		s = podStats(t, p).GetLinux()
		return s.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 && s.GetCpu().GetUsageNanoCores() != nil
	})
	if s.Cpu.Timestamp == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetMemory().GetTimestamp() == 0 {
		t.Errorf("processor %v, memory %v", s.GetCpu(), s.GetMemory())
	}
	if n := s.GetProcess().GetProcessCount().GetValue(); n < uint64(len(containers)) {
		t.Errorf("%d processes", n)
	}
	network := s.GetNetwork()
	if network.GetTimestamp() == 0 || network.GetDefaultInterface().GetName() != "eth0" || len(network.GetInterfaces()) == 0 {
		t.Errorf("network %v", network)
	}
	for _, one := range network.GetInterfaces() {
		if one.Name == "lo" || one.RxBytes == nil || one.RxErrors == nil || one.TxBytes == nil || one.TxErrors == nil {
			t.Errorf("interface %v", one)
		}
	}
	if len(s.GetContainers()) != len(containers) {
		t.Fatalf("containers %v", s.GetContainers())
	}
	for _, k := range containers {
		found := false
		for _, of := range s.Containers {
			if of.GetAttributes().GetId() == k.id {
				found = true
				checkStats(t, k, of)
				if used := s.Cpu.UsageCoreNanoSeconds.Value; used < of.Cpu.UsageCoreNanoSeconds.Value {
					t.Errorf("the pod used %d, its container %v", used, of.Cpu)
				}
			}
		}
		if !found {
			t.Errorf("%s is missing", k.id)
		}
	}
}

func TestPodSandboxStats(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, ownCgroup(t))
	a, b := p.run(idle), p.run(idle)
	p.create(image(t, "busybox:1"), []string{"true"})
	checkPodStats(t, p, a, b)
	before := podStats(t, p).Linux.Network.DefaultInterface.TxBytes.Value
	a.exec("ping -c 1 -W 1 10.255.255.254 >/dev/null; true")
	eventually(t, "more bytes sent", func() bool {
		return podStats(t, p).Linux.Network.DefaultInterface.TxBytes.Value > before
	})
}

// A pod whose request names no cgroup has the sum of its containers.
func TestPodSandboxStatsWithoutItsOwnCgroup(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	checkPodStats(t, p, p.run(idle), p.run(idle))
	shared := runPod(t, ctx, sharedPid)
	checkPodStats(t, shared, shared.run(idle))
}

func TestPodSandboxStatsHostNetwork(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, hostNetwork)
	p.run(idle)
	if s := podStats(t, p).GetLinux(); s.GetNetwork() != nil || len(s.GetContainers()) != 1 {
		t.Errorf("network %v, containers %v", s.GetNetwork(), s.GetContainers())
	}
}

// The kubelet asks for "" to see whether the call is there at all.
func TestPodSandboxStatsUnknown(t *testing.T) {
	ctx := spec(t)
	_, err := runtime.PodSandboxStats(ctx, noSuchID)
	wantCode(t, err, "PodSandboxStats", codes.NotFound)
	_, err = runtime.PodSandboxStats(ctx, "")
	wantCode(t, err, "PodSandboxStats of nothing", codes.NotFound, codes.InvalidArgument)
}

func TestPodSandboxStatsOfAStoppedPod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	p.run(idle)
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	if s := podStats(t, p).GetLinux(); s.GetNetwork() != nil || len(s.GetContainers()) != 0 {
		t.Errorf("network %v, containers %v", s.GetNetwork(), s.GetContainers())
	}
	list := must[[]*cri.PodSandboxStats](t, "ListPodSandboxStats")(
		runtime.ListPodSandboxStats(ctx, &cri.PodSandboxStatsFilter{Id: p.id}))
	if len(list) != 0 {
		t.Errorf("listed: %v", list)
	}
}

func TestListPodSandboxStatsFilters(t *testing.T) {
	ctx := spec(t)
	group := unique("group")
	label := func(c *cri.PodSandboxConfig) { c.Labels["group"] = group }
	a, b := runPod(t, ctx, label), runPod(t, ctx, label)
	for name, k := range map[string]struct {
		filter *cri.PodSandboxStatsFilter
		want   []string
	}{
		"id":           {&cri.PodSandboxStatsFilter{Id: a.id}, []string{a.id}},
		"truncated id": {&cri.PodSandboxStatsFilter{Id: a.id[:13]}, []string{a.id}},
		"unknown id":   {&cri.PodSandboxStatsFilter{Id: noSuchID}, nil},
		"label":        {&cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"group": group}}, []string{b.id, a.id}},
	} {
		list := must[[]*cri.PodSandboxStats](t, name)(runtime.ListPodSandboxStats(ctx, k.filter))
		var got []string
		for _, s := range list {
			got = append(got, s.GetAttributes().GetId())
		}
		if strings.Join(got, " ") != strings.Join(k.want, " ") {
			t.Errorf("%s: %v, want %v", name, got, k.want)
		}
	}
}

// What has ended keeps the figure of its layer, and has no other.
func TestContainerStatsOfTheExited(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, _ := p.finish("dd if=/dev/zero of=/file bs=1M count=2 2>/dev/null")
	var s *cri.ContainerStats
	eventually(t, "what it wrote last", func() bool {
		s = must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
		return s.GetWritableLayer().GetUsedBytes().GetValue() >= 2<<20
	})
	if s.GetCpu() != nil || s.GetMemory() != nil {
		t.Errorf("of one that has ended: %v", s)
	}
	created := p.create(image(t, "busybox:1"), []string{"true"})
	s = must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, created.id))
	if s.GetWritableLayer().GetInodesUsed().GetValue() == 0 {
		t.Errorf("of one that was created: %v", s)
	}
}

// The figure of the writable layer follows what is written and what is removed.
func TestWritableLayerFollows(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	used := func() (uint64, uint64) {
		s := must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
		return s.GetWritableLayer().GetUsedBytes().GetValue(), s.GetWritableLayer().GetInodesUsed().GetValue()
	}
	k.exec("mkdir /d && dd if=/dev/zero of=/d/file bs=1M count=8 2>/dev/null")
	eventually(t, "8 MiB", func() bool { bytes, _ := used(); return bytes >= 8<<20 })
	k.exec("rm /d/file")
	eventually(t, "8 MiB less", func() bool { bytes, _ := used(); return bytes < 8<<20 })
	_, before := used()
	k.exec("for i in $(seq 50); do : >/d/$i; done")
	eventually(t, "50 inodes", func() bool { _, inodes := used(); return inodes >= before+50 })
}

// A stop that takes its time holds up nobody who only looks.
func TestStatsWhileAContainerIsStopped(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("trap : TERM; while :; do sleep 0.1; done")
	k.trapped()
	stopped := make(chan error, 1)
	long := within(t, patience*4)
	go func() {
		_, err := rawRuntime.StopContainer(long, &cri.StopContainerRequest{ContainerId: k.id, Timeout: 3600})
		stopped <- err
	}()
	for range 20 {
		checkStats(t, k, must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id)))
		list := must[[]*cri.ContainerStats](t, "ListContainerStats")(
			runtime.ListContainerStats(ctx, &cri.ContainerStatsFilter{PodSandboxId: p.id}))
		if len(list) != 1 {
			t.Errorf("%d in the list", len(list))
		}
		if n := len(podStats(t, p).Linux.Containers); n != 1 {
			t.Errorf("%d in the pod", n)
		}
		if s := k.status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("state %v", s.State)
		}
		must[[]*cri.PodSandboxMetrics](t, "ListPodSandboxMetrics")(runtime.ListPodSandboxMetrics(ctx))
		select {
		case err := <-stopped:
			t.Fatalf("the stop has ended: %v", err)
		default:
		}
	}
	ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer at once")
	ok(t, <-stopped, "the long StopContainer")
}

// ---- what cAdvisor asks for

func inspect(t *testing.T, ctx context.Context, path string) (int, map[string]any) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(endpoint, "unix://"))
		},
	}}
	request := must[*http.Request](t, path)(http.NewRequestWithContext(ctx, http.MethodGet, "http://crio"+path, nil))
	answer := must[*http.Response](t, path)(client.Do(request))
	defer answer.Body.Close()
	body := must[[]byte](t, path)(io.ReadAll(answer.Body))
	var fields map[string]any
	_ = json.Unmarshal(body, &fields)
	return answer.StatusCode, fields
}

// cAdvisor measures root, less /merged, plus /diff; and finds a pod's network by a cgroup with the
// pod's id, the label POD and a live pid.
func TestInspectForCAdvisor(t *testing.T) {
	ctx := spec(t)
	for name, options := range map[string][]func(*cri.PodSandboxConfig){
		"no process": {ownCgroup(t)}, "shared pid": {ownCgroup(t), sharedPid},
	} {
		p := runPod(t, ctx, options...)
		k := p.run(idle)
		k.exec("echo x >/file")
		diff := func(fields map[string]any) string {
			root, _ := fields["root"].(string)
			return filepath.Join(strings.TrimSuffix(root, "/merged"), "diff")
		}
		code, of := inspect(t, ctx, "/containers/"+k.id)
		if code != http.StatusOK || !exists(filepath.Join(diff(of), "file")) {
			t.Errorf("%s: container: %d %v", name, code, of)
		}
		code, of = inspect(t, ctx, "/containers/"+p.id)
		labels, _ := of["labels"].(map[string]any)
		if code != http.StatusOK || !exists(diff(of)) || labels["io.kubernetes.container.name"] != "POD" || labels["conformance"] != p.cfg.Metadata.Name {
			t.Errorf("%s: pod: %d %v", name, code, of)
		}
		pid, _ := of["pid"].(float64)
		dev := must[[]byte](t, "net/dev")(os.ReadFile(filepath.Join("/proc", strconv.Itoa(int(pid)), "net/dev")))
		if !strings.Contains(string(dev), "eth0") {
			t.Errorf("%s: pid %v has not the pod's network: %s", name, pid, dev)
		}
		group := filepath.Join(p.cfg.Linux.CgroupParent, "crio-"+p.id)
		if len(cgroups(group)) == 0 {
			t.Errorf("%s: no cgroup %s", name, group)
		}
		ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
		if left := cgroups(group); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	if code, _ := inspect(t, ctx, "/containers/"+noSuchID); code != http.StatusNotFound {
		t.Errorf("an unknown one: %d", code)
	}
	if _, info := inspect(t, ctx, "/info"); info["storage_driver"] != "overlay" || !exists(info["storage_root"].(string)) {
		t.Errorf("info: %v", info)
	}
}

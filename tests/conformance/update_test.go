package conformance

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limit reads a limit of the container's cgroup, by its files' names of version 1 and 2.
func (c *container) limit(v1, v2 string) string {
	c.t.Helper()
	return strings.TrimSpace(c.exec("cat /sys/fs/cgroup/" + v1 + " 2>/dev/null || cat /sys/fs/cgroup/" + v2))
}

func (c *container) memory() string {
	c.t.Helper()
	return c.limit("memory/memory.limit_in_bytes", "memory.max")
}

func (c *container) update(r *cri.LinuxContainerResources) error {
	return runtime.UpdateContainerResources(c.ctx, c.id, &cri.ContainerResources{Linux: r})
}

func bytesOf(mib int64) *cri.LinuxContainerResources {
	return &cri.LinuxContainerResources{MemoryLimitInBytes: mib << 20}
}

func mib(n int64) string { return strconv.FormatInt(n<<20, 10) }

func TestUpdateContainerResourcesIsAPatch(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, resources(&cri.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuPeriod: 100_000, CpuQuota: 50_000, OomScoreAdj: 100,
	}))
	// As the kubelet's CPU manager asks.
	ok(t, k.update(&cri.LinuxContainerResources{CpusetCpus: "0"}), "UpdateContainerResources")
	if got := k.limit("cpuset/cpuset.cpus", "cpuset.cpus"); got != "0" {
		t.Errorf("CPUs %q", got)
	}
	if got := k.memory(); got != mib(64) {
		t.Errorf("memory %s", got)
	}
	// A period alone keeps the quota.
	ok(t, k.update(&cri.LinuxContainerResources{CpuPeriod: 200_000}), "UpdateContainerResources")
	quota := k.exec("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us 2>/dev/null; true")
	if got := strings.Join(strings.Fields(quota), " "); got != "50000 200000" {
		t.Errorf("quota and period %q", got)
	}
	ok(t, k.update(&cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 1024, CpuQuota: -1}), "UpdateContainerResources")
	if got := k.memory(); got != mib(128) {
		t.Errorf("memory %s", got)
	}
	r := k.status().GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpuShares() != 1024 || r.GetCpuQuota() != -1 ||
		r.GetCpuPeriod() != 200_000 || r.GetCpusetCpus() != "0" || r.GetOomScoreAdj() != 100 {
		t.Errorf("status says %v", r)
	}
	// Nothing asked for changes nothing.
	ok(t, k.update(&cri.LinuxContainerResources{}), "UpdateContainerResources")
	if got := k.status().GetResources().GetLinux(); got.String() != r.String() {
		t.Errorf("status says %v", got)
	}
}

func TestUpdateContainerResourcesOfMemoryAndSwap(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, resources(bytesOf(64)))
	// Together, past one another, up and down.
	for _, c := range []struct{ limit, sum, want, swap int64 }{
		{200, 300, 200, 100}, {32, 40, 32, 8}, {400, 0, 400, 8}, {16, 500, 16, 484}, {64, 64, 64, 0}, {128, 0, 128, 0},
	} {
		ok(t, k.update(&cri.LinuxContainerResources{MemoryLimitInBytes: c.limit << 20, MemorySwapLimitInBytes: c.sum << 20}), "UpdateContainerResources")
		if got := k.memory(); got != mib(c.want) {
			t.Errorf("%v: memory %s", c, got)
		}
		switch got := k.exec("cd /sys/fs/cgroup; cat memory.swap.max memory/memory.memsw.limit_in_bytes 2>/dev/null; true"); strings.TrimSpace(got) {
		case mib(c.swap), mib(c.want + c.swap), "":
		default:
			t.Errorf("%v: swap %q", c, got)
		}
	}
}

func TestUpdateContainerResourcesBelowWhatIsInUse(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	// Its buffer is full, and nobody takes it away.
	k := p.run("dd if=/dev/zero bs=48M count=1 | sleep 1000", resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuShares: 512}))
	eventually(t, "48 MiB in use", func() bool {
		n, _ := strconv.Atoi(k.limit("memory/memory.usage_in_bytes", "memory.current"))
		return n > 48<<20
	})
	err := k.update(&cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, CpuShares: 1024})
	wantCode(t, err, "below what is in use", codes.FailedPrecondition)
	if err != nil && !strings.Contains(err.Error(), "cannot decrease memory limit") {
		t.Error(err)
	}
	if got := k.memory(); got != mib(96) {
		t.Errorf("memory %s", got)
	}
	if got := k.limit("cpu/cpu.shares", "cpu.weight"); got != "512" && got != "20" {
		t.Errorf("CPU shares %s: it is all or nothing", got)
	}
	if r := k.status().GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpuShares() != 512 {
		t.Errorf("status says %v", r)
	}
	ok(t, k.update(bytesOf(64)), "UpdateContainerResources")
}

func TestUpdateContainerResourcesOfTheOOMScore(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("echo 777 > /proc/self/oom_score_adj; sleep 1000 & echo 100 > /proc/self/oom_score_adj; sleep 1001 & "+idle,
		resources(&cri.LinuxContainerResources{OomScoreAdj: 100}))
	scores := "for s in 1 $(pidof sleep | tr ' ' '\\n' | sort -n | head -2); do cat /proc/$s/oom_score_adj; done"
	eventually(t, "its processes", func() bool { return k.exec(scores) == "100\n777\n100\n" })
	ok(t, k.update(&cri.LinuxContainerResources{OomScoreAdj: 500}), "UpdateContainerResources")
	// One that has given itself a score of its own keeps it.
	if got := k.exec(scores); got != "500\n777\n500\n" {
		t.Errorf("scores %q", got)
	}
	ok(t, k.update(&cri.LinuxContainerResources{CpuShares: 512}), "UpdateContainerResources")
	if got := k.exec("cat /proc/1/oom_score_adj"); got != "500\n" {
		t.Errorf("score %q: 0 says nothing", got)
	}
	if r := k.status().GetResources().GetLinux(); r.GetOomScoreAdj() != 500 {
		t.Errorf("status says %v", r)
	}
}

func TestUpdateContainerResourcesInEachState(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	wantCode(t, runtime.UpdateContainerResources(ctx, unique("none"), &cri.ContainerResources{Linux: bytesOf(64)}), "unknown", codes.NotFound)
	k := p.create(image(t, "busybox:1"), []string{"sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"})
	ok(t, k.update(bytesOf(64)), "created")
	k.start()
	if got := k.memory(); got != mib(64) {
		t.Errorf("memory %s", got)
	}
	// A stop is under way that will not come to its end by itself.
	stopped := make(chan error, 1)
	go func() {
		stopped <- runtime.StopContainer(ctx, k.id, 100)
	}()
	time.Sleep(100 * time.Millisecond)
	ok(t, k.update(bytesOf(128)), "while it is being stopped")
	if got := k.memory(); got != mib(128) {
		t.Errorf("memory %s", got)
	}
	ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer")
	ok(t, <-stopped, "StopContainer")
	wantCode(t, k.update(bytesOf(64)), "exited", codes.FailedPrecondition)
	if r := k.status().GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 128<<20 {
		t.Errorf("status says %v", r)
	}
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	wantCode(t, k.update(bytesOf(64)), "removed", codes.NotFound)
}

// What makes no sense is refused by its name, at creation and later.
func TestContainerResourcesThatMakeNoSense(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	bad := map[string][]*cri.LinuxContainerResources{
		"cpu_period":                 {{CpuPeriod: -1}, {CpuPeriod: 999}, {CpuPeriod: 1_000_001}},
		"cpu_quota":                  {{CpuQuota: -2}, {CpuQuota: 999}},
		"cpu_shares":                 {{CpuShares: -1}, {CpuShares: 1}, {CpuShares: 262_145}},
		"memory_limit_in_bytes":      {{MemoryLimitInBytes: -2}, {MemoryLimitInBytes: 4096}},
		"memory_swap_limit_in_bytes": {{MemorySwapLimitInBytes: -2}, {MemorySwapLimitInBytes: 64 << 20}, {MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 32 << 20}},
		"oom_score_adj":              {{OomScoreAdj: -1001}, {OomScoreAdj: 1001}},
		"cpuset_cpus":                {{CpusetCpus: "a"}, {CpusetCpus: "3-1"}},
		"cpuset_mems":                {{CpusetMems: "0,"}},
		"hugepage_limits":            {{HugepageLimits: []*cri.HugepageLimit{{PageSize: "3MB", Limit: 1}}}, {HugepageLimits: []*cri.HugepageLimit{{PageSize: "../2MB"}}}},
		"unified":                    {{Unified: map[string]string{"cgroup.kill": "1"}}, {Unified: map[string]string{"../memory.max": "1"}}},
	}
	before := k.status().GetResources().String()
	for field, all := range bad {
		for _, r := range all {
			for what, err := range map[string]error{"update": k.update(r), "create": func() error {
				_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, resources(r)))
				return err
			}()} {
				wantInvalid(t, err, what+" with "+r.String())
				if *peer == "" && err != nil && !strings.Contains(err.Error(), field+":") {
					t.Errorf("%s does not name %s: %v", what, field, err)
				}
			}
		}
	}
	// No such CPU: it is the kernel who says so.
	wantInvalid(t, k.update(&cri.LinuxContainerResources{CpusetCpus: "4000", CpuShares: 1024}), "CPU 4000")
	if after := k.status().GetResources().String(); after != before {
		t.Errorf("before %s, after %s", before, after)
	}
}

// Limits of version 2's files are for nodes that have it.
func TestContainerResourcesUnified(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	unified := &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, Unified: map[string]string{"memory.high": "50003968"}}
	k, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"sh", "-c", idle}, resources(unified)))
	if !exists("/sys/fs/cgroup/cgroup.controllers") {
		wantInvalid(t, err, "version 1")
		return
	}
	ok(t, err, "CreateContainer")
	k.start()
	if got := k.exec("cat /sys/fs/cgroup/memory.high"); got != "50003968\n" {
		t.Errorf("memory.high %s", got)
	}
	ok(t, k.update(&cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}), "UpdateContainerResources")
	if got := k.exec("cat /sys/fs/cgroup/memory.high"); got != "max\n" {
		t.Errorf("memory.high %s", got)
	}
}

// The kubelet sends a limit for each size of pages that the node has, mostly 0.
func TestContainerResourcesHugePagesOfTheKubelet(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	var pages []*cri.HugepageLimit
	for folder, size := range map[string]string{"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB"} {
		if exists("/sys/kernel/mm/hugepages/" + folder) {
			pages = append(pages, &cri.HugepageLimit{PageSize: size})
		}
	}
	k := p.run(idle, resources(&cri.LinuxContainerResources{HugepageLimits: pages}))
	ok(t, k.update(&cri.LinuxContainerResources{HugepageLimits: pages}), "UpdateContainerResources")
	if got := k.status().GetResources().GetLinux().GetHugepageLimits(); len(got) != len(pages) {
		t.Errorf("status says %v", got)
	}
}

// Another than the first process was killed: both of the kubelet's other runtimes say so.
func TestContainerWhoseChildWasOutOfMemory(t *testing.T) {
	ctx := spec(t)
	for name, option := range map[string]func(*cri.PodSandboxConfig){"own": func(*cri.PodSandboxConfig) {}, "shared": sharedPid} {
		t.Run(name, func(t *testing.T) {
			known(t)
			p := runPod(t, ctx, option)
			_, s := p.finish("tail /dev/zero; exit 4", resources(bytesOf(16)))
			if s.ExitCode != 4 || s.Reason != "OOMKilled" {
				t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
			}
			k := p.create(image(t, "busybox:1"), []string{"tail", "/dev/zero"}, resources(bytesOf(16)))
			k.start()
			if s := k.wait(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
				t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
			}
		})
	}
}

func TestExecIsInTheContainersCgroup(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	if first, own := k.exec("cat /proc/1/cgroup"), k.exec("cat /proc/self/cgroup"); first != own || first == "" {
		t.Errorf("the first process is in %q, a command in %q", first, own)
	}
}

// ---- pods

// groups are the folders of a cgroup, of all hierarchies that it is in.
func groups(name string) []string {
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + name)
		for _, dir := range found {
			var fs unix.Statfs_t
			if unix.Statfs(dir, &fs) == nil && (fs.Type == unix.CGROUP_SUPER_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC) {
				all = append(all, dir)
			}
		}
	}
	return all
}

// groupFile reads a file of a cgroup from the hierarchy that has it.
func groupFile(t *testing.T, name, v1, v2 string) string {
	t.Helper()
	for _, dir := range groups(name) {
		for _, file := range []string{v1, v2} {
			if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	t.Fatalf("cgroup %s has neither %s nor %s", name, v1, v2)
	return ""
}

func skipWithoutCgroupfs(t *testing.T, ctx context.Context) {
	t.Helper()
	c, err := runtime.RuntimeConfig(ctx)
	if err != nil || c.GetLinux().GetCgroupDriver() != cri.CgroupDriver_CGROUPFS {
		t.Skip("cgroups are systemd's to make")
	}
}

func TestPodResourcesWhereNobodyElseMakesItsCgroup(t *testing.T) {
	ctx := spec(t)
	skipWithoutCgroupfs(t, ctx)
	parent := unique("conformance")
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = "/" + parent
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 256 << 20, CpuShares: 500}
		c.Linux.Overhead = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, CpuShares: 12}
	})
	memory := func() string { return groupFile(t, parent, "memory.limit_in_bytes", "memory.max") }
	if got := memory(); got != mib(272) {
		t.Errorf("memory %s", got)
	}
	if got := groupFile(t, parent, "cpu.shares", "cpu.weight"); got != "512" && got != "20" {
		t.Errorf("CPU shares %s", got)
	}
	// By this group cAdvisor knows the pod.
	if len(groups(parent+"/crio-"+p.id)) == 0 {
		t.Error("the pod has no cgroup of its own")
	}
	update := func(id string, resources, overhead *cri.LinuxContainerResources) error {
		_, err := runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: resources, Overhead: overhead})
		return err
	}
	ok(t, update(p.id, bytesOf(512), nil), "UpdatePodSandboxResources")
	if got := memory(); got != mib(528) {
		t.Errorf("memory %s", got)
	}
	ok(t, update(p.id, nil, bytesOf(32)), "UpdatePodSandboxResources")
	if got := memory(); got != mib(544) {
		t.Errorf("memory %s", got)
	}
	wantInvalid(t, update(p.id, &cri.LinuxContainerResources{CpuPeriod: 5}, nil), "cpu_period")
	wantInvalid(t, update(p.id, nil, &cri.LinuxContainerResources{OomScoreAdj: 5}), "oom_score_adj")
	if got := memory(); got != mib(544) {
		t.Errorf("memory %s", got)
	}
	wantCode(t, update(unique("none"), bytesOf(1), nil), "unknown", codes.NotFound)
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	wantCode(t, update(p.id, bytesOf(64), nil), "stopped", codes.FailedPrecondition)
	ok(t, runtime.RemovePodSandbox(ctx, p.id), "RemovePodSandbox")
	if left := groups(parent); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPodResourcesWhereTheKubeletMakesItsCgroup(t *testing.T) {
	ctx := spec(t)
	skipWithoutCgroupfs(t, ctx)
	parent := unique("conformance")
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if exists("/sys/fs/cgroup/cgroup.procs") {
		tops = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	for _, top := range tops {
		dir := filepath.Join(filepath.Dir(top), parent)
		ok(t, os.Mkdir(dir, 0o755), "the kubelet's cgroup")
		t.Cleanup(func() { eventually(t, "the cgroup's end", func() bool { return unix.Rmdir(dir) == nil }) })
	}
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = "/" + parent
		c.Linux.Resources = bytesOf(256)
	})
	before := groupFile(t, parent, "memory.limit_in_bytes", "memory.max")
	if before == mib(256) {
		t.Error("the limits of the kubelet's cgroup are not ours to set")
	}
	_, err := runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: bytesOf(512)})
	ok(t, err, "UpdatePodSandboxResources")
	if got := groupFile(t, parent, "memory.limit_in_bytes", "memory.max"); got != before {
		t.Errorf("memory %s, before %s", got, before)
	}
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	ok(t, runtime.RemovePodSandbox(ctx, p.id), "RemovePodSandbox")
	if left := groups(parent); len(left) != len(tops) {
		t.Errorf("there are %v of %d", left, len(tops))
	}
	if left := groups(parent + "/crio-*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

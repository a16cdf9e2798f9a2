package conformance

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

func resources(r *cri.LinuxContainerResources) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Linux.Resources = r }
}

func TestContainerResourcesAreSetAndEchoed(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, resources(&cri.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuPeriod: 100_000, CpuQuota: 50_000,
	}))
	// Of cgroup v2 and v1 one is there.
	for _, c := range []struct{ files, want string }{
		{"/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n"},
		{"/sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"},
	} {
		if got := k.exec("cat " + c.files + " 2>/dev/null; true"); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.files, got, c.want)
		}
	}
	r := k.status().GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuShares() != 512 || r.GetCpuQuota() != 50_000 {
		t.Errorf("status says %v", r)
	}
}

func TestContainerOutOfMemory(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.create(image(t, "busybox:1"), []string{"tail", "/dev/zero"}, resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}))
	k.start()
	if s := k.wait(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
	}
}

func TestContainerStatusTellsTheUser(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.create(image(t, "user-www-data:1"), []string{"sh", "-c", idle})
	k.start()
	u := k.status().GetUser().GetLinux()
	if u == nil || u.Uid != 33 || u.Gid != 33 {
		t.Errorf("user %v", u)
	}
}

func TestContainerDevices(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/my-zero", Permissions: "rwm"}}
	})
	got := k.exec(`for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done
		for d in fd stdin stdout stderr ptmx; do [ -e /dev/$d ] || [ -L /dev/$d ] || echo no $d; done
		for d in shm mqueue pts; do [ -d /dev/$d ] || echo no $d; done
		head -c 3 /dev/my-zero | od -An -tx1
		[ -e /dev/kmsg ] && echo kmsg; [ -e /dev/mem ] && echo mem; true`)
	if strings.TrimSpace(got) != "00 00 00" {
		t.Errorf("got %q", got)
	}
}

func TestContainerProcIsMasked(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore", "/proc/timer_list", "/sys/firmware", "/not/there"}
		c.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys", "/proc/sysrq-trigger"}
	})
	got := k.exec(`cat /proc/timer_list | wc -c; ls /sys/firmware | wc -l; (echo 1 > /proc/sys/kernel/shmmni) 2>/dev/null && echo wrote; true`)
	if got != "0\n0\n" {
		t.Errorf("got %q", got)
	}
}

func TestContainerCapabilities(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	caps := func(add, drop []string) string {
		k := p.run(idle, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: add, DropCapabilities: drop}
		})
		return k.exec("(touch /f && chown 5 /f) 2>/dev/null && echo chown; ip link add dummy9 type dummy 2>/dev/null; ip link set lo mtu 1400 2>/dev/null && echo net; true")
	}
	if got := caps(nil, nil); got != "chown\n" {
		t.Errorf("by default: %q", got)
	}
	if got := caps([]string{"NET_ADMIN"}, []string{"CHOWN"}); got != "net\n" {
		t.Errorf("with NET_ADMIN, without CHOWN: %q", got)
	}
	if got := caps(nil, []string{"ALL"}); got != "" {
		t.Errorf("without any: %q", got)
	}
}

func TestContainerNoNewPrivileges(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NoNewPrivs = true })
	if got := k.exec("grep NoNewPrivs /proc/1/status"); got != "NoNewPrivs:\t1\n" {
		t.Errorf("got %q", got)
	}
}

func TestContainerSeccomp(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for kind, want := range map[cri.SecurityProfile_ProfileType]string{
		cri.SecurityProfile_Unconfined: "0", cri.SecurityProfile_RuntimeDefault: "2",
	} {
		t.Run(kind.String(), func(t *testing.T) {
			known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			k := p.run(idle, func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: kind}
			})
			if got := k.exec("grep ^Seccomp: /proc/1/status"); got != "Seccomp:\t"+want+"\n" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// The kubelet kills what is in the pod's cgroup, and removes it, before it removes the pod.
func TestPodWhoseCgroupIsGone(t *testing.T) {
	ctx := spec(t)
	if c, err := runtime.RuntimeConfig(ctx); err == nil && c.GetLinux().GetCgroupDriver() == cri.CgroupDriver_SYSTEMD {
		t.Skip("the cgroup would be systemd's to remove")
	}
	parent := unique("conformance")
	removed := func() bool {
		var dirs []string
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			found, _ := filepath.Glob(pattern + parent)
			for _, dir := range found {
				// Where a hierarchy is not mounted, a runtime may have made a plain folder.
				var fs unix.Statfs_t
				if unix.Statfs(dir, &fs) == nil && (fs.Type == unix.CGROUP_SUPER_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC) {
					dirs = append(dirs, dir)
				}
			}
		}
		for _, dir := range dirs {
			var inside []string
			filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					inside = append(inside, path)
				}
				return nil
			})
			for _, path := range slices.Backward(inside) {
				data, _ := os.ReadFile(path + "/cgroup.procs")
				for _, word := range strings.Fields(string(data)) {
					if pid, err := strconv.Atoi(word); err == nil && pid > 1 {
						unix.Kill(pid, unix.SIGKILL)
					}
				}
				unix.Rmdir(path)
			}
		}
		for _, dir := range dirs {
			if exists(dir) {
				return false
			}
		}
		return true
	}
	t.Cleanup(func() { eventually(t, "the cgroup's end", removed) })
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/" + parent })
	k := p.run("while :; do sleep 1; done")
	found, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
	if len(found) == 0 && !exists("/sys/fs/cgroup/"+parent) {
		t.Error("the pod is not in the cgroup that was asked for")
	}
	eventually(t, "the cgroup's end", removed)
	if s := k.wait(); s.ExitCode != 137 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	ok(t, runtime.StopContainer(ctx, k.id, 5), "StopContainer")
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	ok(t, runtime.RemovePodSandbox(ctx, p.id), "RemovePodSandbox")
}

// Any user may open its standard output again.
func TestContainerOutputCanBeReopenedByAnyUser(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, s := p.finish("echo out > /dev/stdout; echo err > /dev/stderr", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	})
	if got := text(t, readLog(t, k.logPath()), "stderr"); s.ExitCode != 0 || k.output() != "out\n" || got != "err\n" {
		t.Errorf("exit code %d, output %q, %q", s.ExitCode, k.output(), got)
	}
}

// The attempt before may have been created, while its answer was lost.
func TestCreateContainerAfterOneThatWasNeverStarted(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	name := unique("ctr")
	attempt := func(n uint32, log string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Metadata, c.LogPath = &cri.ContainerMetadata{Name: name, Attempt: n}, log
		}
	}
	first := p.create(image(t, "busybox:1"), []string{"true"}, attempt(0, "0.log"))
	_, s := p.finish("exit 0", attempt(1, "1.log"))
	if s.ExitCode != 0 || s.Metadata.Attempt != 1 {
		t.Errorf("got %v", s)
	}
	if s := first.status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("the first is %v", s.State)
	}
	ok(t, runtime.RemoveContainer(ctx, first.id), "RemoveContainer")
}

// With the gate for streamed lists on, the kubelet asks so first.
func TestListsThroughAStreamingClient(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	r := must[internalapi.RuntimeService](t, "client")(criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(patience).WithUseStreaming(true).Build(ctx))
	defer r.Close(context.Background())
	i := must[internalapi.ImageManagerService](t, "client")(criclient.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(patience).WithUseStreaming(true).Build(ctx))
	defer i.Close(context.Background())
	pods := must[[]*cri.PodSandbox](t, "pods")(r.ListPodSandbox(ctx, &cri.PodSandboxFilter{Id: p.id}))
	containers := must[[]*cri.Container](t, "containers")(r.ListContainers(ctx, &cri.ContainerFilter{Id: k.id}))
	stats := must[[]*cri.ContainerStats](t, "stats")(r.ListContainerStats(ctx, &cri.ContainerStatsFilter{Id: k.id}))
	all := must[[]*cri.Image](t, "images")(i.ListImages(ctx, nil))
	if len(pods) != 1 || len(containers) != 1 || len(stats) != 1 || len(all) == 0 {
		t.Errorf("%d pods, %d containers, %d stats, %d images", len(pods), len(containers), len(stats), len(all))
	}
}

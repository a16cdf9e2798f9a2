package conformance

import (
	"context"
	"strings"
	"testing"

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

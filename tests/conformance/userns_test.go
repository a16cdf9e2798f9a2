package conformance

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/util/httpstream"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idsOfAPod is how many ids the kubelet gives to a pod.
const idsOfAPod = 65536

// idsFrom is one mapping from root on, as the kubelet asks for it.
func idsFrom(host uint32) []*cri.IDMapping {
	return []*cri.IDMapping{{ContainerId: 0, HostId: host, Length: idsOfAPod}}
}

// ownUsers gives a pod a user namespace of its own.
func ownUsers(uid, gid uint32) func(*cri.PodSandboxConfig) {
	return func(cfg *cri.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{
			Mode: cri.NamespaceMode_POD, Uids: idsFrom(uid), Gids: idsFrom(gid),
		}
	}
}

// withUsers leaves a spec out where the runtime says that it cannot do it.
func withUsers(t *testing.T, ctx context.Context) {
	t.Helper()
	s := must[*cri.StatusResponse](t, "Status")(runtime.Status(ctx, false))
	for _, h := range s.RuntimeHandlers {
		if h.Name == handler() && h.Features.GetUserNamespaces() {
			return
		}
	}
	t.Skip("the runtime or the kernel has no user namespaces for pods")
}

// idMapped is a mount whose files' owners are shown as the pod's.
func (p *pod) idMapped(host, container string) *cri.Mount {
	users := p.cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	return &cri.Mount{HostPath: host, ContainerPath: container, UidMappings: users.Uids, GidMappings: users.Gids}
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var stat unix.Stat_t
	ok(t, unix.Lstat(path, &stat), path)
	return fmt.Sprintf("%d:%d", stat.Uid, stat.Gid)
}

// idsOnTheNode are the effective ids of the container's first process as the node sees them.
func (c *container) idsOnTheNode() string {
	c.t.Helper()
	uid, gid := "", ""
	for line := range strings.Lines(readFile(c.t, fmt.Sprintf("/proc/%d/status", c.pid()))) {
		fields := strings.Fields(line)
		switch fields[0] {
		case "Uid:":
			uid = fields[2]
		case "Gid:":
			gid = fields[2]
		}
	}
	return uid + ":" + gid
}

// pid finds the container's first process as its cgroup has it.
func (c *container) pid() int {
	c.t.Helper()
	entries := must[[]os.DirEntry](c.t, "/proc")(os.ReadDir("/proc"))
	for _, entry := range entries {
		var pid int
		if _, err := fmt.Sscan(entry.Name(), &pid); err != nil {
			continue
		}
		group, _ := os.ReadFile("/proc/" + entry.Name() + "/cgroup")
		if strings.Contains(string(group), c.id) {
			return pid
		}
	}
	c.t.Fatal("no process has the container's cgroup")
	return 0
}

func squeezed(text string) string { return strings.Join(strings.Fields(text), " ") }

// Two pods with different ids on one image: each sees root's files, the node sees the pods' own, and
// the image's layers stay as they are.
func TestUserNamespaceOwners(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	dir := t.TempDir()
	roots := writeFile(t, dir+"/roots", "of root\n")
	users := writeFile(t, dir+"/users", "of somebody\n")
	ok(t, os.Chown(users, 1000, 1001), "chown")
	ok(t, os.Chmod(dir, 0o777), "chmod")
	for n, ids := range [][2]uint32{{1 << 17, 1 << 17}, {1 << 20, 1 << 21}} {
		uid, gid := ids[0], ids[1]
		p := runPod(t, ctx, ownUsers(uid, gid))
		k := p.run(idle, mounts(p.idMapped(dir, "/mnt/data"), p.idMapped(roots, "/mnt/file")))
		want := fmt.Sprintf("0 %d %d 0 %d %d", uid, idsOfAPod, gid, idsOfAPod)
		if got := squeezed(k.exec("cat /proc/self/uid_map /proc/self/gid_map")); got != want {
			t.Errorf("maps %q, want %q", got, want)
		}
		if got, want := k.idsOnTheNode(), fmt.Sprintf("%d:%d", uid, gid); got != want {
			t.Errorf("the node sees %s, want %s", got, want)
		}
		// Of the image, of criod's own, of the volume.
		files := "/ /bin/busybox /etc/passwd /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /mnt/data/roots /mnt/file"
		if got := k.exec("stat -c %u:%g " + files + " | sort -u"); got != "0:0\n" {
			t.Errorf("owners %q, want root's: %s", got, k.exec("stat -c '%n %u:%g' "+files))
		}
		if got := k.exec("stat -c %u:%g /mnt/data/users"); got != "1000:1001\n" {
			t.Errorf("the volume's owner is %q", got)
		}
		k.exec("echo changed >/etc/passwd; echo x >>/etc/hosts; touch /dev/shm/x; mkdir /new; chown 7:8 /new; stat -c %u:%g /new | grep -q 7:8")
		k.exec(fmt.Sprintf("cd /mnt/data; touch r%d u%d; chown 1000:1001 u%d", n, n, n))
		if got := owner(t, fmt.Sprintf("%s/r%d", dir, n)); got != "0:0" {
			t.Errorf("on the node root's file is %s", got)
		}
		if got := owner(t, fmt.Sprintf("%s/u%d", dir, n)); got != "1000:1001" {
			t.Errorf("on the node the user's file is %s", got)
		}
	}
	// Without a namespace of its own a pod sees what it always saw.
	k := runPod(t, ctx).run(idle)
	if got := k.exec("stat -c %u:%g /bin/busybox /etc/passwd; cat /etc/passwd | grep -c changed || true"); got != "0:0\n0:0\n0\n" {
		t.Errorf("a pod on the node's ids sees %q", got)
	}
}

func TestUserNamespaceUsersWithinIt(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<18))
	dir := t.TempDir()
	ok(t, os.Chmod(dir, 0o777), "chmod")
	k := p.run("echo by name >/dev/stdout; touch /mnt/data/f /tmp/f; stat -c %u:%g /mnt/data/f /tmp/f; "+idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 2000}
		c.Linux.SecurityContext.SupplementalGroups = []int64{3000}
		c.WorkingDir = "/made/for/it"
		c.Mounts = []*cri.Mount{p.idMapped(dir, "/mnt/data")}
	})
	eventually(t, "the files", func() bool { return strings.Count(k.output(), "\n") == 3 })
	if got := k.output(); got != "by name\n1000:2000\n1000:2000\n" {
		t.Errorf("owners %q", got)
	}
	if got := k.exec("id -u; id -g; id -G; pwd; stat -c %u:%g /made/for/it"); got != "1000\n2000\n2000 3000\n/made/for/it\n0:0\n" {
		t.Errorf("got %q", got)
	}
	if got := owner(t, dir+"/f"); got != "1000:2000" {
		t.Errorf("on the node the file is %s", got)
	}
	if got := k.idsOnTheNode(); got != fmt.Sprintf("%d:%d", 1<<17+1000, 1<<18+2000) {
		t.Errorf("the node sees %s", got)
	}
}

// The kubelet asks for the pod's ids on every mount, image volumes among them.
func TestUserNamespaceImageVolume(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<18))
	mapped := func(image, at, path string) *cri.Mount {
		m, users := imageVolume(t, image, at, path), p.idMapped("", "")
		m.UidMappings, m.GidMappings = users.UidMappings, users.GidMappings
		return m
	}
	k := p.run(idle, mounts(
		mapped("files:1", "/one", ""), mapped("layered:1", "/many", ""), mapped("files:1", "/sub", "data/sub"),
		imageVolume(t, "files:1", "/as-on-the-node", ""),
	))
	got := k.exec("cat /one/data/file /many/data/keep /sub/deep; stat -c %u:%g /one/data/file /many/data/keep /sub/deep /as-on-the-node/data/file")
	if got != "of the image\nkept\ndeep\n0:0\n1000:1001\n0:0\n65534:65534\n" {
		t.Errorf("got %q", got)
	}
	if got := k.exec("echo x 2>/dev/null >/one/data/file || echo refused"); got != "refused\n" {
		t.Errorf("got %q", got)
	}
}

// The pod's namespaces are its user namespace's: what its root may do there reaches no further.
func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17), func(cfg *cri.PodSandboxConfig) {
		cfg.Linux.Sysctls = map[string]string{
			"kernel.shm_rmid_forced":              "1",
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
		}
	})
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_ADMIN", "MKNOD"}}
	})
	got := k.exec("cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range")
	if squeezed(got) != "1 0 0 65535" {
		t.Errorf("sysctls %q", got)
	}
	// Its interfaces and host name, a mount of its own; but no device, and nothing of the node's.
	k.exec("ip link set lo mtu 1400; hostname other; mount -t tmpfs none /tmp; grep -q ' lo:' /proc/net/dev")
	if got := k.exec("mknod /null c 1 3 2>/dev/null || echo refused; echo 1 2>/dev/null >/proc/sys/vm/swappiness || echo refused"); got != "refused\nrefused\n" {
		t.Errorf("got %q", got)
	}
	if ip := p.status().GetNetwork().GetIp(); ip == "" || !strings.Contains(k.exec("ip -o addr"), ip) {
		t.Errorf("the pod's address %q is not in %q", ip, k.exec("ip -o addr"))
	}
}

func TestUserNamespacePrivileged(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17), func(cfg *cri.PodSandboxConfig) {
		cfg.Linux.SecurityContext.Privileged = true
	})
	k := p.run(idle, func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	if got := k.exec("id -u; ip link set lo mtu 1400; echo x >/dev/null; mknod /n c 1 3 2>/dev/null || echo no device"); got != "0\nno device\n" {
		t.Errorf("got %q", got)
	}
}

func TestUserNamespaceWithASharedPidNamespace(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17), sharedPid)
	first, second := p.run(idle), p.run(idle)
	one, other := first.exec("readlink /proc/self/ns/pid"), second.exec("readlink /proc/self/ns/pid")
	if one != other {
		t.Errorf("pid namespaces %q and %q", one, other)
	}
	if got := first.exec("kill -0 1 && stat -c %u /proc/1"); got != "0\n" {
		t.Errorf("the first process is %q", got)
	}
	debugger := p.run(idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{
			Pid: cri.NamespaceMode_TARGET, TargetId: first.id,
			UsernsOptions: p.cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions,
		}
	})
	if got := debugger.exec("readlink /proc/self/ns/pid"); got != one {
		t.Errorf("the target's pid namespace is %q, not %q", one, got)
	}
}

func TestUserNamespaceOnTheNodesNetwork(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	s := must[*cri.StatusResponse](t, "Status")(runtime.Status(ctx, false))
	if !s.Features.GetUserNamespacesHostNetwork() {
		t.Fatal("the feature is not named")
	}
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17), hostNetwork)
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	})
	own := must[string](t, "readlink")(os.Readlink("/proc/self/ns/net"))
	if got := k.exec("readlink /proc/self/ns/net; id -u; ls /sys/class/net | grep -x lo"); got != own+"\n0\nlo\n" {
		t.Errorf("got %q", got)
	}
	if got := k.exec("ip link set lo mtu 1400 2>/dev/null || echo refused; touch /sys/x 2>/dev/null || echo refused"); got != "refused\nrefused\n" {
		t.Errorf("the node's network can be changed: %q", got)
	}
	// What the node has mounted below /sys came along; only the container's own cgroup folder did not.
	if got := k.exec(`awk '$5 ~ "^/sys" && $5 !~ "^/sys/fs/cgroup" && $6 !~ "^ro" { print $5 }' /proc/self/mountinfo`); got != "" {
		t.Errorf("writable mounts: %q", got)
	}
}

func TestUserNamespacePortForward(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17))
	_, ports := p.serve()
	d := dialers[0]
	dialer := must[httpstream.Dialer](t, d.name)(d.dial(clientConfig, must[string](t, "PortForward")(forwardURL(ctx, p.id))))
	conn := connect(t, forwardOver(t, dialer, ports["echo"]).address)
	must[int](t, "send")(conn.Write([]byte("there and back")))
	back := make([]byte, len("there and back"))
	must[int](t, "receive")(io.ReadFull(conn, back))
	if string(back) != "there and back" {
		t.Errorf("got %q", back)
	}
}

func TestUserNamespaceExecOnATerminal(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17))
	k := p.run("tty; stat -c %u:%g $(tty); "+idle, func(c *cri.ContainerConfig) { c.Tty = true })
	eventually(t, "the terminal", func() bool { return strings.Count(k.output(), "\n") >= 2 })
	if got := squeezed(k.output()); got != "/dev/pts/0 0:5" && got != "/dev/console 0:5" {
		t.Errorf("the terminal is %q", got)
	}
	shell := wires[0].exec(k, terminal, "sh", "-c", "stat -c owner=%u $(tty); id -u")
	shell.stdout.wait(t, "owner=0")
	ok(t, runtime.StopContainer(ctx, k.id, 5), "StopContainer")
}

func TestUserNamespaceStats(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17))
	k := p.run("dd if=/dev/zero of=/file bs=1M count=4; " + idle)
	eventually(t, "the file", func() bool { return strings.Contains(k.exec("wc -c </file"), "4194304") })
	eventually(t, "its bytes", func() bool {
		s := must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
		return s.GetWritableLayer().GetUsedBytes().GetValue() >= 4<<20 && s.GetMemory() != nil
	})
}

func TestUserNamespaceBadRequests(t *testing.T) {
	ctx := spec(t)
	for name, option := range map[string]func(*cri.NamespaceOption){
		"no mapping":        func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = nil },
		"two mappings":      func(o *cri.NamespaceOption) { o.UsernsOptions.Gids = append(idsFrom(1), idsFrom(1<<20)...) },
		"root left out":     func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 },
		"nobody mapped":     func(o *cri.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 0 },
		"beyond all ids":    func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 1000 },
		"mappings in NODE":  func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_NODE },
		"CONTAINER":         func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_CONTAINER },
		"TARGET":            func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_TARGET },
		"no mode":           func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = 42 },
		"the node's pids":   func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE },
		"the node's System": func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE },
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			cfg := podConfig(t, ownUsers(1<<17, 1<<17))
			option(cfg.Linux.SecurityContext.NamespaceOptions)
			id, err := runtime.RunPodSandbox(ctx, cfg, handler())
			if err == nil {
				removePodAfter(t, id)
			}
			wantInvalid(t, err, "RunPodSandbox")
		})
	}
}

// A handler that cannot do it says so, and never runs the pod without.
func TestUserNamespaceWithoutTheFeature(t *testing.T) {
	ctx := spec(t)
	s := must[*cri.StatusResponse](t, "Status")(runtime.Status(ctx, false))
	tried := false
	for _, h := range s.RuntimeHandlers {
		if h.Name == "" || h.Features.GetUserNamespaces() {
			continue
		}
		tried = true
		id, err := runtime.RunPodSandbox(ctx, podConfig(t, ownUsers(1<<17, 1<<17)), h.Name)
		if err == nil {
			removePodAfter(t, id)
		}
		wantCode(t, err, "RunPodSandbox with "+h.Name, codes.Unimplemented)
	}
	if !tried {
		t.Skip("every handler has the feature")
	}
}

func TestUserNamespaceOfContainersIsThePods(t *testing.T) {
	ctx := spec(t)
	withUsers(t, ctx)
	withOwn := runPod(t, ctx, ownUsers(1<<17, 1<<17))
	without := runPod(t, ctx)
	dir := t.TempDir()
	box := image(t, "busybox:1")
	for name, bad := range map[string]struct {
		pod    *pod
		option func(*cri.ContainerConfig)
	}{
		"the node's instead": {withOwn, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = without.cfg.Linux.SecurityContext.NamespaceOptions
		}},
		"its own instead": {without, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = withOwn.cfg.Linux.SecurityContext.NamespaceOptions
		}},
		"other ids": {withOwn, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{
				Pid:           cri.NamespaceMode_CONTAINER,
				UsernsOptions: &cri.UserNamespace{Uids: idsFrom(1 << 18), Gids: idsFrom(1 << 17)},
			}
		}},
		"a mount of other ids": {withOwn, mounts(&cri.Mount{
			HostPath: dir, ContainerPath: "/m", UidMappings: idsFrom(1 << 18), GidMappings: idsFrom(1 << 17),
		})},
		"a mount of half the ids": {withOwn, mounts(&cri.Mount{
			HostPath: dir, ContainerPath: "/m", UidMappings: idsFrom(1 << 17),
		})},
		"a user beyond its ids": {withOwn, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: idsOfAPod}
		}},
		"a mount in a pod on the node's ids": {without, mounts(withOwn.idMapped(dir, "/m"))},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			_, err := bad.pod.tryCreate(bad.pod.config(box, []string{"sh", "-c", idle}, bad.option))
			wantInvalid(t, err, "CreateContainer")
		})
	}
}

// A pod outlives the daemon with its user namespace, and gets further containers in it.
func TestUserNamespaceOutlivesTheDaemon(t *testing.T) {
	criod := restarts(t)
	// Not beside other specs: they would miss the daemon.
	ctx := within(t, 4*time.Minute)
	withUsers(t, ctx)
	p := runPod(t, ctx, ownUsers(1<<17, 1<<17))
	before := p.run(idle)
	space := before.exec("readlink /proc/self/ns/user")
	criod.run("kill")
	criod.run("start")
	after := p.run(idle)
	for _, k := range []*container{before, after} {
		if got := k.exec("readlink /proc/self/ns/user"); got != space {
			t.Errorf("user namespace %q, before it was %q", got, space)
		}
	}
	ok(t, runtime.StopContainer(ctx, before.id, 5), "StopContainer")
	ok(t, runtime.RemoveContainer(ctx, before.id), "RemoveContainer")
}

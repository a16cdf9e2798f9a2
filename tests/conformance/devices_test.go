package conformance

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func devices(d ...*cri.Device) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Devices = d }
}

// fuse is a device that a container does not have by itself.
const fuse = "/dev/fuse"

// node makes a device in a folder of its own: another name of /dev/fuse.
func node(t *testing.T, dir, name string) string {
	t.Helper()
	path := dir + "/" + name
	if err := unix.Mknod(path, unix.S_IFCHR|0o640, int(unix.Mkdev(10, 229))); err != nil {
		t.Skipf("mknod: %v", err)
	}
	return path
}

func TestDevice(t *testing.T) {
	ctx := spec(t)
	if !exists(fuse) {
		t.Skip("the node has no " + fuse)
	}
	p := runPod(t, ctx)
	k := p.run(idle, devices(
		&cri.Device{HostPath: fuse, Permissions: "rw"},
		&cri.Device{HostPath: fuse, ContainerPath: "/dev/other/name", Permissions: "r"},
	))
	if got := k.exec("stat -c '%t:%T' /dev/fuse /dev/other/name; exec 3<>/dev/fuse && echo opened"); got != "a:e5\na:e5\nopened\n" {
		t.Errorf("got %q", got)
	}
	without := p.run(idle)
	if got := without.exec("ls /dev; mknod /tmp/fuse c 10 229; (exec 3</tmp/fuse) 2>&1 || echo denied"); strings.Contains(got, "fuse\n") || !strings.HasSuffix(got, "denied\n") {
		t.Errorf("a container that was given none: %q", got)
	}
}

// What may be done is what was asked for.
func TestDevicePermissions(t *testing.T) {
	ctx := spec(t)
	if !exists(fuse) {
		t.Skip("the node has no " + fuse)
	}
	p := runPod(t, ctx)
	k := p.run(idle, devices(&cri.Device{HostPath: fuse, Permissions: "r"}))
	got := k.exec("(exec 3</dev/fuse) && echo read; (exec 3>/dev/fuse) 2>/dev/null || echo no write")
	if got != "read\nno write\n" {
		t.Errorf("got %q", got)
	}
}

func TestDevicesOfAFolder(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	ok(t, os.MkdirAll(dir+"/sub", 0o755), "mkdir")
	node(t, dir, "b")
	node(t, dir, "a")
	node(t, dir, "sub/c")
	writeFile(t, dir+"/file", "no device")
	ok(t, os.Symlink("a", dir+"/link"), "symlink")
	k := p.run(idle, devices(&cri.Device{HostPath: dir, ContainerPath: "/dev/many", Permissions: "mrw"}))
	if got := k.exec("cd /dev/many && find . -type c | sort && ls && stat -c '%a %t:%T' a"); got != "./a\n./b\n./sub/c\na\nb\nsub\n640 a:e5\n" {
		t.Errorf("got %q", got)
	}
}

func TestDeviceThroughALink(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	ok(t, os.Symlink(node(t, dir, "real"), dir+"/link"), "symlink")
	k := p.run(idle, devices(&cri.Device{HostPath: dir + "/link", ContainerPath: "/dev/linked", Permissions: "rwm"}))
	if got := k.exec("stat -c '%F' /dev/linked"); got != "character special file\n" {
		t.Errorf("got %q", got)
	}
}

func TestDeviceBadRequests(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	file := writeFile(t, t.TempDir()+"/file", "")
	for n, d := range []*cri.Device{
		{HostPath: "/dev/null", Permissions: "x"},
		{HostPath: "/dev/null", Permissions: "rr"},
		{HostPath: "/dev/null", Permissions: "rwmr"},
		{HostPath: "/dev/null", ContainerPath: "relative"},
		{HostPath: "dev/null"},
		{HostPath: "", ContainerPath: "/dev/x"},
		{HostPath: "/dev/no-such-device"},
		{HostPath: file},
	} {
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, devices(d)))
		wantInvalid(t, err, fmt.Sprintf("device %d", n))
		if d.HostPath != "" && *peer == "" && !strings.Contains(status.Convert(err).Message(), d.HostPath) {
			t.Errorf("%s is not named: %v", d.HostPath, err)
		}
	}
}

func TestDevicesOfAPrivilegedContainer(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	dir := t.TempDir()
	extra := node(t, dir, "extra")
	privileged := func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }
	k := p.run(idle, privileged, devices(&cri.Device{HostPath: extra, ContainerPath: "/dev/extra"}))
	got := k.exec("ls /dev; stat -c '%F' /dev/extra")
	for _, name := range []string{"null", "extra", "pts", "shm"} {
		if !strings.Contains(got, name+"\n") {
			t.Errorf("no %s in %q", name, got)
		}
	}
	if exists(fuse) && !strings.Contains(got, "fuse\n") {
		t.Errorf("a device of the node is missing: %q", got)
	}
}

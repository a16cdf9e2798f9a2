package conformance

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func mounts(m ...*cri.Mount) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Mounts = m }
}

func TestMountOfAFolder(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	writeFile(t, dir+"/from-the-node", "hello\n")
	k := p.run(idle, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/mnt/data"}))
	if got := k.exec("cat /mnt/data/from-the-node; echo back > /mnt/data/from-the-container"); got != "hello\n" {
		t.Errorf("got %q", got)
	}
	if got := readFile(t, dir+"/from-the-container"); got != "back\n" {
		t.Errorf("got %q", got)
	}
}

func TestMountOfAFile(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	file := writeFile(t, t.TempDir()+"/file", "hello\n")
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: file, ContainerPath: "/new/place/file"},
		&cri.Mount{HostPath: file, ContainerPath: "/etc/passwd"},
	))
	if got := k.exec("cat /new/place/file /etc/passwd; echo back > /new/place/file"); got != "hello\nhello\n" {
		t.Errorf("got %q", got)
	}
	if got := readFile(t, file); got != "back\n" {
		t.Errorf("got %q", got)
	}
}

func TestMountReadonly(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	file := writeFile(t, dir+"/file", "as it was\n")
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		&cri.Mount{HostPath: file, ContainerPath: "/ro-file", Readonly: true},
		&cri.Mount{HostPath: dir, ContainerPath: "/rw"},
	))
	if got := k.exec("for f in /ro/x /ro/file /ro-file; do echo changed 2>/dev/null > $f && echo wrote $f; done; echo y > /rw/y; true"); got != "" {
		t.Errorf("got %q", got)
	}
	if readFile(t, file) != "as it was\n" || !exists(dir+"/y") {
		t.Error("the wrong one is read-only")
	}
}

func TestMountOfASymbolicLink(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	ok(t, os.Mkdir(dir+"/real", 0o755), "mkdir")
	writeFile(t, dir+"/real/file", "through the link\n")
	ok(t, os.Symlink("real", dir+"/link"), "symlink")
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: dir + "/link", ContainerPath: "/mnt/link"},
		&cri.Mount{HostPath: dir + "/link/file", ContainerPath: "/mnt/file"},
	))
	if got := k.exec("cat /mnt/link/file /mnt/file"); got != strings.Repeat("through the link\n", 2) {
		t.Errorf("got %q", got)
	}
}

func TestMountOfAMissingPathMakesAFolder(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	path := t.TempDir() + "/not/yet/there"
	k := p.run(idle, mounts(&cri.Mount{HostPath: path, ContainerPath: "/mnt"}))
	k.exec("echo x > /mnt/file")
	if got := readFile(t, path+"/file"); got != "x\n" {
		t.Errorf("got %q", got)
	}
}

// The termination message is found by comparing these strings.
func TestMountsAreEchoedExactly(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	ok(t, os.Mkdir(dir+"/real", 0o755), "mkdir")
	ok(t, os.Symlink("real", dir+"/link"), "symlink")
	want := []*cri.Mount{
		{HostPath: dir + "/link", ContainerPath: "/z/last"},
		{HostPath: dir + "/real/../real/", ContainerPath: "/a//b/../c/", Readonly: true},
		{HostPath: writeFile(t, dir+"/message", ""), ContainerPath: "/dev/termination-log", Propagation: cri.MountPropagation_PROPAGATION_PRIVATE},
	}
	k := p.run(idle, mounts(want...))
	got := map[string]*cri.Mount{}
	for _, m := range k.status().Mounts {
		got[m.ContainerPath] = m
	}
	for _, w := range want {
		m := got[w.ContainerPath]
		if m == nil {
			t.Errorf("%s is missing", w.ContainerPath)
		} else if m.HostPath != w.HostPath || m.Readonly != w.Readonly || m.Propagation != w.Propagation {
			t.Errorf("got %v, want %v", m, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d mounts: %v", len(got), got)
	}
}

// Mounts come in the order of the pod's specification; one may lie inside another.
func TestMountsInsideEachOther(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	outer, inner := t.TempDir(), t.TempDir()
	ok(t, os.MkdirAll(outer+"/in/ner", 0o755), "mkdir")
	writeFile(t, outer+"/file", "outer\n")
	writeFile(t, inner+"/file", "inner\n")
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: inner, ContainerPath: "/mnt/in/ner"},
		&cri.Mount{HostPath: outer, ContainerPath: "/mnt"},
	))
	if got := k.exec("cat /mnt/file /mnt/in/ner/file"); got != "outer\ninner\n" {
		t.Errorf("got %q", got)
	}
}

func TestMountOfTheTerminationMessage(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	file := writeFile(t, t.TempDir()+"/message", "")
	_, s := p.finish("printf 'so long' > /dev/termination-log", mounts(&cri.Mount{HostPath: file, ContainerPath: "/dev/termination-log"}))
	if got := readFile(t, file); got != "so long" || s.ExitCode != 0 {
		t.Errorf("got %q, exit code %d", got, s.ExitCode)
	}
}

// sharedMount is a folder of the node whose mounts may spread.
func sharedMount(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared")
	ok(t, os.Mkdir(dir, 0o755), "mkdir")
	ok(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""), "bind")
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	ok(t, unix.Mount("", dir, "", unix.MS_SHARED, ""), "shared")
	ok(t, os.Mkdir(dir+"/later", 0o755), "mkdir")
	return dir
}

func TestMountPropagation(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := sharedMount(t)
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: dir, ContainerPath: "/private"},
		&cri.Mount{HostPath: dir, ContainerPath: "/slave", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	))
	ok(t, unix.Mount("tmpfs", dir+"/later", "tmpfs", 0, "size=64k"), "mount")
	t.Cleanup(func() { unix.Unmount(dir+"/later", unix.MNT_DETACH) })
	writeFile(t, dir+"/later/file", "x")
	if got := k.exec("ls /private/later /slave/later | grep -v '^$'"); got != "/private/later:\n/slave/later:\nfile\n" {
		t.Errorf("got %q", got)
	}
}

func TestMountPropagationThatTheNodeCannotGive(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := sharedMount(t)
	ok(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""), "private")
	for _, mode := range []cri.MountPropagation{cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER} {
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/mnt", Propagation: mode})))
		if err == nil {
			t.Errorf("%v was granted", mode)
		}
	}
}

func TestMountsOfTheNodeAreNotSeen(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	for _, line := range strings.Split(strings.TrimSpace(k.exec("cat /proc/self/mountinfo")), "\n") {
		fields := strings.Fields(line)
		if strings.HasPrefix(fields[4], "/old") || strings.HasPrefix(fields[4], "/.") {
			t.Errorf("left over: %s", line)
		}
	}
	if got := k.exec("ls /"); strings.Contains(got, "boot") || strings.Contains(got, "lib") {
		t.Errorf("the root is the node's: %q", got)
	}
}

// handlerFeatures is what the handler under test can do.
func handlerFeatures(t *testing.T, ctx context.Context) *cri.RuntimeHandlerFeatures {
	t.Helper()
	answer := must[*cri.StatusResponse](t, "Status")(runtime.Status(ctx, false))
	for _, h := range answer.RuntimeHandlers {
		if h.Name == handler() {
			return h.GetFeatures()
		}
	}
	return nil
}

// withASubmount is a folder of the node with a mount below it.
func withASubmount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ok(t, os.Mkdir(dir+"/below", 0o755), "mkdir")
	ok(t, unix.Mount("tmpfs", dir+"/below", "tmpfs", 0, "size=64k"), "mount")
	t.Cleanup(func() { unix.Unmount(dir+"/below", unix.MNT_DETACH) })
	return dir
}

func TestMountReadonlyAndWhatLiesBelow(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := withASubmount(t)
	k := p.run(idle, mounts(&cri.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true}))
	if got := k.exec("touch /ro/x 2>/dev/null || echo no; touch /ro/below/x && echo yes"); got != "no\nyes\n" {
		t.Errorf("read-only without what is below: %q", got)
	}
	config := p.config(image(t, "busybox:1"), []string{"sh", "-c", idle}, mounts(
		&cri.Mount{HostPath: dir, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true}))
	r, err := p.tryCreate(config)
	if !handlerFeatures(t, ctx).GetRecursiveReadOnlyMounts() {
		wantCode(t, err, "recursive_read_only without the feature", codes.Unimplemented)
		return
	}
	ok(t, err, "CreateContainer")
	r.start()
	if got := r.exec("for f in /rro/y /rro/below/y; do touch $f 2>/dev/null && echo wrote $f; done; cat /rro/below/x && echo read"); got != "read\n" {
		t.Errorf("read-only with all that is below: %q", got)
	}
}

func TestMountsThatAreRefused(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	ok(t, os.Symlink("loop", dir+"/loop"), "symlink")
	writeFile(t, dir+"/file", "")
	for what, m := range map[string]*cri.Mount{
		"over the root":       {HostPath: dir, ContainerPath: "/"},
		"over the root, long": {HostPath: dir, ContainerPath: "/a/../."},
		"nowhere":             {HostPath: dir},
		"relative host path":  {HostPath: "tmp", ContainerPath: "/mnt"},
		"no host path":        {ContainerPath: "/mnt"},
		"NUL":                 {HostPath: dir + "\x00", ContainerPath: "/mnt"},
		"NUL inside":          {HostPath: dir, ContainerPath: "/mnt\x00"},
		"propagation":         {HostPath: dir, ContainerPath: "/mnt", Propagation: 7},
		"rro and writable":    {HostPath: dir, ContainerPath: "/mnt", RecursiveReadOnly: true},
		"rro, slave":          {HostPath: dir, ContainerPath: "/mnt", RecursiveReadOnly: true, Readonly: true, Propagation: 1},
		"rro, shared":         {HostPath: dir, ContainerPath: "/mnt", RecursiveReadOnly: true, Readonly: true, Propagation: 2},
		"an unknown option":   {HostPath: dir, ContainerPath: "/mnt", MountOptions: []string{"noexec", "rshared"}},
	} {
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, mounts(m)))
		wantInvalid(t, err, what)
	}
	for what, path := range map[string]string{"a loop": dir + "/loop", "below a file": dir + "/file/x"} {
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, mounts(&cri.Mount{HostPath: path, ContainerPath: "/mnt"})))
		wantCode(t, err, what, codes.FailedPrecondition)
		if !strings.Contains(status.Convert(err).Message(), path) {
			t.Errorf("%s is not named: %v", path, err)
		}
	}
}

func TestMountOptions(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	ok(t, os.WriteFile(dir+"/program", []byte("#!/bin/sh\necho ran\n"), 0o755), "write")
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: dir, ContainerPath: "/strict", MountOptions: []string{"noexec", "nodev", "nosuid"}},
		&cri.Mount{HostPath: dir, ContainerPath: "/plain"},
	))
	if got := k.exec("/plain/program; /strict/program 2>/dev/null || echo refused"); got != "ran\nrefused\n" {
		t.Errorf("got %q", got)
	}
	for _, line := range strings.Split(k.exec("cat /proc/self/mountinfo"), "\n") {
		if fields := strings.Fields(line); len(fields) > 5 && fields[4] == "/strict" {
			for _, option := range []string{"noexec", "nodev", "nosuid"} {
				if !strings.Contains(fields[5], option) {
					t.Errorf("no %s in %q", option, fields[5])
				}
			}
		}
	}
}

// A socket or a device of the node is a file like any other.
func TestMountOfASocketAndADevice(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	listener := must[net.Listener](t, "listen")(net.Listen("unix", dir+"/s"))
	t.Cleanup(func() { listener.Close() })
	k := p.run(idle, mounts(
		&cri.Mount{HostPath: dir + "/s", ContainerPath: "/run/node.sock"},
		&cri.Mount{HostPath: "/dev/null", ContainerPath: "/nothing"},
	))
	if got := k.exec("test -S /run/node.sock && test -c /nothing && echo x > /nothing && echo both"); got != "both\n" {
		t.Errorf("got %q", got)
	}
}

// A link of the image at the place of a mount leads nowhere else than inside the container.
func TestMountThroughALinkOfTheImage(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	dir := t.TempDir()
	writeFile(t, dir+"/file", "mounted\n")
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Image = &cri.ImageSpec{Image: image(t, "declares:1")}
		c.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/out/mnt"}}
	})
	if got := k.exec("cat /tmp/criod-declared/mnt/file"); got != "mounted\n" || exists("/tmp/criod-declared") {
		t.Errorf("got %q", got)
	}
}

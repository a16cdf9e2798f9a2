package conformance

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageVolume is a mount as the kubelet asks for it: by the id that the pull gave.
func imageVolume(t *testing.T, name, at, subPath string) *cri.Mount {
	t.Helper()
	return &cri.Mount{
		ContainerPath: at, Readonly: true, ImageSubPath: subPath,
		Image: &cri.ImageSpec{Image: pull(t, ref(name)), UserSpecifiedImage: ref(name)},
	}
}

func TestImageVolume(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, mounts(
		imageVolume(t, "files:1", "/one", ""),
		imageVolume(t, "layered:1", "/many", ""),
	))
	got := k.exec("cat /one/data/file /many/data/keep /many/data/change /one/data/sub/deep; ls /many/data; /one/data/program")
	if got != "of the image\nkept\nafter\ndeep\nchange\nkeep\nlinked\nit runs\n" {
		t.Errorf("got %q", got)
	}
	got = k.exec("for f in /one/new /one/data/file /many/data/keep; do echo x 2>/dev/null >$f && echo wrote $f; done; rm -r /many/data 2>/dev/null; mount -o remount,rw /one 2>/dev/null; true")
	if got != "" {
		t.Errorf("got %q", got)
	}
	if got := k.exec("echo x 2>&1 >/many/special/null; ls /many/data | wc -l"); !strings.HasSuffix(got, "3\n") || !strings.Contains(got, "ermission") {
		t.Errorf("a device of the image: %q", got)
	}
}

func TestImageVolumeIsToldWithItsID(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	byName := imageVolume(t, "files:1", "/by-name", "data")
	byName.Image.Image = ref("files:1")
	k := p.run(idle, mounts(
		imageVolume(t, "files:1", "/by-id", ""), byName,
		&cri.Mount{HostPath: t.TempDir(), ContainerPath: "/plain"},
	))
	id := pull(t, ref("files:1"))
	got := k.status().Mounts
	if len(got) != 3 {
		t.Fatalf("mounts: %v", got)
	}
	for n, m := range got[:2] {
		if m.GetImage().GetImage() != id || m.GetImage().GetImageRef() != id || m.HostPath != "" {
			t.Errorf("got %v, want the id %s", m, id)
		}
		if m.GetImage().GetUserSpecifiedImage() != ref("files:1") || m.ImageSubPath != []string{"", "data"}[n] {
			t.Errorf("not as it was asked for: %v", m)
		}
	}
	if got[2].GetImage() != nil {
		t.Errorf("an image where none was asked for: %v", got[2])
	}
	if listed := must[*cri.ImageStatusResponse](t, "ImageStatus")(images.ImageStatus(ctx, &cri.ImageSpec{Image: ref("files:1")}, false)); listed.Image.Id != id {
		t.Errorf("the image's id is %s", listed.Image.Id)
	}
}

func TestImageVolumeSubPaths(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	// Links and ".." are followed inside the image: what lies there is what is mounted.
	inside := map[string]string{
		"data": "file", "data/sub": "deep", "inside": "deep", "/data//sub/.": "deep",
		"absolute": "hostname", "climbs": "hostname", "../../../etc": "hostname",
	}
	for path, file := range inside {
		k := p.run(idle, mounts(imageVolume(t, "files:1", "/vol", path)))
		if got := k.exec("ls /vol"); !strings.Contains(got, file+"\n") {
			t.Errorf("%q: %q", path, got)
		}
	}
	k := p.run(idle, mounts(imageVolume(t, "files:1", "/vol/of-one", "etc/hostname")))
	if got := k.exec("cat /vol/of-one"); got != "of the image\n" {
		t.Errorf("a file: %q", got)
	}
	for _, path := range []string{"nowhere", "data/file/x", "loop", "dangling", "node", "data\x00x"} {
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, mounts(imageVolume(t, "files:1", "/vol", path))))
		wantVolumeError(t, err, path)
		if !strings.Contains(status.Convert(err).Message(), strings.Split(path, "\x00")[0]) {
			t.Errorf("%q is not named: %v", path, err)
		}
	}
}

// wantVolumeError asks for the word that the kubelet counts failures by, as the first one.
func wantVolumeError(t *testing.T, err error, what string) {
	t.Helper()
	if err == nil || !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
		t.Errorf("%q: %v", what, err)
	}
}

func TestImageVolumeBadRequests(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for what, change := range map[string]func(*cri.Mount){
		"an image that is not here": func(m *cri.Mount) { m.Image.Image = ref("not-pulled:1") },
		"a host path, too":          func(m *cri.Mount) { m.HostPath = "/tmp" },
		"writable":                  func(m *cri.Mount) { m.Readonly = false },
		"bidirectional":             func(m *cri.Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL },
	} {
		m := imageVolume(t, "files:1", "/vol", "")
		change(m)
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, mounts(m)))
		wantVolumeError(t, err, what)
	}
	m := &cri.Mount{HostPath: t.TempDir(), ContainerPath: "/vol", ImageSubPath: "x"}
	_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, mounts(m)))
	wantInvalid(t, err, "a sub path without an image")
}

func TestImageVolumeKeepsItsImage(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	name := ref("single-15:1")
	id := must[string](t, "PullImage")(images.PullImage(ctx, &cri.ImageSpec{Image: name}, nil, nil))
	m := &cri.Mount{ContainerPath: "/vol", Readonly: true, Image: &cri.ImageSpec{Image: id}}
	k := p.run(idle, mounts(m))
	wantCode(t, images.RemoveImage(ctx, &cri.ImageSpec{Image: id}), "RemoveImage while it is used", codes.FailedPrecondition)
	if got := k.exec("cat /vol/number"); got != "15\n" {
		t.Errorf("got %q", got)
	}
	ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer")
	wantCode(t, images.RemoveImage(ctx, &cri.ImageSpec{Image: id}), "RemoveImage of an ended container's", codes.FailedPrecondition)
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	ok(t, images.RemoveImage(ctx, &cri.ImageSpec{Image: id}), "RemoveImage")
	info, err := os.ReadFile("/proc/self/mountinfo")
	ok(t, err, "mountinfo")
	if strings.Contains(string(info), k.id) {
		t.Errorf("a mount of %s is left", k.id)
	}
}

// What an image declares is a folder of its user's, and no image says what is at /proc.
func TestVolumesThatAnImageDeclares(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	own := writeFile(t, t.TempDir()+"/file", "of the node\n")
	declares := func(c *cri.ContainerConfig) {
		c.Image = &cri.ImageSpec{Image: image(t, "declares:1")}
		c.Mounts = []*cri.Mount{{HostPath: own[:len(own)-len("/file")], ContainerPath: "/new/data"}}
	}
	k := p.run(idle, declares)
	got := k.exec("id -u; cat /new/data/file; stat -c '%a %u %g' /there /up; ls /there; grep -c ' /proc ' /proc/mounts; echo x > /there/mine; test -c /dev/null && cat /there/mine")
	if got != "1000\nof the node\n1777 1000 1001\n755 1000 1001\nof-the-image\n1\nx\n" {
		t.Errorf("got %q", got)
	}
	if exists("/tmp/criod-declared") {
		t.Error("made on the node")
	}
}

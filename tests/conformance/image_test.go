package conformance

import (
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func named(name string) *cri.ImageSpec { return &cri.ImageSpec{Image: name} }

// take pulls an image that only this test uses, and removes it after the test.
func take(t *testing.T, name string) string {
	t.Helper()
	ctx := within(t, patience)
	removeImageAfter(t, name)
	return must[string](t, "PullImage "+name)(images.PullImage(ctx, named(name), nil, nil))
}

func removeImageAfter(t *testing.T, name string) {
	t.Cleanup(func() {
		if err := images.RemoveImage(within(t, patience), named(name)); err != nil {
			t.Errorf("cleanup: RemoveImage %s: %v", name, err)
		}
	})
}

func imageStatus(t *testing.T, name string) *cri.Image {
	t.Helper()
	ctx := within(t, patience)
	return must[*cri.ImageStatusResponse](t, "ImageStatus "+name)(images.ImageStatus(ctx, named(name), false)).Image
}

func TestPullImageByTag(t *testing.T) {
	ctx := spec(t)
	name := ref("single-1:1")
	if s := imageStatus(t, name); s != nil {
		t.Fatalf("there before it was pulled: %v", s)
	}
	id := take(t, name)
	for range 2 {
		again := must[string](t, "PullImage again")(images.PullImage(ctx, named(name), nil, nil))
		if again != id {
			t.Errorf("another reference: %s and %s", id, again)
		}
	}
	// One id everywhere.
	s := imageStatus(t, name)
	if s.GetId() != id || s.GetSize() == 0 {
		t.Errorf("id %q, size %d, pulled as %q", s.GetId(), s.GetSize(), id)
	}
	if !slices.Equal(s.RepoTags, []string{name}) {
		t.Errorf("tags %v", s.RepoTags)
	}
	if want := registry + "/test/single-1@" + digestOf(t, "single-1:1"); !slices.Equal(s.RepoDigests, []string{want}) {
		t.Errorf("digests %v, want %s", s.RepoDigests, want)
	}
	for _, other := range []string{id, strings.TrimPrefix(id, "sha256:"), s.RepoDigests[0]} {
		if got := imageStatus(t, other); got.GetId() != id {
			t.Errorf("asked as %s: %v", other, got)
		}
	}
	n := 0
	for _, i := range must[[]*cri.Image](t, "ListImages")(images.ListImages(ctx, nil)) {
		if i.Id == id {
			n++
			if i.Size == 0 || !slices.Equal(i.RepoTags, s.RepoTags) {
				t.Errorf("listed as %v", i)
			}
		}
	}
	if n != 1 {
		t.Errorf("listed %d times", n)
	}
}

func TestPullImageByDigest(t *testing.T) {
	spec(t)
	name := registry + "/test/single-2@" + digestOf(t, "single-2:1")
	id := take(t, name)
	s := imageStatus(t, name)
	if s.GetId() != id || len(s.RepoTags) != 0 || !slices.Equal(s.RepoDigests, []string{name}) {
		t.Errorf("got %v", s)
	}
}

func TestPullImageByTagAndDigest(t *testing.T) {
	spec(t)
	digest := digestOf(t, "single-3:1")
	name := ref("single-3:1") + "@" + digest
	id := take(t, name)
	for _, name := range []string{name, registry + "/test/single-3@" + digest} {
		if s := imageStatus(t, name); s.GetId() != id {
			t.Errorf("asked as %s: %v", name, s)
		}
	}
}

func TestPullImageOfAnotherDigestThanIsThere(t *testing.T) {
	ctx := spec(t)
	name := registry + "/test/single-3@sha256:" + strings.Repeat("1", 64)
	_, err := images.PullImage(ctx, named(name), nil, nil)
	wantPullError(t, name, err)
}

func TestPullImageConcurrently(t *testing.T) {
	ctx := spec(t)
	name := ref("single-4:1")
	removeImageAfter(t, name)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			id, err := images.PullImage(ctx, named(name), nil, nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("PullImage: %v", err)
			}
			ids[id] = true
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("%d ids", len(ids))
	}
}

// The mirrors lead these to the test registry.
func TestPullImageByShortAndPublicNames(t *testing.T) {
	spec(t)
	for name, full := range map[string]string{
		"busybox":                     "docker.io/library/busybox:latest",
		"busybox:1":                   "docker.io/library/busybox:1",
		"docker.io/library/busybox:1": "docker.io/library/busybox:1",
		"docker.io/test/user-root:1":  "docker.io/test/user-root:1",
		"registry.k8s.io/pause:3.10":  "registry.k8s.io/pause:3.10",
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			id := pull(t, name)
			s := imageStatus(t, name)
			if s.GetId() != id || !slices.Contains(s.RepoTags, full) {
				t.Errorf("got %v", s)
			}
			if s = imageStatus(t, full); s.GetId() != id {
				t.Errorf("asked as %s: %v", full, s)
			}
		})
	}
}

func TestPullImageKinds(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for name, c := range map[string]struct{ script, want string }{
		"docker:1":   {"echo fine", "fine\n"},
		"zstd:1":     {"cat /packing", "zstd\n"},
		"plain:1":    {"cat /packing", "plain\n"},
		"index:1":    {"cat /arch", "amd64\n"},
		"layers:120": {"cat /layers/001 /layers/119 /layers/last; ls /layers | wc -l", "1\n119\n119\n120\n"},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			k := p.create(image(t, name), []string{"sh", "-c", c.script})
			k.start()
			k.wait()
			if got := k.output(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			want := registry + "/test/" + name[:strings.Index(name, ":")] + "@" + digestOf(t, name)
			if s := imageStatus(t, ref(name)); !slices.Contains(s.GetRepoDigests(), want) {
				t.Errorf("digests %v, want %s", s.GetRepoDigests(), want)
			}
		})
	}
}

// Whiteouts, opaque folders, links, modes, owners, times, devices.
func TestPullImageUnpacksEverything(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.create(image(t, "layered:1"), []string{"sh", "-c", idle})
	k.start()
	for _, c := range []struct{ script, want string }{
		{"ls /data", "change\nkeep\nlinked\n"},
		{"cat /data/keep /data/change /data/linked", "kept\nafter\nkept\n"},
		{"stat -c '%a %u %g %Y' /data/keep", "640 1000 1001 1699913600\n"},
		{"[ /data/keep -ef /data/linked ] && echo same", "same\n"},
		{"ls -A /opaque", "new\n"},
		{"cat /becomes-file /becomes-dir/inside", "now a file\ninside\n"},
		{"readlink /to-real; ls /real", "real\nthrough\n"},
		{"ls -A /again", "second\n"},
		{"stat -c '%a %u %g' /special/setuid /special/setgid /special/sticky", "4755 0 0\n2755 0 100\n1777 0 0\n"},
		{"stat -c '%F' /special/fifo", "fifo\n"},
		{"stat -c '%F %t %T' /special/null", "character special file 1 3\n"},
		{"readlink /special/dangling", "/nowhere/at/all\n"},
		{"cat /long/*/*", "a long name\n"},
		{"cat '/special/ä世 name'", "not ascii\n"},
		{"stat -c %h /bin/busybox | grep -q '^[0-9][0-9][0-9]' && echo many", "many\n"},
		{"find / -xdev -name '.wh.*'", ""},
		{"stat -c '%a' /tmp /root", "1777\n700\n"},
	} {
		stdout, stderr, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", c.script}, patience)
		if err != nil || string(stdout) != c.want {
			t.Errorf("%s: got %q, want %q (%v, %s)", c.script, stdout, c.want, err, stderr)
		}
	}
}

// No applet shows extended attributes: they are read from the node's side.
func TestPullImageKeepsExtendedAttributes(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
	})
	k := p.create(image(t, "layered:1"), []string{"sh", "-c", "echo $$; " + idle})
	k.start()
	eventually(t, "the process id", func() bool { return k.output() != "" })
	path := fmt.Sprintf("/proc/%s/root/special/xattr", strings.TrimSpace(k.output()))
	value := make([]byte, 100)
	n, err := unix.Getxattr(path, "user.criod", value)
	ok(t, err, "getxattr "+path)
	if got := string(value[:n]); got != "value\x00with\nodd bytes" {
		t.Errorf("got %q", got)
	}
}

func TestImageStatusOfAMissingImageIsEmpty(t *testing.T) {
	ctx := spec(t)
	for _, name := range []string{ref("not-there:1"), "not-there", "sha256:" + strings.Repeat("0", 64), noSuchID} {
		s, err := images.ImageStatus(ctx, named(name), false)
		if err != nil || s.Image != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func TestImageStatusVerbose(t *testing.T) {
	ctx := spec(t)
	s := must[*cri.ImageStatusResponse](t, "ImageStatus")(images.ImageStatus(ctx, named(image(t, "busybox:1")), true))
	if len(s.Info) == 0 {
		t.Error("no info")
	}
}

// Without these the kubelet runs the image's containers as root. It asks by the name as written in
// the pod, which may have no tag.
func TestImageStatusTellsTheUser(t *testing.T) {
	spec(t)
	for name, want := range map[string]struct {
		uid  int64
		user string
	}{
		"user-1002": {1002, ""}, "user-1003-users": {1003, ""},
		"user-www-data": {-1, "www-data"}, "user-www-data-100": {-1, "www-data"}, "user-root": {-1, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			image(t, name+":latest")
			for _, asked := range []string{ref(name), ref(name + ":latest")} {
				s := imageStatus(t, asked)
				if s == nil {
					t.Errorf("%s is not found", asked)
					continue
				}
				uid := int64(-1)
				if s.Uid != nil {
					uid = s.Uid.Value
				}
				if uid != want.uid || s.Username != want.user {
					t.Errorf("%s: uid %v, username %q", asked, s.Uid, s.Username)
				}
			}
		})
	}
	t.Run("no user", func(t *testing.T) {
		known(t)
		s := imageStatus(t, image(t, "busybox:1"))
		if s.Username != "" || s.Uid != nil && s.Uid.Value != 0 {
			t.Errorf("uid %v, username %q", s.Uid, s.Username)
		}
	})
}

func TestListImagesFilter(t *testing.T) {
	ctx := spec(t)
	name := ref("single-5:1")
	id := take(t, name)
	for _, asked := range []string{name, id} {
		list := must[[]*cri.Image](t, "ListImages")(images.ListImages(ctx, &cri.ImageFilter{Image: named(asked)}))
		if len(list) != 1 || list[0].Id != id {
			t.Errorf("%s: %v", asked, list)
		}
	}
	list := must[[]*cri.Image](t, "ListImages")(images.ListImages(ctx, &cri.ImageFilter{Image: named(ref("not-there:1"))}))
	if len(list) != 0 {
		t.Errorf("a missing image: %v", list)
	}
	for _, filter := range []*cri.ImageFilter{nil, {}, {Image: &cri.ImageSpec{}}} {
		if list := must[[]*cri.Image](t, "ListImages")(images.ListImages(ctx, filter)); len(list) == 0 {
			t.Errorf("filter %v: nothing", filter)
		}
	}
}

func TestRemoveImageCanBeRepeated(t *testing.T) {
	ctx := spec(t)
	name := ref("single-6:1")
	id := take(t, name)
	for range 3 {
		ok(t, images.RemoveImage(ctx, named(name)), "RemoveImage")
		for _, asked := range []string{name, id} {
			if s := imageStatus(t, asked); s != nil {
				t.Errorf("%s is still there: %v", asked, s)
			}
		}
	}
	ok(t, images.RemoveImage(ctx, named(id)), "RemoveImage by an id that is gone")
	ok(t, images.RemoveImage(ctx, named(ref("not-there:1"))), "RemoveImage of a missing image")
	// And it can come back.
	if again := take(t, name); again != id {
		t.Errorf("another id: %s and %s", id, again)
	}
}

func TestRemoveImageByIDRemovesAllNames(t *testing.T) {
	ctx := spec(t)
	first, second := ref("single-7:1"), ref("single-7:also")
	id := take(t, first)
	if again := take(t, second); again != id {
		t.Fatalf("two ids: %s and %s", id, again)
	}
	tags := imageStatus(t, first).RepoTags
	slices.Sort(tags)
	if !slices.Equal(tags, []string{first, second}) {
		t.Errorf("tags %v", tags)
	}
	ok(t, images.RemoveImage(ctx, named(id)), "RemoveImage")
	for _, name := range []string{first, second, id} {
		if s := imageStatus(t, name); s != nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestRemoveImageByNameKeepsTheOtherName(t *testing.T) {
	ctx := spec(t)
	first, second := ref("single-8:1"), ref("single-8:also")
	id := take(t, first)
	take(t, second)
	ok(t, images.RemoveImage(ctx, named(first)), "RemoveImage")
	if s := imageStatus(t, second); s.GetId() != id || !slices.Equal(s.GetRepoTags(), []string{second}) {
		t.Errorf("the other name: %v", s)
	}
	ok(t, images.RemoveImage(ctx, named(second)), "RemoveImage")
	if s := imageStatus(t, id); s != nil {
		t.Errorf("still there: %v", s)
	}
}

// Whether it is refused or done: the container goes on, and keeps its image's names.
func TestRemoveImageInUse(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	name := ref("single-9:1")
	take(t, name)
	k := p.create(name, nil)
	k.start()
	k.trappedAsSeenFromTheNode()
	before := k.status()
	if err := images.RemoveImage(ctx, named(name)); err != nil {
		if code := status.Code(err); code == codes.NotFound || code == codes.Unavailable {
			t.Errorf("code %v", code)
		}
		if s := imageStatus(t, name); s == nil {
			t.Error("refused, but the image is gone")
		}
	}
	s := k.status()
	if s.State != cri.ContainerState_CONTAINER_RUNNING || s.Image.GetImage() != before.Image.GetImage() || s.ImageRef != before.ImageRef || s.ImageId != before.ImageId {
		t.Errorf("status %v, before %v", s, before)
	}
	must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{Id: k.id}))
	ok(t, runtime.StopContainer(ctx, k.id, 30), "StopContainer")
	if s := k.status(); s.ExitCode != 0 || s.Image.GetImage() == "" || s.ImageRef == "" {
		t.Errorf("status %v", s)
	}
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
}

func TestImageFsInfo(t *testing.T) {
	ctx := spec(t)
	image(t, "busybox:1")
	for what, list := range map[string]func(*cri.ImageFsInfoResponse) []*cri.FilesystemUsage{
		"images":     (*cri.ImageFsInfoResponse).GetImageFilesystems,
		"containers": (*cri.ImageFsInfoResponse).GetContainerFilesystems,
	} {
		t.Run(what, func(t *testing.T) {
			known(t)
			var f *cri.FilesystemUsage
			eventually(t, "a measure of the images", func() bool {
				all := list(must[*cri.ImageFsInfoResponse](t, "ImageFsInfo")(images.ImageFsInfo(ctx)))
				if len(all) == 0 {
					t.Fatal("no file system")
				}
				f = all[0]
				return f.GetUsedBytes().GetValue() >= 1<<20 || what == "containers"
			})
			if f.Timestamp == 0 || f.UsedBytes == nil || f.InodesUsed == nil {
				t.Errorf("usage %v", f)
			}
			if info, err := os.Stat(f.GetFsId().GetMountpoint()); err != nil || !info.IsDir() {
				t.Errorf("mount point %q: %v", f.GetFsId().GetMountpoint(), err)
			}
		})
	}
}

// ---- pulls that must fail

// wantPullError asks for an error that tells of this pull, and of nothing being wrong otherwise.
func wantPullError(t *testing.T, name string, err error) {
	t.Helper()
	switch code := status.Code(err); code {
	case codes.OK:
		t.Errorf("%s was pulled", name)
	case codes.DeadlineExceeded, codes.Canceled, codes.Unimplemented, codes.Unavailable:
		t.Errorf("%s: code %v (%v)", name, code, err)
	}
	if err != nil && !strings.Contains(err.Error(), "test/") {
		t.Errorf("the error does not name the image: %v", err)
	}
	if s := imageStatus(t, name); s != nil {
		t.Errorf("the image is there: %v", s)
	}
	for _, i := range must[[]*cri.Image](t, "ListImages")(images.ListImages(within(t, patience), nil)) {
		if slices.Contains(i.RepoTags, name) {
			t.Errorf("the image is listed: %v", i)
		}
	}
}

func TestPullImageThatDoesNotExist(t *testing.T) {
	ctx := spec(t)
	for _, name := range []string{ref("not-there:1"), ref("busybox:no-such-tag")} {
		_, err := images.PullImage(ctx, named(name), nil, nil)
		wantPullError(t, name, err)
		if *peer == "" {
			wantCode(t, err, name, codes.NotFound)
		}
	}
}

func TestPullImageBadNames(t *testing.T) {
	ctx := spec(t)
	for _, name := range []string{
		registry + "/test/UPPER:1", registry + "/test/busybox:bad tag", registry + "/test/busybox@sha256:123",
		registry + "/test/busybox@md5:d41d8cd98f00b204e9800998ecf8427e", "http://" + registry + "/test/busybox:1",
		"/", ":", "@", "../../etc/passwd", "a//b", "\x00", strings.Repeat("a", 5000), registry + "/test/busybox:" + strings.Repeat("t", 200),
	} {
		t.Run(fmt.Sprintf("%.30q", strings.TrimPrefix(name, registry)), func(t *testing.T) {
			known(t)
			_, err := images.PullImage(ctx, named(name), nil, nil)
			wantInvalid(t, err, name)
			must[*cri.VersionResponse](t, "Version")(runtime.Version(ctx, "v1"))
		})
	}
}

// The kubelet knows this word, at the start, when the code is Unknown.
func TestPullImageFromARegistryThatRefuses(t *testing.T) {
	ctx := spec(t)
	name := fmt.Sprintf("127.0.0.1:%d/test/x:1", freePort(t))
	_, err := images.PullImage(ctx, named(name), nil, nil)
	wantPullError(t, name, err)
	if err != nil && !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("got %q", err)
	}
}

func TestPullImageFromAPrivateRegistry(t *testing.T) {
	ctx := spec(t)
	private := os.Getenv("CRI_PRIVATE_REGISTRY")
	if private == "" {
		t.Skip("CRI_PRIVATE_REGISTRY is not set")
	}
	name := private + "/test/single-12:1"
	for what, auth := range map[string]*cri.AuthConfig{
		"nobody": nil, "empty": {}, "wrong": {Username: "testuser", Password: "wrong"},
		"junk": {Auth: "%%%"},
	} {
		t.Run(what, func(t *testing.T) {
			known(t)
			_, err := images.PullImage(ctx, named(name), auth, nil)
			wantPullError(t, name, err)
			if err != nil && strings.Contains(err.Error(), "wrong") && what == "wrong" {
				t.Errorf("the error has the password: %v", err)
			}
		})
	}
	for what, auth := range map[string]*cri.AuthConfig{
		"name and password": {Username: "testuser", Password: "testpass"},
		"both in one":       {Auth: base64.StdEncoding.EncodeToString([]byte("testuser:testpass"))},
		"for this server":   {Username: "testuser", Password: "testpass", ServerAddress: private},
	} {
		t.Run(what, func(t *testing.T) {
			known(t)
			id := must[string](t, "PullImage")(images.PullImage(ctx, named(name), auth, nil))
			if s := imageStatus(t, name); s.GetId() != id {
				t.Errorf("got %v", s)
			}
			ok(t, images.RemoveImage(ctx, named(name)), "RemoveImage")
		})
	}
}

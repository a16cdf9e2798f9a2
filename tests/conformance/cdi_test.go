package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cdiFile writes a description of devices into the folder that the runtime reads, and gives its kind
// (vendor/class), which no other test uses. The text's KIND stands for it.
func cdiFile(t *testing.T, text string) string {
	t.Helper()
	dir := os.Getenv("CRI_CDI_DIR")
	if dir == "" {
		t.Skip("CRI_CDI_DIR is not set")
	}
	ok(t, os.MkdirAll(dir, 0o755), "CDI folder")
	name := unique("c")
	kind := "conformance.test/" + name
	path := filepath.Join(dir, name+".yaml")
	writeFile(t, path, strings.ReplaceAll(text, "KIND", kind))
	t.Cleanup(func() { os.Remove(path) })
	return kind
}

func cdiDevices(names ...string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &cri.CDIDevice{Name: name})
		}
	}
}

func TestCDIDevice(t *testing.T) {
	ctx := spec(t)
	dir := t.TempDir()
	writeFile(t, dir+"/library", "of the vendor\n")
	kind := cdiFile(t, `
cdiVersion: 0.7.0
kind: KIND
containerEdits:
  env: [VENDOR=here, WHICH=none]
  mounts:
  - {hostPath: `+dir+`/library, containerPath: /usr/lib/vendor/library, options: [ro, bind]}
devices:
- name: "0"
  containerEdits:
    env: [WHICH=zero]
    deviceNodes:
    - {path: /dev/vendor/null0, hostPath: /dev/null, permissions: rw, fileMode: 0o640, uid: 3, gid: 4}
    - {path: /dev/vendor/full0, type: c, major: 1, minor: 7}
    additionalGids: [4711]
- name: other
  containerEdits: {env: [OTHER=there]}
`)
	p := runPod(t, ctx)
	k := p.run(idle, cdiDevices(kind+"=0"))
	got := k.exec(`echo $VENDOR $WHICH $OTHER; cat /usr/lib/vendor/library; echo x >/dev/vendor/null0 && echo written
		echo x >/dev/vendor/full0 || echo full; stat -c '%a %u %g' /dev/vendor/null0; id -G
		echo x 2>/dev/null >/usr/lib/vendor/library || echo read-only`)
	want := "here zero\nof the vendor\nwritten\nfull\n640 3 4\n0 4711\nread-only\n"
	// What the shell says of the full device goes to the other stream.
	if !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCDIDevicesOfAnnotations(t *testing.T) {
	ctx := spec(t)
	kind := cdiFile(t, `{"cdiVersion": "0.5.0", "kind": "KIND", "devices": [
		{"name": "a", "containerEdits": {"env": ["A=1"]}},
		{"name": "b", "containerEdits": {"env": ["B=2"]}},
		{"name": "c", "containerEdits": {"env": ["C=3"]}}]}`)
	p := runPod(t, ctx)
	k := p.run(idle, cdiDevices(kind+"=a"), func(c *cri.ContainerConfig) {
		c.Annotations["cdi.k8s.io/plugin_claim"] = kind + "=a," + kind + "=b"
	})
	if got := k.exec("echo $A$B$C"); got != "12\n" {
		t.Errorf("got %q", got)
	}
}

func TestCDIHooks(t *testing.T) {
	ctx := spec(t)
	dir := t.TempDir()
	kind := cdiFile(t, fmt.Sprintf(`
cdiVersion: 0.3.0
kind: KIND
devices:
- name: d
  containerEdits:
    hooks:
    - {hookName: createRuntime, path: /bin/sh, args: [sh, -c, 'echo $WHEN >>%[1]s/log'], env: [WHEN=created]}
    - {hookName: poststop, path: /bin/sh, args: [sh, -c, 'echo stopped >>%[1]s/log']}
`, dir))
	p := runPod(t, ctx)
	k := p.run("exit 0", cdiDevices(kind+"=d"))
	k.wait()
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	if got := readFile(t, dir+"/log"); got != "created\nstopped\n" {
		t.Errorf("got %q", got)
	}
}

// What cannot be had is named, and is there as soon as its file is.
func TestCDIDeviceThatIsNotThere(t *testing.T) {
	ctx := spec(t)
	kind := cdiFile(t, "cdiVersion: 0.5.0\nkind: KIND\ndevices: [{name: d, containerEdits: {env: [A=b]}}]\n")
	p := runPod(t, ctx)
	img := image(t, "busybox:1")
	refused := func(why string, code codes.Code, option func(*cri.ContainerConfig)) {
		t.Helper()
		_, err := p.tryCreate(p.config(img, []string{"true"}, option))
		wantCode(t, err, why, code)
		if err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("%v does not say %q", err, why)
		}
	}
	refused(kind+"=gone", codes.FailedPrecondition, cdiDevices(kind+"=d", kind+"=gone"))
	refused("gpu0", codes.InvalidArgument, cdiDevices("gpu0"))
	refused("gpu1", codes.InvalidArgument, func(c *cri.ContainerConfig) {
		c.Annotations["cdi.k8s.io/x"] = "gpu1"
	})
	missing := cdiFile(t, "cdiVersion: 0.5.0\nkind: KIND\ndevices: [{name: d, containerEdits: {deviceNodes: [{path: /dev/not-there}]}}]\n")
	refused("/dev/not-there", codes.FailedPrecondition, cdiDevices(missing+"=d"))

	// A file of somebody else with something wrong in it is nobody's error.
	dir := os.Getenv("CRI_CDI_DIR")
	bad := filepath.Join(dir, unique("bad")+".json")
	writeFile(t, bad, "{")
	t.Cleanup(func() { os.Remove(bad) })
	p.create(img, []string{"true"}, cdiDevices(kind+"=d"))

	late := cdiFile(t, "cdiVersion: 0.5.0\nkind: KIND\ndevices: [{name: d, containerEdits: {env: [A=b]}}]\n")
	p.create(img, []string{"true"}, cdiDevices(late+"=d"))
}

func TestCDINetDevice(t *testing.T) {
	ctx := spec(t)
	name := unique("v")[:10]
	ip := func(args ...string) error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	}
	ok(t, ip("link", "add", name+"a", "type", "veth", "peer", name+"b"), "veth")
	// Where the one goes the other goes.
	t.Cleanup(func() { ip("link", "del", name+"b") })
	kind := cdiFile(t, "cdiVersion: 1.1.0\nkind: KIND\ndevices: [{name: d, containerEdits: "+
		"{netDevices: [{hostInterfaceName: "+name+"a, name: card0}]}}]\n")
	p := runPod(t, ctx)
	k, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"sh", "-c", idle}, cdiDevices(kind+"=d")))
	if handler() == "crun" {
		// Debian's would leave it out in silence.
		wantCode(t, err, "netDevices", codes.Unimplemented)
		return
	}
	ok(t, err, "CreateContainer")
	k.start()
	if got := k.exec("ls /sys/class/net/card0/address"); got != "/sys/class/net/card0/address\n" {
		t.Errorf("got %q", got)
	}
}

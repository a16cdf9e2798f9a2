package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// patience is how long a spec waits for something that must come.
const patience = 60 * time.Second

var (
	peer = flag.String("runtime", "", "leave out what is known to deviate in this runtime (containerd)")

	endpoint string
	registry string
	runtime  internalapi.RuntimeService
	images   internalapi.ImageManagerService
	// What the library would not send goes by these.
	rawRuntime cri.RuntimeServiceClient
	rawImages  cri.ImageServiceClient

	pulledMu sync.Mutex
	pulled   = map[string]string{}
)

func TestMain(m *testing.M) {
	flag.Parse()
	klog.SetLogger(logr.Discard())
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		code = 2
	}
	os.Exit(code)
}

func runAll(m *testing.M) (int, error) {
	endpoint = os.Getenv("CRI_ENDPOINT")
	registry = os.Getenv("CRI_REGISTRY")
	if endpoint == "" || registry == "" {
		return 2, errors.New("CRI_ENDPOINT and CRI_REGISTRY must be set (see doc.go)")
	}
	endpoint = "unix://" + strings.TrimPrefix(endpoint, "unix://")
	ctx := context.Background()
	var err error
	runtime, err = criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(patience).Build(ctx)
	if err != nil {
		return 2, err
	}
	images, err = criclient.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(patience).Build(ctx)
	if err != nil {
		return 2, err
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 2, err
	}
	defer conn.Close()
	rawRuntime = cri.NewRuntimeServiceClient(conn)
	rawImages = cri.NewImageServiceClient(conn)

	code := m.Run()
	os.RemoveAll(podServerDir)
	// Each test removes what it made: see whether that is so.
	pods, err := runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return 2, err
	}
	for _, p := range pods {
		if p.GetMetadata().GetNamespace() == "conformance" {
			return 1, fmt.Errorf("left behind: %v", p)
		}
	}
	for name := range pulled {
		if err := images.RemoveImage(ctx, &cri.ImageSpec{Image: name}); err != nil {
			return 1, fmt.Errorf("removing image %s: %w", name, err)
		}
	}
	return code, nil
}

// spec begins each test: it runs beside others, unless the runtime under test is known to deviate.
func spec(t *testing.T) context.Context {
	t.Helper()
	known(t)
	t.Parallel()
	return within(t, 4*time.Minute)
}

// within gives a context that ends with the test, at the latest after this time.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func known(t *testing.T) {
	t.Helper()
	if why, ok := deviations[*peer][t.Name()]; ok {
		t.Skipf("%s deviates: %s", *peer, why)
	}
}

// unique gives a name that no other test, and no other run, uses.
func unique(prefix string) string {
	b := make([]byte, 6)
	rand.Read(b)
	return prefix + "-" + hex.EncodeToString(b)
}

func must[T any](t *testing.T, what string) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return v
	}
}

func ok(t *testing.T, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// wantCode asks for an error of one of these codes.
func wantCode(t *testing.T, err error, what string, want ...codes.Code) {
	t.Helper()
	got := status.Code(err)
	for _, code := range want {
		if err != nil && got == code {
			return
		}
	}
	t.Errorf("%s: got %v (%v), want %v", what, got, err, want)
}

// wantInvalid asks for the code of a bad request.
func wantInvalid(t *testing.T, err error, what string) {
	t.Helper()
	if *peer == "containerd" {
		// Any error will do: it tells a bad request from others in words only.
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		return
	}
	wantCode(t, err, what, codes.InvalidArgument)
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// ---- images

func ref(name string) string { return registry + "/test/" + name }

// image pulls a test image once for all specs, and gives its reference.
func image(t *testing.T, name string) string {
	t.Helper()
	pull(t, ref(name))
	return ref(name)
}

func pull(t *testing.T, name string) string {
	t.Helper()
	pulledMu.Lock()
	defer pulledMu.Unlock()
	id, have := pulled[name]
	if !have {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var err error
		id, err = images.PullImage(ctx, &cri.ImageSpec{Image: name}, nil, nil)
		ok(t, err, "PullImage "+name)
		pulled[name] = id
	}
	return id
}

// digestOf asks the registry for the digest of a tag.
func digestOf(t *testing.T, name string) string {
	t.Helper()
	repository, tag, _ := strings.Cut(name, ":")
	url := fmt.Sprintf("http://%s/v2/test/%s/manifests/%s", registry, repository, tag)
	req := must[*http.Request](t, url)(http.NewRequest(http.MethodHead, url, nil))
	for _, kind := range []string{
		"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json",
	} {
		req.Header.Add("Accept", kind)
	}
	answer := must[*http.Response](t, url)(http.DefaultClient.Do(req))
	answer.Body.Close()
	digest := answer.Header.Get("Docker-Content-Digest")
	if digest == "" {
		t.Fatalf("%s: %s", url, answer.Status)
	}
	return digest
}

// ---- pods

type pod struct {
	t   *testing.T
	ctx context.Context
	id  string
	cfg *cri.PodSandboxConfig
}

// podConfig is a pod as the kubelet would ask for it, changed by the options.
func podConfig(t *testing.T, options ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	t.Helper()
	name := unique("pod")
	logs := filepath.Join(t.TempDir(), "logs")
	ok(t, os.MkdirAll(logs, 0o755), "log folder")
	cfg := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: unique("uid"), Namespace: "conformance"},
		Hostname:     name,
		LogDirectory: logs,
		DnsConfig:    &cri.DNSConfig{},
		Labels:       map[string]string{"conformance": name},
		Annotations:  map[string]string{"conformance.note": "kept as it is"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: os.Getenv("CRI_CGROUP_PARENT"),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{
					Pid:           cri.NamespaceMode_CONTAINER,
					UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE},
				},
				Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
			Overhead:  &cri.LinuxContainerResources{},
			Resources: &cri.LinuxContainerResources{},
		},
	}
	for _, option := range options {
		option(cfg)
	}
	return cfg
}

func handler() string { return os.Getenv("CRI_RUNTIME_HANDLER") }

// runPod runs a pod and sees to it that it is gone after the test.
func runPod(t *testing.T, ctx context.Context, options ...func(*cri.PodSandboxConfig)) *pod {
	t.Helper()
	cfg := podConfig(t, options...)
	id := must[string](t, "RunPodSandbox")(runtime.RunPodSandbox(ctx, cfg, handler()))
	removePodAfter(t, id)
	return &pod{t: t, ctx: ctx, id: id, cfg: cfg}
}

func removePodAfter(t *testing.T, id string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		// A peer may say of a pod that is gone that it is not found.
		gone := func(err error) bool { return *peer != "" && status.Code(err) == codes.NotFound }
		if err := runtime.StopPodSandbox(ctx, id); err != nil && !gone(err) {
			t.Errorf("cleanup: StopPodSandbox: %v", err)
		}
		if err := runtime.RemovePodSandbox(ctx, id); err != nil {
			t.Errorf("cleanup: RemovePodSandbox: %v", err)
		}
	})
}

func (p *pod) status() *cri.PodSandboxStatus {
	p.t.Helper()
	answer := must[*cri.PodSandboxStatusResponse](p.t, "PodSandboxStatus")(
		runtime.PodSandboxStatus(p.ctx, p.id, false))
	return answer.GetStatus()
}

func hostNetwork(cfg *cri.PodSandboxConfig) {
	cfg.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	cfg.Hostname = ""
}

func sharedPid(cfg *cri.PodSandboxConfig) {
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

// ---- containers

type container struct {
	*pod
	id  string
	cfg *cri.ContainerConfig
}

// containerConfig is a container of this command, changed by the options.
func (p *pod) config(image string, command []string, options ...func(*cri.ContainerConfig)) *cri.ContainerConfig {
	name := unique("ctr")
	cfg := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: name},
		Image:       &cri.ImageSpec{Image: image, UserSpecifiedImage: image},
		Command:     command,
		Labels:      map[string]string{"container": name},
		Annotations: map[string]string{"io.kubernetes.container.hash": "c0ffee"},
		LogPath:     name + "/0.log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.cfg.Linux.SecurityContext.NamespaceOptions,
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
			},
		},
	}
	for _, option := range options {
		option(cfg)
	}
	return cfg
}

// tryCreate asks for a container; a name that is free again after the test is left to the pod.
func (p *pod) tryCreate(cfg *cri.ContainerConfig) (*container, error) {
	p.t.Helper()
	if cfg.LogPath != "" {
		ok(p.t, os.MkdirAll(filepath.Dir(filepath.Join(p.cfg.LogDirectory, cfg.LogPath)), 0o755), "log folder")
	}
	id, err := runtime.CreateContainer(p.ctx, p.id, cfg, p.cfg)
	return &container{pod: p, id: id, cfg: cfg}, err
}

func (p *pod) create(image string, command []string, options ...func(*cri.ContainerConfig)) *container {
	p.t.Helper()
	return must[*container](p.t, "CreateContainer")(p.tryCreate(p.config(image, command, options...)))
}

// run creates and starts a container of busybox with this shell script.
func (p *pod) run(script string, options ...func(*cri.ContainerConfig)) *container {
	p.t.Helper()
	c := p.create(image(p.t, "busybox:1"), []string{"sh", "-c", script}, options...)
	c.start()
	return c
}

// finish runs a script to its end, and gives its status.
func (p *pod) finish(script string, options ...func(*cri.ContainerConfig)) (*container, *cri.ContainerStatus) {
	p.t.Helper()
	c := p.run(script, options...)
	return c, c.wait()
}

// idle is a script that waits, and ends at once on SIGTERM.
const idle = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

func (c *container) start() {
	c.t.Helper()
	ok(c.t, runtime.StartContainer(c.ctx, c.id), "StartContainer")
}

func (c *container) status() *cri.ContainerStatus {
	c.t.Helper()
	answer := must[*cri.ContainerStatusResponse](c.t, "ContainerStatus")(
		runtime.ContainerStatus(c.ctx, c.id, false))
	return answer.GetStatus()
}

// trapped waits until the first process has set its trap for SIGTERM: a signal that comes before is
// lost on the first process of a pid namespace.
func (c *container) trapped() {
	c.t.Helper()
	caught := []string{"grep", "-qE", "^SigCgt:.*[4-7c-f][0-9a-f]{3}$", "/proc/1/status"}
	eventually(c.t, "the trap", func() bool {
		_, _, err := runtime.ExecSync(c.ctx, c.id, caught, 5*time.Second)
		return err == nil
	})
}

// trappedAsSeenFromTheNode is the same for an image with nothing to look with.
func (c *container) trappedAsSeenFromTheNode() {
	c.t.Helper()
	caught := regexp.MustCompile(`(?m)^SigCgt:.*[4-7c-f][0-9a-f]{3}$`)
	eventually(c.t, "the trap", func() bool {
		groups, _ := filepath.Glob("/proc/[0-9]*/cgroup")
		for _, path := range groups {
			group, _ := os.ReadFile(path)
			status, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
			if strings.Contains(string(group), c.id) && bytes.HasPrefix(status, []byte("Name:\tpause\n")) && caught.Match(status) {
				return true
			}
		}
		return false
	})
}

func (c *container) wait() *cri.ContainerStatus {
	c.t.Helper()
	var last *cri.ContainerStatus
	eventually(c.t, "the container's end", func() bool {
		last = c.status()
		return last.State == cri.ContainerState_CONTAINER_EXITED
	})
	return last
}

func (c *container) logPath() string {
	return filepath.Join(c.pod.cfg.LogDirectory, c.cfg.LogPath)
}

// output is what the container wrote to stdout, partial lines joined.
func (c *container) output() string {
	c.t.Helper()
	return text(c.t, readLog(c.t, c.logPath()), "stdout")
}

// exec runs a shell script in the container and asks for status 0.
func (c *container) exec(script string) string {
	c.t.Helper()
	stdout, stderr, err := runtime.ExecSync(c.ctx, c.id, []string{"sh", "-c", script}, patience)
	if err != nil {
		c.t.Fatalf("ExecSync %q: %v (stderr %q)", script, err, stderr)
	}
	return string(stdout)
}

// ---- logs

type record struct {
	time   time.Time
	stream string
	tag    string
	text   string
}

// readLog reads a log file and checks the form of every record.
func readLog(t *testing.T, path string) []record {
	t.Helper()
	data := must[[]byte](t, "log")(os.ReadFile(path))
	return parseLog(t, data)
}

func parseLog(t *testing.T, data []byte) []record {
	t.Helper()
	if len(data) == 0 {
		return nil
	}
	if data[len(data)-1] != '\n' {
		t.Errorf("the log does not end with a newline: …%q", data[max(0, len(data)-80):])
	}
	var out []record
	for n, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			t.Fatalf("log line %d has no four parts: %q", n, shorten(line))
		}
		at, err := time.Parse(time.RFC3339Nano, parts[0])
		if err != nil {
			t.Fatalf("log line %d: %v", n, err)
		}
		if parts[1] != "stdout" && parts[1] != "stderr" {
			t.Fatalf("log line %d: stream %q", n, parts[1])
		}
		if parts[2] != "F" && parts[2] != "P" {
			t.Fatalf("log line %d: tag %q", n, parts[2])
		}
		out = append(out, record{at, parts[1], parts[2], parts[3]})
	}
	return out
}

// text joins the records of a stream into lines.
func text(t *testing.T, records []record, stream string) string {
	var b strings.Builder
	for _, r := range records {
		if r.stream == stream {
			b.WriteString(r.text)
			if r.tag == "F" {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func shorten(s string) string {
	if len(s) > 200 {
		return s[:100] + "…" + s[len(s)-100:]
	}
	return s
}

// ---- files

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	ok(t, os.WriteFile(path, []byte(content), 0o644), "write "+path)
	return path
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	return string(must[[]byte](t, "read "+path)(os.ReadFile(path)))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// get fetches a page from a server that may not be up yet.
func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

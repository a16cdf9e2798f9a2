package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	spdytransport "k8s.io/client-go/transport/spdy"
	execerror "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ---- wires: how the kubelet, the API server and kubectl speak to a streaming server

type wire struct {
	name     string
	executor func(config *rest.Config, address string) (remotecommand.Executor, error)
	// halfCloses: the client can end stdin and go on reading.
	halfCloses bool
}

// clientConfig is what connects to the streaming server: plain HTTP unless a test changes it.
var clientConfig = &rest.Config{}

func spdyWire(protocols ...string) wire {
	return wire{
		name: "SPDY " + strings.Join(protocols, ","),
		executor: func(config *rest.Config, address string) (remotecommand.Executor, error) {
			target, err := url.Parse(address)
			if err != nil {
				return nil, err
			}
			transport, upgrader, err := spdytransport.RoundTripperFor(config)
			if err != nil {
				return nil, err
			}
			return remotecommand.NewSPDYExecutorForProtocols(transport, upgrader, http.MethodPost, target, protocols...)
		},
		halfCloses: true,
	}
}

func webSocketWire(protocol string) wire {
	return wire{
		name: "WebSocket " + protocol,
		executor: func(config *rest.Config, address string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, address, protocol)
		},
		halfCloses: strings.HasPrefix(protocol, "v5."),
	}
}

const (
	v5 = "v5.channel.k8s.io"
	v4 = "v4.channel.k8s.io"
	v3 = "v3.channel.k8s.io"
	v2 = "v2.channel.k8s.io"
	v1 = "channel.k8s.io"
)

var wires = []wire{spdyWire(v4), webSocketWire(v5), webSocketWire(v4)}

// overWires runs a part over each wire, in one container that does nothing, and looks at it after.
func overWires(t *testing.T, ctx context.Context, part func(t *testing.T, w wire, k *container)) {
	t.Helper()
	k := runPod(t, ctx).run(idle)
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			w.known(t)
			part(t, w, k.in(t))
			k.in(t).well()
		})
	}
}

// known leaves out a wire that the runtime under test does not know.
func (w wire) known(t *testing.T) {
	t.Helper()
	if why, ok := deviations[*peer][w.name]; ok {
		t.Skipf("%s deviates: %s", *peer, why)
	}
}

// in is the same container in a part of the test.
func (c *container) in(t *testing.T) *container {
	return &container{pod: &pod{t: t, ctx: c.ctx, id: c.pod.id, cfg: c.pod.cfg}, id: c.id, cfg: c.cfg}
}

// well sees that commands still run in the container, and that none is left from before: a process
// that came from outside has no parent within.
func (c *container) well() {
	c.t.Helper()
	begin := time.Now()
	for {
		out := c.exec("for f in /proc/[0-9]*/status; do grep -q '^PPid:.0$' $f && echo $(tr '\\0' ' ' < ${f%status}cmdline); done 2>/dev/null; :")
		// The first process, and the one that looks.
		if lines := strings.Count(out, "\n"); lines == 2 {
			return
		}
		if time.Since(begin) > patience {
			c.t.Fatalf("left running in the container: %s", out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// ---- what a client sees

// screen keeps what a stream brought, for those who wait for some of it.
type screen struct {
	mu      sync.Mutex
	data    []byte
	over    bool
	changed chan struct{}
}

func newScreen() *screen { return &screen{changed: make(chan struct{})} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data = append(s.data, p...)
	close(s.changed)
	s.changed = make(chan struct{})
	return len(p), nil
}

// ends says that nothing more will come.
func (s *screen) ends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.data)
}

// saw waits until the text has come.
func (s *screen) saw(want string, within time.Duration) error {
	late := time.After(within)
	for {
		s.mu.Lock()
		found, over, changed := bytes.Contains(s.data, []byte(want)), s.over, s.changed
		s.mu.Unlock()
		if found {
			return nil
		}
		if over {
			return fmt.Errorf("ended before %q; there is %q", want, shorten(s.String()))
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("waited in vain for %q; there is %q", want, shorten(s.String()))
		}
	}
}

// wait fails the test unless the text comes.
func (s *screen) wait(t *testing.T, want string) {
	t.Helper()
	if err := s.saw(want, patience); err != nil {
		t.Fatal(err)
	}
}

// sizes is a terminal whose window changes when it is told to.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, open := <-s
	if !open {
		return nil
	}
	return &size
}

// ---- sessions

// session is an exec or attach with a client-go executor.
type session struct {
	t              *testing.T
	stdin          *io.PipeWriter
	stdout, stderr *screen
	sizes          sizes
	result         chan error
	hangUp         context.CancelFunc
}

// streams says which of them a session has.
type streams struct {
	stdin, stdout, stderr, tty bool
}

var (
	outputs  = streams{stdout: true, stderr: true}
	allThree = streams{stdin: true, stdout: true, stderr: true}
	terminal = streams{stdin: true, stdout: true, tty: true}
)

func execURL(ctx context.Context, id string, s streams, command ...string) (string, error) {
	answer, err := runtime.Exec(ctx, &cri.ExecRequest{
		ContainerId: id, Cmd: command, Stdin: s.stdin, Stdout: s.stdout, Stderr: s.stderr, Tty: s.tty,
	})
	return answer.GetUrl(), err
}

func attachURL(ctx context.Context, id string, s streams) (string, error) {
	answer, err := runtime.Attach(ctx, &cri.AttachRequest{
		ContainerId: id, Stdin: s.stdin, Stdout: s.stdout, Stderr: s.stderr, Tty: s.tty,
	})
	return answer.GetUrl(), err
}

func forwardURL(ctx context.Context, pod string, ports ...int32) (string, error) {
	answer, err := runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: pod, Port: ports})
	return answer.GetUrl(), err
}

// open starts a session at an address.
func (w wire) open(t *testing.T, address string, s streams) *session {
	t.Helper()
	executor := must[remotecommand.Executor](t, w.name)(w.executor(clientConfig, address))
	ctx, cancel := context.WithCancel(context.Background())
	out := &session{t: t, stdout: newScreen(), stderr: newScreen(), result: make(chan error, 1), hangUp: cancel}
	options := remotecommand.StreamOptions{Tty: s.tty}
	if s.stdin {
		options.Stdin, out.stdin = io.Pipe()
	}
	if s.stdout {
		options.Stdout = out.stdout
	}
	if s.stderr {
		options.Stderr = out.stderr
	}
	if s.tty {
		out.sizes = make(sizes, 8)
		options.TerminalSizeQueue = out.sizes
	}
	ended := make(chan struct{})
	go func() {
		out.result <- executor.StreamWithContext(ctx, options)
		out.stdout.ends()
		out.stderr.ends()
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		if s.stdin {
			out.stdin.Close()
		}
		if s.tty {
			close(out.sizes)
		}
		// A client that is stuck in a write cannot be freed.
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("cleanup: the client does not end")
		}
	})
	return out
}

func (w wire) exec(k *container, s streams, command ...string) *session {
	k.t.Helper()
	return w.open(k.t, must[string](k.t, "Exec")(execURL(k.ctx, k.id, s, command...)), s)
}

func (w wire) attach(k *container, s streams) *session {
	k.t.Helper()
	return w.open(k.t, must[string](k.t, "Attach")(attachURL(k.ctx, k.id, s)), s)
}

func (s *session) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, text); err != nil {
		s.t.Fatalf("stdin: %v", err)
	}
}

// end waits for the session's end.
func (s *session) end() error {
	s.t.Helper()
	select {
	case err := <-s.result:
		return err
	case <-time.After(patience):
		s.t.Fatalf("the session does not end; stdout %q, stderr %q",
			shorten(s.stdout.String()), shorten(s.stderr.String()))
		return nil
	}
}

// exits asks for this exit code.
func (s *session) exits(want int) {
	s.t.Helper()
	if err := s.end(); codeOf(err) != want {
		s.t.Errorf("ended with %v, want exit code %d; stdout %q, stderr %q",
			err, want, shorten(s.stdout.String()), shorten(s.stderr.String()))
	}
}

// codeOf gives the exit code that an executor reported; -1 is any other error.
func codeOf(err error) int {
	var exit execerror.CodeExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	default:
		return -1
	}
}

// run executes a shell script in the container and gives what it wrote.
func (w wire) run(k *container, script string) (stdout, stderr string, err error) {
	k.t.Helper()
	s := w.exec(k, outputs, "sh", "-c", script)
	err = s.end()
	return s.stdout.String(), s.stderr.String(), err
}

// works asks for an exec over SPDY that does what it should.
func (c *container) works() {
	c.t.Helper()
	if out, _, err := wires[0].run(c, "echo fine"); err != nil || out != "fine\n" {
		c.t.Errorf("another exec: %v, %q", err, out)
	}
}

// ---- bytes

// noise gives this many bytes that no two seeds have in common.
func noise(seed uint64, n int64) io.Reader {
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// meter counts and hashes what is written to it.
type meter struct {
	hash hash.Hash
	n    int64
}

func newMeter() *meter { return &meter{hash: sha256.New()} }

func (m *meter) Write(p []byte) (int, error) {
	m.hash.Write(p)
	m.n += int64(len(p))
	return len(p), nil
}

func (m *meter) String() string { return fmt.Sprintf("%d %x", m.n, m.hash.Sum(nil)) }

// sumOf measures all that a reader has.
func sumOf(r io.Reader) string {
	m := newMeter()
	if _, err := io.Copy(m, r); err != nil {
		return err.Error()
	}
	return m.String()
}

// ---- port-forward

var (
	podServerOnce sync.Once
	podServerDir  string
	podServerErr  error
)

// podServer builds cmd/podserver once for all specs.
func podServer(t *testing.T) string {
	t.Helper()
	podServerOnce.Do(func() {
		if podServerDir, podServerErr = os.MkdirTemp("", "criod-podserver"); podServerErr != nil {
			return
		}
		build := exec.Command("go", "build", "-o", podServerDir, "./cmd/podserver")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			podServerErr = fmt.Errorf("%w: %s", err, out)
		}
	})
	ok(t, podServerErr, "building podserver")
	return filepath.Join(podServerDir, "podserver")
}

// serve runs podserver in a container, and gives it with the ports of its services.
func (p *pod) serve(options ...func(*cri.ContainerConfig)) (*container, map[string]int) {
	p.t.Helper()
	program := podServer(p.t)
	options = append(options, func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: program, ContainerPath: "/podserver", Readonly: true})
	})
	k := p.create(image(p.t, "busybox:1"), []string{"/podserver"}, options...)
	k.start()
	ports := map[string]int{}
	eventually(p.t, "podserver", func() bool {
		data, _ := os.ReadFile(k.logPath())
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) == 5 {
				ports[fields[3]], _ = strconv.Atoi(fields[4])
			}
		}
		return strings.HasSuffix(string(data), " ready\n")
	})
	return k, ports
}

// The ways to forward ports with client-go.
var dialers = []struct {
	name string
	dial func(config *rest.Config, address string) (httpstream.Dialer, error)
}{
	{"SPDY", func(config *rest.Config, address string) (httpstream.Dialer, error) {
		target, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		transport, upgrader, err := spdytransport.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return spdytransport.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target), nil
	}},
	{"SPDY in WebSocket", func(config *rest.Config, address string) (httpstream.Dialer, error) {
		target, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return portforward.NewSPDYOverWebsocketDialer(target, config)
	}},
}

// forward listens on a port of the loopback for a port of the pod, as kubectl does.
type forward struct {
	address string
	result  chan error
	stop    func()
}

func forwardOver(t *testing.T, dialer httpstream.Dialer, port int) *forward {
	t.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder := must[*portforward.PortForwarder](t, "port-forward")(portforward.NewOnAddresses(
		dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard))
	f := &forward{result: make(chan error, 1), stop: sync.OnceFunc(func() { close(stop) })}
	ended := make(chan struct{})
	go func() {
		f.result <- forwarder.ForwardPorts()
		close(ended)
	}()
	t.Cleanup(func() {
		f.stop()
		// A client that is stuck in a write cannot be freed.
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("cleanup: the client does not end")
		}
	})
	select {
	case <-ready:
	case err := <-f.result:
		f.result <- err
		t.Fatalf("port-forward: %v", err)
	case <-time.After(patience):
		t.Fatal("port-forward does not begin")
	}
	local := must[[]portforward.ForwardedPort](t, "ports")(forwarder.GetPorts())
	f.address = fmt.Sprintf("127.0.0.1:%d", local[0].Local)
	return f
}

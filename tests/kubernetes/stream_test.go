package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	execerror "k8s.io/client-go/util/exec"
)

// ---- what a stream brings

// screen keeps what a stream brought, for those who wait for some of it.
type screen struct {
	mu   sync.Mutex
	data []byte
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data = append(s.data, p...)
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.data)
}

func (s *screen) wait(t *testing.T, want string) {
	t.Helper()
	eventually(t, strconv.Quote(want)+" on the screen", func() (bool, string) {
		now := s.String()
		return strings.Contains(now, want), strconv.Quote(now)
	})
}

func noise(seed uint64) io.Reader {
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	return rand.NewChaCha8(key)
}

// pump sends bytes that no two pumps have in common to something that gives them back, and checks
// each: a chunk is sent when the one before has come back.
type pump struct {
	name         string
	got          atomic.Int64
	sent, expect io.Reader
	fault        atomic.Pointer[error]
	enough, over chan struct{}
}

const chunk = 4000

func newPump(name string, seed uint64) *pump {
	return &pump{
		name: name, sent: noise(seed), expect: noise(seed),
		enough: make(chan struct{}), over: make(chan struct{}),
	}
}

func (p *pump) fail(err error) { p.fault.CompareAndSwap(nil, &err) }

// Write takes what comes back.
func (p *pump) Write(data []byte) (int, error) {
	want := make([]byte, len(data))
	io.ReadFull(p.expect, want)
	if !bytes.Equal(want, data) {
		err := fmt.Errorf("wrong bytes after %d", p.got.Load())
		p.fail(err)
		return 0, err
	}
	p.got.Add(int64(len(data)))
	return len(data), nil
}

// run sends until it is told to stop, and all has come back.
func (p *pump) run(to io.Writer) {
	defer close(p.over)
	for sent := int64(0); ; {
		if _, err := io.CopyN(to, p.sent, chunk); err != nil {
			p.fail(fmt.Errorf("sending: %w", err))
			return
		}
		sent += chunk
		for late := time.Now().Add(patience); p.got.Load() < sent; time.Sleep(time.Millisecond) {
			if p.fault.Load() != nil || time.Now().After(late) {
				p.fail(fmt.Errorf("%d of %d bytes came back", p.got.Load(), sent))
				return
			}
		}
		// What else there is needs time, too.
		select {
		case <-p.enough:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends it.
func (p *pump) stop(t *testing.T) {
	t.Helper()
	close(p.enough)
	<-p.over
	if err := p.fault.Load(); err != nil {
		t.Errorf("%s, at last: %v", p.name, *err)
	}
}

// moves waits until some more chunks have been there and back.
func (p *pump) moves(t *testing.T, when string) {
	t.Helper()
	want := p.got.Load() + 3*chunk
	eventually(t, fmt.Sprintf("%s, %s: bytes that come back", p.name, when), func() (bool, string) {
		if err := p.fault.Load(); err != nil {
			t.Fatalf("%s, %s: %v", p.name, when, *err)
		}
		return p.got.Load() >= want, fmt.Sprint(p.got.Load())
	})
}

// ---- the kubelet's own server

func serverURL(t *testing.T, path string, query url.Values) *url.URL {
	t.Helper()
	address := must[*url.URL](t, path)(url.Parse(server + path))
	address.RawQuery = query.Encode()
	return address
}

func executor(t *testing.T, kind string, address *url.URL) remotecommand.Executor {
	t.Helper()
	if kind == "SPDY" {
		return must[remotecommand.Executor](t, kind)(remotecommand.NewSPDYExecutor(toServer, http.MethodPost, address))
	}
	return must[remotecommand.Executor](t, kind)(remotecommand.NewWebSocketExecutor(toServer, http.MethodGet, address.String()))
}

func exitCode(err error) int {
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

// sizes is a terminal whose window changes when it is told to.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	if size, open := <-s; open {
		return &size
	}
	return nil
}

// echoes is a pod with all that a stream can be opened to.
func echoes(name string) *v1.Pod {
	cat := sh("cat", "cat")
	cat.Command, cat.Stdin = []string{"cat"}, true
	return ofPod(name, v1.RestartPolicyAlways,
		[]v1.Container{probed(sh("echo", background(echoServer)), tcpProbe(9090)), cat},
		// A first process that does not care for SIGTERM.
		func(spec *v1.PodSpec) { *spec.TerminationGracePeriodSeconds = 1 })
}

// within gives a context that ends with the test, at the latest after some minutes.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAloneExecThroughTheKubelet(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("exec", v1.RestartPolicyAlways, []v1.Container{sh("it", idle)}))
	p.untilReady()
	for _, kind := range []string{"SPDY", "WebSocket"} {
		query := url.Values{"command": {"sh", "-c", "cat; echo error >&2; exit 3"}, "input": {"1"}, "output": {"1"}, "error": {"1"}}
		run := executor(t, kind, serverURL(t, "/exec/default/"+p.name+"/it", query))
		var stdout, stderr bytes.Buffer
		sent := strings.Repeat("0123456789abcde\n", 1<<15)
		err := run.StreamWithContext(within(t), remotecommand.StreamOptions{
			Stdin: strings.NewReader(sent), Stdout: &stdout, Stderr: &stderr})
		equal(t, kind+": exit code", exitCode(err), 3)
		equal(t, kind+": what came back is what was sent", stdout.String() == sent, true)
		equal(t, kind+": stderr", stderr.String(), "error\n")

		query = url.Values{"command": {"sh"}, "input": {"1"}, "output": {"1"}, "tty": {"1"}}
		run = executor(t, kind, serverURL(t, "/exec/default/"+p.name+"/it", query))
		window, out, result := make(sizes, 1), &screen{}, make(chan error, 1)
		in, keyboard := io.Pipe()
		window <- remotecommand.TerminalSize{Width: 77, Height: 33}
		go func() {
			result <- run.StreamWithContext(within(t), remotecommand.StreamOptions{
				Stdin: in, Stdout: out, Tty: true, TerminalSizeQueue: window})
		}()
		fmt.Fprintln(keyboard, "until stty size | grep '33 77'; do sleep 0.1; done; tty")
		out.wait(t, "33 77\r\n/dev/pts/")
		window <- remotecommand.TerminalSize{Width: 99, Height: 44}
		fmt.Fprintln(keyboard, "until stty size | grep '44 99'; do sleep 0.1; done; exit 5")
		equal(t, kind+": exit code with a terminal", exitCode(<-result), 5)
		close(window)
	}
}

func TestAloneAttachThroughTheKubelet(t *testing.T) {
	t.Parallel()
	p := static(t, echoes("attach"))
	p.untilReady()
	query := url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}}
	for n, kind := range []string{"SPDY", "WebSocket"} {
		run := executor(t, kind, serverURL(t, "/attach/default/"+p.name+"/cat", query))
		in, keyboard := io.Pipe()
		ctx, hangUp := context.WithCancel(within(t))
		over, pump := make(chan error, 1), newPump(kind, uint64(n))
		go func() {
			over <- run.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: pump, Stderr: io.Discard})
		}()
		go pump.run(keyboard)
		pump.moves(t, "attached")
		pump.moves(t, "attached")
		pump.stop(t)
		hangUp()
		<-over
	}
	pod := must[*v1.Pod](t, "pod")(p.find())
	equal(t, "restarts", status(pod, "cat").RestartCount, 0)
}

// forwardFromServer forwards a port of the pod to one of the loopback, and gives that address.
func forwardFromServer(t *testing.T, p *pod, port int) string {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(toServer)
	ok(t, err, "port-forward")
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost,
		serverURL(t, "/portForward/default/"+p.name, nil))
	stop, ready, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder := must[*portforward.PortForwarder](t, "port-forward")(portforward.NewOnAddresses(
		dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard))
	go func() { over <- forwarder.ForwardPorts() }()
	t.Cleanup(func() {
		close(stop)
		<-over
	})
	select {
	case <-ready:
	case err := <-over:
		over <- err
		t.Fatalf("port-forward: %v", err)
	case <-time.After(patience):
		t.Fatal("port-forward does not begin")
	}
	ports := must[[]portforward.ForwardedPort](t, "ports")(forwarder.GetPorts())
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

// pumpThrough runs a pump over a connection, until it is told to hang up or the test ends.
func pumpThrough(t *testing.T, name string, seed uint64, address string) (*pump, func()) {
	t.Helper()
	conn := must[net.Conn](t, name)(net.Dial("tcp", address))
	pump := newPump(name, seed)
	go io.Copy(pump, conn)
	go pump.run(conn)
	hangUp := sync.OnceFunc(func() {
		pump.stop(t)
		conn.Close()
	})
	t.Cleanup(hangUp)
	return pump, hangUp
}

func TestAlonePortForwardThroughTheKubelet(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("forward", v1.RestartPolicyAlways, []v1.Container{
		probed(sh("echo", background(echoServer)), tcpProbe(9090)),
		probed(sh("web", background(webServer)), httpProbe("/healthz"))}))
	p.untilReady()
	for n := range uint64(3) {
		pump, hangUp := pumpThrough(t, "port-forward", n, forwardFromServer(t, p, 9090))
		pump.moves(t, "forwarded")
		hangUp()
	}
	answer := must[*http.Response](t, "web")(http.Get("http://" + forwardFromServer(t, p, 8080) + "/healthz"))
	defer answer.Body.Close()
	equal(t, "web", string(must[[]byte](t, "web")(io.ReadAll(answer.Body))), "fine\n")
}

func TestAloneLogsThroughTheKubelet(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("logs", v1.RestartPolicyNever, []v1.Container{
		sh("it", "seq 3; until [ -e /go ]; do sleep 0.1; done; seq 4 2000; head -c 100000 /dev/zero | tr '\\0' x; echo")}))
	p.untilReady()
	path := "/containerLogs/default/" + p.name + "/it"
	eventually(t, "the first lines", func() (bool, string) {
		log, err := fetch(path)
		return log == "1\n2\n3\n", fmt.Sprint(log, err)
	})
	equal(t, "tail", must[string](t, "tail")(fetch(path+"?tailLines=2")), "2\n3\n")
	answer := must[*http.Response](t, "follow")(client.Get(server + path + "?follow=true"))
	defer answer.Body.Close()
	p.exec("it", "touch /go")
	followed := string(must[[]byte](t, "follow")(io.ReadAll(answer.Body)))
	var want strings.Builder
	for n := range 2000 {
		fmt.Fprintln(&want, n+1)
	}
	want.WriteString(strings.Repeat("x", 100000) + "\n")
	equal(t, "what was followed to the end is all", followed == want.String(), true)
	p.untilPhase(v1.PodSucceeded)
	equal(t, "what is read later is all", must[string](t, "log")(fetch(path)) == want.String(), true)
}

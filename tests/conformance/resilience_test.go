package conformance

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/remotecommand"
)

// pump sends bytes that no two pumps have in common and checks those that come back, in lock step:
// a chunk is sent when the one before has come back.
type pump struct {
	name   string
	chunk  int64
	got    atomic.Int64
	back   chan struct{}
	fault  chan error
	sent   io.Reader
	expect io.Reader
}

func newPump(name string, seed uint64, chunk int64) *pump {
	return &pump{
		name: name, chunk: chunk, back: make(chan struct{}, 1), fault: make(chan error, 1),
		sent: noise(seed, 1<<62), expect: noise(seed, 1<<62),
	}
}

func (p *pump) fail(err error) {
	select {
	case p.fault <- err:
	default:
	}
}

// Write takes what comes back.
func (p *pump) Write(data []byte) (int, error) {
	want := make([]byte, len(data))
	io.ReadFull(p.expect, want)
	if string(want) != string(data) {
		err := fmt.Errorf("wrong bytes after %d", p.got.Load())
		p.fail(err)
		return 0, err
	}
	p.got.Add(int64(len(data)))
	select {
	case p.back <- struct{}{}:
	default:
	}
	return len(data), nil
}

// run sends until the context ends.
func (p *pump) run(ctx context.Context, to io.Writer) {
	for sent := int64(0); ctx.Err() == nil; {
		if _, err := io.CopyN(to, p.sent, p.chunk); err != nil {
			if ctx.Err() == nil {
				p.fail(fmt.Errorf("sending: %w", err))
			}
			return
		}
		sent += p.chunk
		for late := time.After(patience); p.got.Load() < sent; {
			select {
			case <-p.back:
			case <-ctx.Done():
				return
			case <-late:
				p.fail(fmt.Errorf("%d of %d bytes came back", p.got.Load(), sent))
				return
			}
		}
		// What else there is needs time, too.
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// moves waits until some more chunks have been there and back.
func (p *pump) moves(t *testing.T, when string) {
	t.Helper()
	want := p.got.Load() + 5*p.chunk
	for late := time.Now().Add(patience); p.got.Load() < want; time.Sleep(time.Millisecond) {
		select {
		case err := <-p.fault:
			t.Fatalf("%s, %s: %v", p.name, when, err)
		default:
		}
		if time.Now().After(late) {
			t.Fatalf("%s, %s: no bytes come back", p.name, when)
		}
	}
}

// restarter kills criod and starts it again, by the script that the environment names: "kill" sends
// SIGKILL and waits until it is dead, "start" waits until it answers, "start next" takes another copy
// of the program, "reload" has a successor take over and waits until that answers.
type restarter struct {
	t      *testing.T
	script string
}

// restarts gives the restarter of a spec, which is skipped where there is none.
func restarts(t *testing.T) restarter {
	t.Helper()
	script := os.Getenv("CRIOD_RESTART")
	if script == "" {
		t.Skip("CRIOD_RESTART names no script that kills the daemon and starts it")
	}
	return restarter{t, script}
}

func (r restarter) run(arguments ...string) {
	r.t.Helper()
	if out, err := exec.Command(r.script, arguments...).CombinedOutput(); err != nil {
		r.t.Fatalf("%s %q: %v: %s", r.script, arguments, err, out)
	}
}

// Sessions that are open go on, byte for byte, while criod is killed and started ten times, every
// other time as another copy of the program.
func TestStreamsOutliveTheDaemon(t *testing.T) {
	criod := restarts(t)
	// Not beside other specs: they would miss the daemon.
	ctx := within(t, 4*time.Minute)
	p := runPod(t, ctx)
	k := p.run(idle)
	_, ports := p.serve()

	pumping, stop := context.WithCancel(ctx)
	var sending sync.WaitGroup
	var pumps []*pump
	var closers []func() error
	finish := sync.OnceFunc(func() {
		stop()
		// Whoever is in the middle of sending is let go.
		for _, close := range closers {
			close()
		}
		sending.Wait()
	})
	t.Cleanup(finish)
	add := func(name string, chunk int64) *pump {
		pump := newPump(name, uint64(len(pumps)), chunk)
		pumps = append(pumps, pump)
		return pump
	}
	// open begins an exec or attach whose bytes come back as they are, once it has said "ready".
	open := func(w wire, name, address string, s streams) *after {
		t.Helper()
		pump := add(name+" over "+w.name, 16<<10)
		executor := must[remotecommand.Executor](t, name)(w.executor(clientConfig, address))
		stdin, typed := io.Pipe()
		output := newAfter("ready", pump)
		options := remotecommand.StreamOptions{Stdin: stdin, Stdout: output, Tty: s.tty}
		if s.stderr {
			options.Stderr = pump // nothing is right
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			err := executor.StreamWithContext(pumping, options)
			if pumping.Err() == nil {
				pump.fail(fmt.Errorf("the session ended with %v", err))
			}
		}()
		sending.Go(func() {
			select {
			case <-output.begun:
				pump.run(pumping, typed)
			case <-pumping.Done():
			}
		})
		closers = append(closers, stdin.Close, func() error { <-ended; return nil })
		return output
	}
	var forwards []*forward
	var windows []*session
	for n, w := range []wire{wires[0], wires[1]} {
		open(w, "exec", must[string](t, "Exec")(execURL(ctx, k.id, allThree, "sh", "-c", "printf ready; exec cat")), allThree)
		open(w, "exec on a terminal", must[string](t, "Exec")(execURL(ctx, k.id, terminal,
			"sh", "-c", "stty raw -echo; printf ready; exec cat")), terminal)
		echo := p.run("until [ -e /go ]; do printf .; sleep 0.05; done; printf ready; exec cat", withStdin)
		attached := open(w, "attach", must[string](t, "Attach")(attachURL(ctx, echo.id, allThree)), allThree)
		soon(t, "the container's output", attached.first)
		echo.exec("touch /go")

		windows = append(windows, w.exec(k, terminal, "sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"))
		windows[n].stdout.wait(t, "ready")

		d := dialers[n]
		dialer := must[httpstream.Dialer](t, d.name)(d.dial(clientConfig, must[string](t, "PortForward")(forwardURL(ctx, p.id))))
		f := forwardOver(t, dialer, ports["echo"])
		forwards = append(forwards, f)
		conn := must[net.Conn](t, "connect")(net.Dial("tcp", f.address))
		closers = append(closers, conn.Close)
		pump := add("port-forward over "+d.name, 64<<10)
		sending.Go(func() { pump.run(pumping, conn) })
		go func() {
			_, err := io.Copy(pump, conn)
			if pumping.Err() == nil {
				pump.fail(fmt.Errorf("the connection ended with %v", err))
			}
		}()
	}
	all := func(when string) {
		t.Helper()
		for _, pump := range pumps {
			pump.moves(t, when)
		}
	}
	all("before")
	const rounds = 10
	for round := range rounds {
		// A token from before serves after.
		var addresses []string
		for range wires {
			addresses = append(addresses, must[string](t, "Exec")(execURL(ctx, k.id, allThree, "sh", "-c", "read line; echo got $line; exit 4")))
		}
		criod.run("kill")
		all(fmt.Sprintf("round %d, without criod", round))
		for n, f := range forwards {
			if err := ping(f.address, fmt.Sprintf("round %d", round)); err != nil {
				t.Fatalf("round %d: a new connection without criod, %s: %v", round, dialers[n].name, err)
			}
		}
		for n, window := range windows {
			window.sizes <- remotecommand.TerminalSize{Width: 80, Height: uint16(100 + round)}
			if err := window.stdout.saw(fmt.Sprintf("%d 80\r\n", 100+round), patience); err != nil {
				t.Fatalf("round %d: the window without criod, %s: %v", round, wires[n].name, err)
			}
		}
		var waiting []*session
		for n, w := range wires {
			waiting = append(waiting, w.open(t, addresses[n], allThree))
		}
		time.Sleep(100 * time.Millisecond)
		if round%2 == 0 {
			criod.run("start", "next")
		} else {
			criod.run("start")
		}
		for _, s := range waiting {
			s.say("hello\n")
			s.exits(4)
			if s.stdout.String() != "got hello\n" {
				t.Fatalf("round %d: a session from without criod: %q", round, s.stdout)
			}
		}
		all(fmt.Sprintf("round %d, with criod again", round))
		k.works()
	}
	for n, f := range forwards {
		if err := ping(f.address, "at last"); err != nil {
			t.Errorf("%s: %v", dialers[n].name, err)
		}
	}
	for _, window := range windows {
		window.say("\x03")
		window.exits(130)
	}
	var total int64
	for _, pump := range pumps {
		total += pump.got.Load()
	}
	t.Logf("%d sessions, %d MiB", len(pumps)+len(windows), total>>20)
	finish()
	k.well()
}

// after passes on what comes after a word; its first byte, and the word, are waited for.
type after struct {
	word         string
	seen         string
	first, begun chan struct{}
	to           io.Writer
}

func newAfter(word string, to io.Writer) *after {
	return &after{word: word, first: make(chan struct{}), begun: make(chan struct{}), to: to}
}

func (a *after) Write(data []byte) (int, error) {
	if strings.HasSuffix(a.seen, a.word) {
		return a.to.Write(data)
	}
	if a.seen == "" {
		close(a.first)
	}
	// Nothing follows the word before something was sent.
	a.seen += string(data)
	if strings.HasSuffix(a.seen, a.word) {
		close(a.begun)
	}
	return len(data), nil
}

func soon(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

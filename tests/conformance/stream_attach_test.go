package conformance

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func withStdin(c *cri.ContainerConfig) { c.Stdin = true }

func withStdinOnce(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }

func withTerminal(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true }

// eachWire runs a part over each wire, in a pod of its own.
func eachWire(t *testing.T, ctx context.Context, part func(t *testing.T, w wire, p *pod)) {
	t.Helper()
	p := runPod(t, ctx)
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			w.known(t)
			part(t, w, &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg})
		})
	}
}

// answers is a script that answers each line on both outputs, and says when there are no more.
const answers = `while read line; do echo "got $line"; echo "err $line" >&2; [ "$line" = exit ] && exit 3; done; echo end; exit 4`

// attached opens a session and waits until the container's answers come to it.
func (w wire) attached(k *container, s streams) *session {
	k.t.Helper()
	session := w.attach(k, s)
	word := unique("hello")
	session.say(word + "\n")
	session.stdout.wait(k.t, "got "+word)
	return session
}

func TestAttach(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run(answers, withStdin)
		s := w.attach(k, allThree)
		s.say("one\n")
		s.stdout.wait(t, "got one\n")
		s.stderr.wait(t, "err one\n")
		s.say("two\n")
		s.stdout.wait(t, "got two\n")
		if strings.Contains(s.stdout.String(), "err") || strings.Contains(s.stderr.String(), "got") {
			t.Errorf("stdout %q, stderr %q", s.stdout, s.stderr)
		}
		s.hangUp()
		s.end()
		// The container has lost nothing, and hears the next one.
		s = w.attached(k, allThree)
		s.say("exit\n")
		s.stdout.wait(t, "got exit\n")
		s.stderr.wait(t, "err exit\n")
		// A client is told that all is over, not how.
		s.end()
		if status := k.wait(); status.ExitCode != 3 {
			t.Errorf("exit code %d", status.ExitCode)
		}
		if log := k.output(); !strings.HasPrefix(log, "got one\ngot two\n") || !strings.HasSuffix(log, "got exit\n") {
			t.Errorf("log %q", log)
		}
	})
}

func TestAttachSeesWhatIsNew(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run("echo before; n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done")
		eventually(t, "a line in the log", func() bool {
			data, _ := os.ReadFile(k.logPath())
			return strings.Contains(string(data), "tick 3\n")
		})
		first := w.attach(k, outputs)
		second := w.attach(k, streams{stdout: true})
		first.stdout.wait(t, "tick")
		second.stdout.wait(t, "tick")
		if got := first.stdout.String() + second.stdout.String(); strings.Contains(got, "before") || strings.Contains(got, "tick 1\n") {
			t.Errorf("old output: %q", got)
		}
		second.hangUp()
		second.end()
		// The other goes on.
		seen := strings.Count(first.stdout.String(), "tick")
		eventually(t, "more ticks", func() bool { return strings.Count(first.stdout.String(), "tick") > seen+2 })
	})
}

// Both clients see all, and both are heard.
func TestAttachTwoClients(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run(answers, withStdin)
		first, second := w.attached(k, allThree), w.attached(k, allThree)
		for n, s := range []*session{first, second} {
			word := fmt.Sprintf("from %d", n)
			s.say(word + "\n")
			for _, each := range []*session{first, second} {
				each.stdout.wait(t, "got "+word+"\n")
				each.stderr.wait(t, "err "+word+"\n")
			}
		}
		ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer")
		first.end()
		second.end()
	})
}

// What the container writes as its last words comes to those who are attached.
func TestAttachBringsTheLastWords(t *testing.T) {
	ctx := spec(t)
	const size = 1 << 20
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run(fmt.Sprintf("read line; echo got $line; read line; head -c %d /dev/zero | tr '\\0' x; exit 3", size), withStdin)
		s := w.attached(k, allThree)
		begun := len(s.stdout.String())
		s.say("go\n")
		s.end()
		if got := s.stdout.String()[begun:]; got != strings.Repeat("x", size) {
			t.Errorf("%d bytes: %q", len(got), shorten(got))
		}
	})
}

func TestAttachStdinStaysOpen(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run(answers, withStdin)
		s := w.attached(k, allThree)
		s.stdin.Close()
		s.hangUp()
		s.end()
		s = w.attached(k, allThree)
		if strings.Contains(k.output(), "end\n") {
			t.Errorf("stdin was closed: %q", k.output())
		}
		s.hangUp()
	})
}

func TestAttachStdinOnce(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		// By the end of the client's stdin …
		if w.halfCloses {
			k := p.run(answers, withStdinOnce)
			s := w.attached(k, allThree)
			s.stdin.Close()
			s.stdout.wait(t, "end\n")
			s.end()
			if status := k.wait(); status.ExitCode != 4 {
				t.Errorf("exit code %d", status.ExitCode)
			}
		}
		// … or that of the client.
		k := p.run(answers, withStdinOnce)
		w.attached(k, allThree).hangUp()
		if status := k.wait(); status.ExitCode != 4 {
			t.Errorf("exit code %d", status.ExitCode)
		}
	})
}

// A client without stdin ends nothing.
func TestAttachWithoutStdinLeavesStdinOpen(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run("(while :; do echo tick; sleep 0.1; done) & "+answers, withStdinOnce)
		s := w.attach(k, outputs)
		s.stdout.wait(t, "tick")
		s.hangUp()
		s.end()
		s = w.attached(k, allThree)
		s.say("exit\n")
		if status := k.wait(); status.ExitCode != 3 {
			t.Errorf("exit code %d", status.ExitCode)
		}
	})
}

func TestAttachToATerminal(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run("trap 'echo size $(stty size)' WINCH; [ -t 0 ] && echo terminal; while :; do read line && echo got $line; done", withTerminal)
		s := w.attached(k, terminal)
		s.sizes <- remotecommand.TerminalSize{Width: 132, Height: 50}
		s.stdout.wait(t, "size 50 132\r\n")
		second := w.attached(k, terminal)
		second.sizes <- remotecommand.TerminalSize{Width: 81, Height: 25}
		s.stdout.wait(t, "size 25 81\r\n")
		second.stdout.wait(t, "size 25 81\r\n")
		second.hangUp()
		second.end()
		// The container's terminal stays.
		s.say("more\n")
		s.stdout.wait(t, "got more\r\n")
		s.say("\x03")
		s.end()
		k.wait()
	})
}

// Detaching and attaching by the dozen leaves the container as it was.
func TestAttachManyTimes(t *testing.T) {
	ctx := spec(t)
	eachWire(t, ctx, func(t *testing.T, w wire, p *pod) {
		k := p.run(answers, withStdin)
		begin := time.Now()
		for range 20 {
			s := w.attached(k, allThree)
			s.hangUp()
			s.end()
		}
		t.Logf("%v each", time.Since(begin)/20)
		s := w.attached(k, allThree)
		s.say("exit\n")
		s.end()
		k.wait()
	})
}

package conformance

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

func TestExecKeepsOutputsApart(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		stdout, stderr, err := w.run(k, "echo out; printf err >&2; echo more")
		if err != nil || stdout != "out\nmore\n" || stderr != "err" {
			t.Errorf("%v, stdout %q, stderr %q", err, stdout, stderr)
		}
		// A client that asked for one stream gets one.
		s := w.exec(k, streams{stderr: true}, "sh", "-c", "echo out; printf err >&2")
		s.exits(0)
		if s.stderr.String() != "err" {
			t.Errorf("stderr %q", s.stderr)
		}
		s = w.exec(k, streams{stdout: true}, "sh", "-c", "echo out; printf err >&2")
		s.exits(0)
		if s.stdout.String() != "out\n" {
			t.Errorf("stdout %q", s.stdout)
		}
	})
}

func TestExecGivesTheExitCode(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -KILL $$": 137} {
			stdout, _, err := w.run(k, "echo before; "+script)
			if codeOf(err) != want || stdout != "before\n" {
				t.Errorf("%s: %v, stdout %q", script, err, stdout)
			}
		}
	})
}

func TestExecOfAMissingCommand(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		for _, s := range []streams{outputs, terminal} {
			session := w.exec(k, s, "/no/such/command")
			err := session.end()
			if err == nil || !strings.Contains(err.Error()+session.stdout.String()+session.stderr.String(), "/no/such/command") {
				t.Errorf("%v, stdout %q, stderr %q", err, session.stdout, session.stderr)
			}
		}
	})
}

func TestExecRunsInTheContainersSurroundings(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		s := w.exec(k, outputs, "printf", "[%s]", "", " a  b ", "quote\"'`$(x)", "new\nline", "ünï")
		s.exits(0)
		if want := "[][ a  b ][quote\"'`$(x)][new\nline][ünï]"; s.stdout.String() != want {
			t.Errorf("got %q, want %q", s.stdout, want)
		}
		// Nobody asked for stdin: it is at its end from the beginning.
		if out, _, err := w.run(k, "cat; echo end of input"); err != nil || out != "end of input\n" {
			t.Errorf("%v, %q", err, out)
		}
	})
}

func TestExecStdin(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		s := w.exec(k, allThree, "sh", "-c", "while read line; do echo got $line; [ $line = last ] && exit 4; done")
		s.say("one\n")
		s.stdout.wait(t, "got one\n")
		s.say("two\nlast\n")
		s.exits(4)
		if s.stdout.String() != "got one\ngot two\ngot last\n" {
			t.Errorf("stdout %q", s.stdout)
		}
	})
}

// The end of stdin reaches the command, and what it still has to say comes back.
func TestExecHalfClose(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		if !w.halfCloses {
			t.Skip("not in this protocol")
		}
		s := w.exec(k, allThree, "sh", "-c", "cat; sleep 0.2; echo end; echo late >&2; exit 9")
		s.say("text")
		s.stdin.Close()
		s.exits(9)
		if s.stdout.String() != "textend\n" || s.stderr.String() != "late\n" {
			t.Errorf("stdout %q, stderr %q", s.stdout, s.stderr)
		}
		// Nothing before the end.
		s = w.exec(k, allThree, "wc", "-c")
		s.stdin.Close()
		s.exits(0)
		if strings.TrimSpace(s.stdout.String()) != "0" {
			t.Errorf("stdout %q", s.stdout)
		}
	})
}

// A command that does not read its stdin ends nevertheless, and so does the session.
func TestExecThatDoesNotReadItsStdin(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		s := w.exec(k, allThree, "sh", "-c", "exec <&-; echo closed; sleep 0.3; exit 5")
		s.stdout.wait(t, "closed\n")
		go io.Copy(s.stdin, noise(1, 4<<20))
		s.exits(5)
	})
}

func TestExecCarriesEveryByte(t *testing.T) {
	ctx := spec(t)
	const size = 64 << 20
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		// A protocol without an end of stdin has the command count.
		command := []string{"cat"}
		if !w.halfCloses {
			command = []string{"head", "-c", fmt.Sprint(size)}
		}
		address := must[string](t, "Exec")(execURL(k.ctx, k.id, allThree, command...))
		executor := must[remotecommand.Executor](t, w.name)(w.executor(clientConfig, address))
		ctx, cancel := context.WithTimeout(k.ctx, patience)
		defer cancel()
		got, stderr := newMeter(), newScreen()
		err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{
			Stdin: noise(7, size), Stdout: got, Stderr: stderr,
		})
		if err != nil || stderr.String() != "" {
			t.Errorf("%v, stderr %q", err, stderr)
		}
		if want := sumOf(noise(7, size)); got.String() != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// Much on both outputs at once, to a client that reads one after the other.
func TestExecBothOutputsAtOnce(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		script := "head -c 3000000 /dev/zero | tr '\\0' e >&2 & head -c 3000000 /dev/zero | tr '\\0' o; wait"
		stdout, stderr, err := w.run(k, script)
		if err != nil || stdout != strings.Repeat("o", 3000000) || stderr != strings.Repeat("e", 3000000) {
			t.Errorf("%v, stdout %d %q, stderr %d %q", err, len(stdout), shorten(stdout), len(stderr), shorten(stderr))
		}
	})
}

// What a command leaves running in the background keeps the pipe open, but not the session.
func TestExecDoesNotWaitForTheBackground(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		begin := time.Now()
		s := w.exec(k, outputs, "sh", "-c", "sleep 20 & echo started; exit 6")
		s.exits(6)
		if s.stdout.String() != "started\n" {
			t.Errorf("stdout %q", s.stdout)
		}
		if took := time.Since(begin); took > 19*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestExecOnATerminal(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		s := w.exec(k, terminal, "sh", "-c", "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; echo err >&2; read line; echo got $line; exit 8")
		s.stdout.wait(t, "terminal\r\n")
		s.stdout.wait(t, "err\r\n")
		s.say("typed\n")
		s.exits(8)
		// What was typed is echoed, too.
		if got := s.stdout.String(); got != "terminal\r\nerr\r\ntyped\r\ngot typed\r\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestExecTerminalSize(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		s := w.exec(k, terminal, "sh", "-c", "trap 'echo changed; stty size' WINCH; while :; do stty size; sleep 0.1; done")
		s.sizes <- remotecommand.TerminalSize{Width: 81, Height: 25}
		s.stdout.wait(t, "25 81\r\n")
		s.sizes <- remotecommand.TerminalSize{Width: 132, Height: 50}
		s.stdout.wait(t, "changed\r\n50 132\r\n")
		s.say("\x03")
		s.exits(130)
	})
}

func TestExecTerminalSignals(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		s := w.exec(k, terminal, "sh", "-c", "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.05; done")
		s.stdout.wait(t, "ready\r\n")
		s.say("\x03")
		s.exits(7)
		s.stdout.wait(t, "interrupted\r\n")
		s = w.exec(k, terminal, "cat")
		s.say("line\n")
		s.stdout.wait(t, "line\r\nline\r\n")
		s.say("\x04")
		s.exits(0)
	})
}

// A client that goes away takes the command with it: by the end of its stdin, or by the terminal.
func TestExecClientThatVanishes(t *testing.T) {
	ctx := spec(t)
	for name, s := range map[string]streams{"stdin": allThree, "terminal": terminal} {
		t.Run(name, func(t *testing.T) {
			known(t)
			overWires(t, ctx, func(t *testing.T, w wire, k *container) {
				s := w.exec(k, s, "sh", "-c", "echo ready; while read line; do :; done")
				s.stdout.wait(t, "ready")
				s.hangUp()
				s.end()
				// That it is gone is what is looked for after each part.
			})
		})
	}
}

func TestStopContainerEndsItsExec(t *testing.T) {
	ctx := spec(t)
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			w.known(t)
			k := runPod(t, ctx).run(idle)
			k.trapped()
			sessions := []*session{
				w.exec(k, outputs, "sh", "-c", "echo ready; exec sleep 1000"),
				w.exec(k, terminal, "sh", "-c", "echo ready; exec sleep 1000"),
				w.exec(k, allThree, "sh", "-c", "echo ready; cat"),
			}
			for _, s := range sessions {
				s.stdout.wait(t, "ready")
			}
			ok(t, runtime.StopContainer(ctx, k.id, 10), "StopContainer")
			for n, s := range sessions {
				if err := s.end(); err == nil {
					t.Errorf("session %d ended well", n)
				}
			}
		})
	}
}

func TestExecManyAtOnce(t *testing.T) {
	ctx := spec(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		var wg sync.WaitGroup
		for n := range 50 {
			wg.Go(func() {
				address, err := execURL(k.ctx, k.id, allThree, "sh", "-c", fmt.Sprintf("read line; echo %d $line; exit %d", n, n))
				if err != nil {
					t.Errorf("%d: Exec: %v", n, err)
					return
				}
				executor, err := w.executor(clientConfig, address)
				if err != nil {
					t.Errorf("%d: %v", n, err)
					return
				}
				ctx, cancel := context.WithTimeout(k.ctx, patience)
				defer cancel()
				stdout, stderr := newScreen(), newScreen()
				err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{
					Stdin: strings.NewReader("hello\n"), Stdout: stdout, Stderr: stderr,
				})
				if codeOf(err) != n || stdout.String() != fmt.Sprintf("%d hello\n", n) || stderr.String() != "" {
					t.Errorf("%d: %v, stdout %q, stderr %q", n, err, stdout, stderr)
				}
			})
		}
		wg.Wait()
	})
}

package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// command is kubectl with these arguments.
func command(t *testing.T, arguments ...string) *exec.Cmd {
	cmd := exec.CommandContext(within(t), os.Getenv("KUBE_KUBECTL"), arguments...)
	cmd.Env = append(os.Environ(), "HOME="+folder)
	return cmd
}

// kubectl runs it to its end, and gives what it wrote and its exit code.
func kubectl(t *testing.T, stdin string, arguments ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := command(t, arguments...)
	var out, diagnostics bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &diagnostics
	code = codeOf(t, cmd.Run())
	return out.String(), diagnostics.String(), code
}

func codeOf(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	default:
		t.Fatalf("kubectl: %v", err)
		return -1
	}
}

// succeeds runs kubectl, asks for status 0, and gives its output.
func succeeds(t *testing.T, arguments ...string) string {
	t.Helper()
	stdout, stderr, code := kubectl(t, "", arguments...)
	if code != 0 {
		t.Fatalf("kubectl %q exited with %d: %s", arguments, code, stderr)
	}
	return stdout
}

// session is a kubectl that goes on.
type session struct {
	t        *testing.T
	cmd      *exec.Cmd
	keyboard io.WriteCloser
	stderr   *screen
	over     chan error
	end      func()
}

// open starts kubectl; its output goes there.
func open(t *testing.T, stdout io.Writer, arguments ...string) *session {
	t.Helper()
	s := &session{t: t, cmd: command(t, arguments...), stderr: &screen{}, over: make(chan error, 1)}
	s.cmd.Stdout, s.cmd.Stderr = stdout, s.stderr
	var err error
	s.keyboard, err = s.cmd.StdinPipe()
	ok(t, err, "stdin")
	ok(t, s.cmd.Start(), "kubectl")
	s.watch()
	return s
}

func (s *session) watch() {
	ended := make(chan struct{})
	go func() {
		s.over <- s.cmd.Wait()
		close(ended)
	}()
	s.end = sync.OnceFunc(func() {
		s.cmd.Process.Kill()
		<-ended
	})
	s.t.Cleanup(s.end)
}

// exits waits for its end, and asks for this exit code.
func (s *session) exits(want int) {
	s.t.Helper()
	select {
	case err := <-s.over:
		if code := codeOf(s.t, err); code != want {
			s.t.Errorf("kubectl %q exited with %d, want %d: %s", s.cmd.Args[1:], code, want, s.stderr)
		}
	case <-time.After(patience):
		s.t.Fatalf("kubectl %q does not end: %s", s.cmd.Args[1:], s.stderr)
	}
}

// pumpInto starts kubectl, and a pump through it.
func pumpInto(t *testing.T, name string, seed uint64, arguments ...string) (*pump, *session) {
	t.Helper()
	pump := newPump(name, seed)
	s := open(t, pump, arguments...)
	go pump.run(s.keyboard)
	return pump, s
}

// terminal is a kubectl on a terminal of its own.
type terminal struct {
	*session
	screen *screen
	master *os.File
}

func onTerminal(t *testing.T, arguments ...string) *terminal {
	t.Helper()
	master := must[*os.File](t, "pty")(os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0))
	fd := int(master.Fd())
	ok(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), "pty")
	number := must[int](t, "pty")(unix.IoctlGetInt(fd, unix.TIOCGPTN))
	slave := must[*os.File](t, "pty")(os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0))
	defer slave.Close()
	term := &terminal{screen: &screen{}, master: master}
	term.size(80, 24)
	s := &session{t: t, cmd: command(t, arguments...), stderr: term.screen, over: make(chan error, 1), keyboard: master}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ok(t, s.cmd.Start(), "kubectl")
	go io.Copy(term.screen, master)
	s.watch()
	t.Cleanup(func() { master.Close() })
	term.session = s
	return term
}

func (t *terminal) size(width, height uint16) {
	unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
}

var forwarded = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> `)

// forwardedBy starts kubectl port-forward, and gives the address that it listens at.
func forwardedBy(t *testing.T, p *pod, port string) string {
	t.Helper()
	out := &screen{}
	s := open(t, out, "port-forward", "pod/"+p.name, ":"+port)
	var address string
	eventually(t, "the forwarded port", func() (bool, string) {
		if found := forwarded.FindStringSubmatch(out.String()); found != nil {
			address = found[1]
		}
		return address != "", out.String() + s.stderr.String()
	})
	return address
}

package conformance

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exitCode is what the kubelet's client makes of an exit status other than 0.
func exitCode(err error) (int, bool) {
	var exit interface{ ExitStatus() int }
	if errors.As(err, &exit) {
		return exit.ExitStatus(), true
	}
	return 0, false
}

func TestExecSyncKeepsOutputsApart(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	stdout, stderr, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", "echo out; printf err >&2"}, patience)
	ok(t, err, "ExecSync")
	if string(stdout) != "out\n" || string(stderr) != "err" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

func TestExecSyncGivesTheExitCode(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for script, want := range map[string]int{"exit 3": 3, "exit 255": 255, "kill -KILL $$": 137} {
		stdout, _, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", "echo before; " + script}, patience)
		if code, is := exitCode(err); !is || code != want || string(stdout) != "before\n" {
			t.Errorf("%s: %v, stdout %q", script, err, stdout)
		}
	}
}

func TestExecSyncPassesArgumentsAndBytesAsTheyAre(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	args := []string{"", " a  b ", "quote\"'`$(x)", "new\nline", "ünï"}
	stdout, _, err := runtime.ExecSync(ctx, k.id, append([]string{"printf", "[%s]"}, args...), patience)
	ok(t, err, "ExecSync")
	if want := "[" + strings.Join(args, "][") + "]"; string(stdout) != want {
		t.Errorf("got %q, want %q", stdout, want)
	}
	stdout, _, err = runtime.ExecSync(ctx, k.id, []string{"printf", `\000\377\r\n\001`}, patience)
	ok(t, err, "ExecSync")
	if string(stdout) != "\x00\xff\r\n\x01" {
		t.Errorf("got %q", stdout)
	}
}

func TestExecSyncRunsInTheContainersSurroundings(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("1")}}
		c.WorkingDir = "/var"
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 33}
	})
	if got := k.exec("echo $A $(pwd) $(id -u)"); got != "1 /var 33\n" {
		t.Errorf("got %q", got)
	}
	if got := k.exec("cat; echo end of input"); got != "end of input\n" {
		t.Errorf("standard input: %q", got)
	}
}

func TestExecSyncOfAMissingCommand(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	_, _, err := runtime.ExecSync(ctx, k.id, []string{"/no/such/command"}, patience)
	if err == nil || !strings.Contains(err.Error(), "/no/such/command") {
		t.Errorf("got %v", err)
	}
	if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Unavailable || code == codes.NotFound {
		t.Errorf("code %v tells of something else", code)
	}
}

func TestExecSyncBadAndUnknown(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	_, _, err := runtime.ExecSync(ctx, noSuchID, []string{"true"}, patience)
	wantCode(t, err, "unknown container", codes.NotFound)
	_, _, err = runtime.ExecSync(ctx, k.id, nil, patience)
	wantInvalid(t, err, "no command")
	_, err = rawRuntime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: k.id, Cmd: []string{"true"}, Timeout: -5})
	wantInvalid(t, err, "negative timeout")
}

func TestExecSyncInAContainerThatDoesNotRun(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, _ := p.finish("exit 0")
	created := p.create(image(t, "busybox:1"), []string{"true"})
	for _, id := range []string{k.id, created.id} {
		_, _, err := runtime.ExecSync(ctx, id, []string{"true"}, patience)
		if _, is := exitCode(err); err == nil || is {
			t.Errorf("got %v", err)
		}
	}
}

// A probe that hangs must be told from one that works, and must leave nothing running.
func TestExecSyncTimeout(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	marker := unique("hangs")
	script := fmt.Sprintf("sh -c ': %s; while :; do sleep 0.2; done' & : %s; while :; do sleep 0.2; done", marker, marker)
	begin := time.Now()
	_, _, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", script}, time.Second)
	code, exited := exitCode(err)
	// The client hides the code behind words of its own.
	timedOut := err != nil && strings.Contains(err.Error(), "timed out")
	if !timedOut && !(exited && code != 0) {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
	eventually(t, "the end of all that hung", func() bool {
		return !strings.Contains(k.exec("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"), ": "+marker)
	})
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v", s.State)
	}
}

func TestExecSyncTimeoutZeroIsNone(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	stdout, _, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", "sleep 3; echo late"}, 0)
	if err != nil || string(stdout) != "late\n" {
		t.Errorf("%v, %q", err, stdout)
	}
}

// What a command leaves running in the background keeps the pipe open, but not the call.
func TestExecSyncDoesNotWaitForTheBackground(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	stdout, _, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", "sleep 200 & echo started"}, 30*time.Second)
	if err != nil || string(stdout) != "started\n" {
		t.Errorf("%v, %q", err, stdout)
	}
}

// The client refuses messages beyond 16 MiB: more output is cut, the connection lives on.
func TestExecSyncOutputIsBounded(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	const mb = 1 << 20
	for name, c := range map[string]struct {
		script string
		least  int
	}{
		"20 MiB to stdout":       {"dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x", mb},
		"20 MiB to stderr":       {"dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x >&2", mb},
		"12 MiB to each of both": {"dd if=/dev/zero bs=1M count=12 2>/dev/null | tr '\\0' x; dd if=/dev/zero bs=1M count=12 2>/dev/null | tr '\\0' y >&2", mb},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			stdout, stderr, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", c.script}, patience)
			if err != nil {
				t.Errorf("ExecSync: %v", err)
			}
			if n := len(stdout) + len(stderr); err == nil && (n >= 16*mb || n < c.least) {
				t.Errorf("%d bytes", n)
			}
			must[*cri.VersionResponse](t, "Version")(runtime.Version(ctx, "v1"))
		})
	}
	stdout, _, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", "dd if=/dev/zero bs=1M count=4 2>/dev/null"}, patience)
	if err != nil || len(stdout) != 4*mb {
		t.Errorf("4 MiB: %v, %d bytes", err, len(stdout))
	}
}

func TestExecSyncManyAtOnce(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			stdout, _, err := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", n, n)}, patience)
			code, _ := exitCode(err)
			if strings.TrimSpace(string(stdout)) != fmt.Sprint(n) || code != n {
				t.Errorf("%d: %q, %v", n, stdout, err)
			}
		})
	}
	wg.Wait()
}

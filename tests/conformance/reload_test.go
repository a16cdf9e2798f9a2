package conformance

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A reload as the kubelet's client sees it, on the one connection that it has: the ExecSync that is in
// flight gets its whole answer, streams of events end and say why, and the next call is the
// successor's.
func TestReload(t *testing.T) {
	known(t)
	criod := restarts(t)
	// Not beside other specs: their calls would have to be repeated.
	ctx := within(t, 4*time.Minute)
	w, k := watched(t, ctx)

	type answer struct {
		out, err string
		failed   error
	}
	executed := make(chan answer, 1)
	go func() {
		command := "touch /tmp/began; while [ ! -e /tmp/over ]; do sleep 0.05; done; seq 1 20000; echo last >&2"
		out, err, failed := runtime.ExecSync(ctx, k.id, []string{"sh", "-c", command}, time.Minute)
		executed <- answer{string(out), string(err), failed}
	}()
	began := []string{"sh", "-c", "while [ ! -e /tmp/began ]; do sleep 0.05; done"}
	_, _, err := runtime.ExecSync(ctx, k.id, began, time.Minute)
	ok(t, err, "ExecSync")

	criod.run("reload")
	for ended := false; !ended; {
		select {
		case <-w.events:
		case err := <-w.failed:
			ended = true
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "being restarted") {
				t.Errorf("the stream of events ended with %v", err)
			}
		case <-ctx.Done():
			t.Fatal("the stream of events goes on")
		}
	}
	select {
	case a := <-executed:
		t.Fatalf("ExecSync ended early: %v", a.failed)
	default:
	}
	if _, _, err := runtime.ExecSync(ctx, k.id, []string{"touch", "/tmp/over"}, time.Minute); err != nil {
		t.Fatalf("ExecSync at the successor: %v", err)
	}
	a := <-executed
	ok(t, a.failed, "ExecSync over a reload")
	if lines := strings.Count(a.out, "\n"); lines != 20000 || a.err != "last\n" {
		t.Errorf("%d lines and %q", lines, a.err)
	}
	// Nobody has missed the container.
	found, err := runtime.ContainerStatus(context.WithoutCancel(ctx), k.id, false)
	ok(t, err, "ContainerStatus")
	if found.Status.State != running {
		t.Errorf("the container is %v", found.Status.State)
	}
}

package conformance

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStopContainerHonoursSigterm(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("trap 'echo ended in order; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
	eventually(t, "the trap", func() bool { return strings.Contains(k.output(), "ready") })
	ok(t, runtime.StopContainer(ctx, k.id, 50), "StopContainer")
	// EXITED is seen before the answer, with all that was written.
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 5 {
		t.Errorf("state %v, exit code %d", s.State, s.ExitCode)
	}
	if got := k.output(); got != "ready\nended in order\n" {
		t.Errorf("log %q", got)
	}
}

func TestStopContainerKillsAfterTheGracePeriod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.05; done")
	eventually(t, "the trap", func() bool { return strings.Contains(k.output(), "ready") })
	ok(t, runtime.StopContainer(ctx, k.id, 1), "StopContainer")
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("state %v, exit code %d", s.State, s.ExitCode)
	}
	if got := k.output(); got != "ready\ngot TERM\n" {
		t.Errorf("log %q", got)
	}
}

func TestStopContainerWithoutGraceKillsAtOnce(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("trap 'echo got TERM; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
	eventually(t, "the trap", func() bool { return strings.Contains(k.output(), "ready") })
	ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer")
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("state %v, exit code %d", s.State, s.ExitCode)
	}
}

func TestStopContainerCanBeRepeated(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, s := p.finish("exit 4")
	for range 3 {
		ok(t, runtime.StopContainer(ctx, k.id, 5), "StopContainer")
	}
	if again := k.status(); again.ExitCode != 4 || again.FinishedAt != s.FinishedAt {
		t.Errorf("exit code %d, finished at %d and %d", again.ExitCode, s.FinishedAt, again.FinishedAt)
	}
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	ok(t, runtime.StopContainer(ctx, k.id, 5), "StopContainer of a removed container")
}

func TestStopContainerThatWasNeverStarted(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.create(image(t, "busybox:1"), []string{"true"})
	ok(t, runtime.StopContainer(ctx, k.id, 5), "StopContainer")
}

func TestStopContainerUnknownIsDone(t *testing.T) {
	ctx := spec(t)
	ok(t, runtime.StopContainer(ctx, noSuchID, 5), "StopContainer")
}

// Several may ask at once, and one of them may bring the deadline nearer.
func TestStopContainerConcurrently(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("trap '' TERM; echo ready; while :; do sleep 0.05; done")
	eventually(t, "the trap", func() bool { return strings.Contains(k.output(), "ready") })
	var wg sync.WaitGroup
	for _, grace := range []int64{100, 100, 100, 2} {
		wg.Go(func() {
			if err := runtime.StopContainer(ctx, k.id, grace); err != nil {
				t.Errorf("StopContainer with %d s: %v", grace, err)
			}
			if s := k.status(); s.State != cri.ContainerState_CONTAINER_EXITED {
				t.Errorf("state %v", s.State)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("the calls with more patience were not answered when the container was gone")
		<-done
	}
	if s := k.status(); s.ExitCode != 137 {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

// While a container is being stopped, every other call about it is answered.
func TestStopContainerHoldsUpNoOtherCall(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("trap 'touch /asked' TERM; echo ready; while :; do sleep 0.05; done")
	eventually(t, "the trap", func() bool { return strings.Contains(k.output(), "ready") })
	stopped := make(chan error, 1)
	go func() { stopped <- runtime.StopContainer(ctx, k.id, 40) }()
	eventually(t, "the signal", func() bool {
		stdout, _, err := runtime.ExecSync(ctx, k.id, []string{"ls", "/asked"}, patience)
		return err == nil && len(stdout) > 0
	})
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %v", s.State)
	}
	must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
	must[[]*cri.Container](t, "ListContainers")(runtime.ListContainers(ctx, nil))
	ok(t, runtime.ReopenContainerLog(ctx, k.id), "ReopenContainerLog")
	select {
	case err := <-stopped:
		t.Errorf("the stop was over before the other calls: %v", err)
	default:
	}
	ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer at once")
	ok(t, <-stopped, "the first StopContainer")
}

func TestStopContainerEndsTheWholeContainer(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, sharedPid)
	marker := unique("left")
	k := p.run(fmt.Sprintf("sh -c 'trap \"\" TERM; : %s; while :; do sleep 0.2; done' & trap 'exit 0' TERM; while :; do sleep 0.05; done", marker))
	witness := p.run(idle)
	seen := func() bool {
		return strings.Contains(witness.exec("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"), marker)
	}
	eventually(t, "the child", seen)
	ok(t, runtime.StopContainer(ctx, k.id, 5), "StopContainer")
	eventually(t, "the child's end", func() bool { return !seen() })
}

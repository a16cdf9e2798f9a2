package conformance

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watcher collects the events of one pod.
type watcher struct {
	t      *testing.T
	stream cri.RuntimeService_GetContainerEventsClient
	events chan *cri.ContainerEventResponse
	failed chan error
}

// watched runs a container that ends when it is told to, in a pod whose events are listened to from
// before there was one.
func watched(t *testing.T, ctx context.Context) (*watcher, *container) {
	t.Helper()
	cfg := podConfig(t)
	w := watch(t, ctx, cfg.Metadata.Name)
	id := must[string](t, "RunPodSandbox")(runtime.RunPodSandbox(ctx, cfg, handler()))
	removePodAfter(t, id)
	k := (&pod{t: t, ctx: ctx, id: id, cfg: cfg}).run(idle)
	k.trapped()
	return w, k
}

// watch begins to listen; the events of all pods come, and those of this test are told by the pod's
// name, which is known before there is a pod.
func watch(t *testing.T, ctx context.Context, pod string) *watcher {
	t.Helper()
	stream := must[cri.RuntimeService_GetContainerEventsClient](t, "GetContainerEvents")(
		rawRuntime.GetContainerEvents(ctx, &cri.GetEventsRequest{}))
	must[any](t, "the stream's beginning")(stream.Header())
	w := &watcher{t, stream, make(chan *cri.ContainerEventResponse, 1000), make(chan error, 1)}
	go func() {
		for {
			event, err := stream.Recv()
			if err != nil {
				w.failed <- err
				return
			}
			if event.GetPodSandboxStatus().GetMetadata().GetName() == pod {
				w.events <- event
			}
		}
	}()
	return w
}

func (w *watcher) next() *cri.ContainerEventResponse {
	w.t.Helper()
	select {
	case event := <-w.events:
		return event
	case err := <-w.failed:
		w.t.Fatalf("events: %v", err)
	case <-time.After(patience):
		w.t.Fatal("no event came")
	}
	return nil
}

// want asks for the next event, and for what it says of the pod and of this container.
func (w *watcher) want(id string, what cri.ContainerEventType, pod cri.PodSandboxState, containers ...cri.ContainerState) *cri.ContainerEventResponse {
	w.t.Helper()
	e := w.next()
	if e.ContainerId != id || e.ContainerEventType != what || e.CreatedAt == 0 {
		w.t.Fatalf("got %v of %s, want %v of %s", e.ContainerEventType, e.ContainerId, what, id)
	}
	if e.PodSandboxStatus.State != pod {
		w.t.Errorf("%v: pod %v, want %v", what, e.PodSandboxStatus.State, pod)
	}
	var got []cri.ContainerState
	for _, s := range e.ContainersStatuses {
		got = append(got, s.State)
	}
	if fmt.Sprint(got) != fmt.Sprint(containers) {
		w.t.Errorf("%v: containers %v, want %v", what, got, containers)
	}
	return e
}

const (
	created  = cri.ContainerEventType_CONTAINER_CREATED_EVENT
	started  = cri.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped  = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted  = cri.ContainerEventType_CONTAINER_DELETED_EVENT
	ready    = cri.PodSandboxState_SANDBOX_READY
	notready = cri.PodSandboxState_SANDBOX_NOTREADY
	running  = cri.ContainerState_CONTAINER_RUNNING
	exited   = cri.ContainerState_CONTAINER_EXITED
)

// Runs a pod, and takes the events of that.
func (w *watcher) runPod(ctx context.Context, cfg *cri.PodSandboxConfig) *pod {
	w.t.Helper()
	id := must[string](w.t, "RunPodSandbox")(runtime.RunPodSandbox(ctx, cfg, handler()))
	removePodAfter(w.t, id)
	w.want(id, created, ready)
	w.want(id, started, ready)
	return &pod{t: w.t, ctx: ctx, id: id, cfg: cfg}
}

func TestContainerEvents(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t)
	w := watch(t, ctx, cfg.Metadata.Name)
	p := w.runPod(ctx, cfg)
	id := p.id
	k := p.create(image(t, "busybox:1"), []string{"sh", "-c", idle})
	w.want(k.id, created, ready, cri.ContainerState_CONTAINER_CREATED)
	k.start()
	e := w.want(k.id, started, ready, running)
	if s := e.ContainersStatuses[0]; s.Id != k.id || s.StartedAt == 0 || s.LogPath == "" || e.PodSandboxStatus.GetNetwork().GetIp() == "" {
		t.Errorf("the statuses are not whole: %v", e)
	}
	k.trapped()
	ok(t, runtime.StopContainer(ctx, k.id, 10), "StopContainer")
	e = w.want(k.id, stopped, ready, exited)
	if s := e.ContainersStatuses[0]; s.Reason != "Completed" || s.FinishedAt == 0 {
		t.Errorf("status %v", s)
	}
	// One that ends by itself.
	other := p.run("exit 3")
	w.want(other.id, created, ready, cri.ContainerState_CONTAINER_CREATED, exited)
	for _, what := range []cri.ContainerEventType{started, stopped} {
		if e := w.next(); e.ContainerId != other.id || e.ContainerEventType != what {
			t.Fatalf("got %v, want %v", e, what)
		}
	}
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	w.want(k.id, deleted, ready, exited)
	ok(t, runtime.StopPodSandbox(ctx, id), "StopPodSandbox")
	w.want(id, stopped, notready, exited)
	ok(t, runtime.RemovePodSandbox(ctx, id), "RemovePodSandbox")
	w.want(other.id, deleted, notready)
	w.want(id, deleted, notready)
}

// A container that never ran, and one that is removed while it runs.
func TestContainerEventsOfRemovals(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t)
	w := watch(t, ctx, cfg.Metadata.Name)
	p := w.runPod(ctx, cfg)
	k := p.create(image(t, "busybox:1"), []string{"true"})
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	got := ""
	for !strings.HasSuffix(got, "DELETED ") {
		e := w.next()
		got += strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT") + " "
		if e.ContainerId != k.id {
			t.Errorf("%v", e)
		}
	}
	// Its first process is there and is killed: that may be seen, or not.
	if got != "CREATED DELETED " && got != "CREATED STOPPED DELETED " {
		t.Errorf("events: %s", got)
	}
	k = p.run(idle)
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	for _, what := range []cri.ContainerEventType{created, started, stopped, deleted} {
		if e := w.next(); e.ContainerId != k.id || e.ContainerEventType != what {
			t.Fatalf("got %v, want %v", e, what)
		}
	}
}

func TestContainerEventsOfAnOOMKill(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t)
	w := watch(t, ctx, cfg.Metadata.Name)
	id := must[string](t, "RunPodSandbox")(runtime.RunPodSandbox(ctx, cfg, handler()))
	removePodAfter(t, id)
	p := &pod{t: t, ctx: ctx, id: id, cfg: cfg}
	k := p.run("x=a; while :; do x=$x$x; done", func(c *cri.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 32 << 20
		c.Linux.Resources.MemorySwapLimitInBytes = 32 << 20
	})
	for {
		e := w.next()
		if e.ContainerEventType != stopped {
			continue
		}
		if s := e.ContainersStatuses[0]; e.ContainerId != k.id || s.Reason != "OOMKilled" {
			t.Errorf("%v", e)
		}
		return
	}
}

// A client that does not read is let go with an error that says so, and nobody else notices.
func TestContainerEventsOfAClientThatStalls(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t, func(c *cri.PodSandboxConfig) {
		// So that not too many events are needed.
		c.Annotations["long"] = strings.Repeat("x", 200_000)
	})
	w := watch(t, ctx, cfg.Metadata.Name)
	stalled := must[cri.RuntimeService_GetContainerEventsClient](t, "GetContainerEvents")(
		rawRuntime.GetContainerEvents(ctx, &cri.GetEventsRequest{}))
	must[any](t, "the stream's beginning")(stalled.Header())
	p := w.runPod(ctx, cfg)
	// More than the queue holds; the other client gets each of them.
	image(t, "busybox:1")
	for range 60 {
		k := p.create(ref("busybox:1"), []string{"true"})
		ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
		for e := w.next(); e.ContainerEventType != deleted; e = w.next() {
		}
	}
	events := 0
	for {
		if _, err := stalled.Recv(); err != nil {
			if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "list anew") {
				t.Errorf("after %d events: %v", events, err)
			}
			return
		}
		events++
	}
}

// Streams end with the daemon, and events go on for who asks again.
func TestContainerEventsAcrossARestart(t *testing.T) {
	known(t)
	criod := restarts(t)
	ctx := within(t, 4*time.Minute)
	w, k := watched(t, ctx)
	criod.run("kill")
	criod.run("start")
	for failed := false; !failed; {
		select {
		case <-w.events:
		case err := <-w.failed:
			failed = true
			if status.Code(err) == codes.OK {
				t.Errorf("the stream ended without an error")
			}
		}
	}
	w = watch(t, ctx, k.pod.cfg.Metadata.Name)
	ok(t, runtime.StopContainer(ctx, k.id, 10), "StopContainer")
	// Nothing of what was before.
	w.want(k.id, stopped, ready, exited)
}

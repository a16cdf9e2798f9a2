package conformance

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const noSuchID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestRunPodSandboxIsReadyAndEchoesItsConfig(t *testing.T) {
	ctx := spec(t)
	before := time.Now().Add(-time.Minute).UnixNano()
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Labels["odd/label.name"] = "ünïcode = \"quoted\"\n"
		c.Annotations["io.kubernetes.cri-o.whatever"] = "not ours to drop"
		c.Annotations["empty"] = ""
	})
	s := p.status()
	if s.Id != p.id || s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("id %s, state %v", s.Id, s.State)
	}
	m, w := s.Metadata, p.cfg.Metadata
	if m.Name != w.Name || m.Uid != w.Uid || m.Namespace != w.Namespace || m.Attempt != w.Attempt {
		t.Errorf("metadata %v, want %v", m, w)
	}
	if !maps.Equal(s.Labels, p.cfg.Labels) {
		t.Errorf("labels %q, want %q", s.Labels, p.cfg.Labels)
	}
	if !maps.Equal(s.Annotations, p.cfg.Annotations) {
		t.Errorf("annotations %q, want %q", s.Annotations, p.cfg.Annotations)
	}
	if s.CreatedAt < before || s.CreatedAt > time.Now().Add(time.Minute).UnixNano() {
		t.Errorf("created_at %d", s.CreatedAt)
	}
	if s.RuntimeHandler != handler() {
		t.Errorf("runtime handler %q", s.RuntimeHandler)
	}
	items := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, &cri.PodSandboxFilter{Id: p.id}))
	if len(items) != 1 || !maps.Equal(items[0].Labels, p.cfg.Labels) || !maps.Equal(items[0].Annotations, p.cfg.Annotations) || items[0].CreatedAt != s.CreatedAt {
		t.Errorf("list says %v", items)
	}
}

func TestRunPodSandboxRepeatedGivesTheSameID(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for range 2 {
		id := must[string](t, "RunPodSandbox again")(runtime.RunPodSandbox(ctx, p.cfg, handler()))
		if id != p.id {
			removePodAfter(t, id)
			t.Errorf("another id: %s and %s", p.id, id)
		}
	}
}

func TestRunPodSandboxConcurrentlyGivesOneID(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			id, err := runtime.RunPodSandbox(ctx, cfg, handler())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("RunPodSandbox: %v", err)
			} else {
				ids[id] = true
			}
		})
	}
	wg.Wait()
	for id := range ids {
		removePodAfter(t, id)
	}
	if len(ids) != 1 {
		t.Errorf("%d ids", len(ids))
	}
	items := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, &cri.PodSandboxFilter{LabelSelector: cfg.Labels}))
	if len(items) != 1 {
		t.Errorf("%d pods are listed", len(items))
	}
}

// A caller that goes away does not leave a name that cannot be used again.
func TestRunPodSandboxOfACallerThatWentAwayCanBeRepeated(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t)
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	id, err := runtime.RunPodSandbox(short, cfg, handler())
	cancel()
	if err == nil {
		t.Logf("the call was faster than its caller's patience: %s", id)
	}
	var again string
	eventually(t, "the repeated call to succeed", func() bool {
		again, err = runtime.RunPodSandbox(ctx, cfg, handler())
		return err == nil
	})
	removePodAfter(t, again)
	items := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, &cri.PodSandboxFilter{LabelSelector: cfg.Labels}))
	if len(items) != 1 || items[0].Id != again {
		t.Errorf("listed: %v", items)
	}
}

func TestRunPodSandboxAttemptsAreDifferentPods(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	last := p.status().CreatedAt
	p.cfg.Metadata.Attempt = 1
	id := must[string](t, "attempt 1")(runtime.RunPodSandbox(ctx, p.cfg, handler()))
	removePodAfter(t, id)
	if id == p.id {
		t.Fatal("the same id")
	}
	s := must[*cri.PodSandboxStatusResponse](t, "status")(runtime.PodSandboxStatus(ctx, id, false)).Status
	if s.Metadata.Attempt != 1 || s.CreatedAt <= last {
		t.Errorf("attempt %d, created at %d after %d", s.Metadata.Attempt, s.CreatedAt, last)
	}
}

func TestRunPodSandboxBadRequests(t *testing.T) {
	ctx := spec(t)
	for name, change := range map[string]func(*cri.PodSandboxConfig){
		"no metadata":  func(c *cri.PodSandboxConfig) { c.Metadata = nil },
		"no name":      func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" },
		"no uid":       func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" },
		"no namespace": func(c *cri.PodSandboxConfig) { c.Metadata.Namespace = "" },
		"hostname too long": func(c *cri.PodSandboxConfig) {
			c.Hostname = "h23456789-123456789-123456789-123456789-123456789-123456789-12345"
		},
		"relative log directory": func(c *cri.PodSandboxConfig) { c.LogDirectory = "some/where" },
		"sysctl of the node":     func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} },
		"port out of range": func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 70000}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			cfg := podConfig(t, change)
			id, err := runtime.RunPodSandbox(ctx, cfg, handler())
			if err == nil {
				removePodAfter(t, id)
			}
			wantInvalid(t, err, name)
			items := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, &cri.PodSandboxFilter{LabelSelector: cfg.Labels}))
			if err != nil && len(items) != 0 {
				t.Errorf("left behind: %v", items)
			}
		})
	}
}

func TestRunPodSandboxUnknownRuntimeHandler(t *testing.T) {
	ctx := spec(t)
	cfg := podConfig(t)
	id, err := runtime.RunPodSandbox(ctx, cfg, "no-such-handler")
	if err == nil {
		removePodAfter(t, id)
		t.Fatal("it ran")
	}
	// Nothing of it stays, so that the same pod can run with a handler that exists.
	id = must[string](t, "RunPodSandbox")(runtime.RunPodSandbox(ctx, cfg, handler()))
	removePodAfter(t, id)
}

func TestStopPodSandboxStopsContainersAndCanBeRepeated(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	first, second := p.run(idle), p.run("while :; do sleep 1; done")
	for range 3 {
		ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
		if s := p.status(); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("state %v", s.State)
		}
		for _, c := range []*container{first, second} {
			if s := c.status(); s.State != cri.ContainerState_CONTAINER_EXITED || s.FinishedAt == 0 {
				t.Errorf("container state %v, finished at %d", s.State, s.FinishedAt)
			}
		}
	}
}

func TestStopPodSandboxUnknownIsDone(t *testing.T) {
	ctx := spec(t)
	ok(t, runtime.StopPodSandbox(ctx, noSuchID), "StopPodSandbox")
}

func TestRemovePodSandboxRemovesAllAndCanBeRepeated(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	c := p.run(idle)
	created := p.create(image(t, "busybox:1"), []string{"true"})
	for range 3 {
		ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
		ok(t, runtime.RemovePodSandbox(ctx, p.id), "RemovePodSandbox")
	}
	_, err := runtime.PodSandboxStatus(ctx, p.id, false)
	wantCode(t, err, "PodSandboxStatus", codes.NotFound)
	for _, id := range []string{c.id, created.id} {
		_, err = runtime.ContainerStatus(ctx, id, false)
		wantCode(t, err, "ContainerStatus", codes.NotFound)
	}
	items := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, &cri.PodSandboxFilter{LabelSelector: p.cfg.Labels}))
	left := must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{PodSandboxId: p.id}))
	if len(items)+len(left) != 0 {
		t.Errorf("listed: %v %v", items, left)
	}
	// The name is free again.
	id := must[string](t, "RunPodSandbox")(runtime.RunPodSandbox(ctx, p.cfg, handler()))
	removePodAfter(t, id)
	if id == p.id {
		t.Error("the id of the removed pod came back")
	}
}

func TestRemovePodSandboxStopsWhatStillRuns(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	p.run(idle)
	ok(t, runtime.RemovePodSandbox(ctx, p.id), "RemovePodSandbox of a running pod")
	_, err := runtime.PodSandboxStatus(ctx, p.id, false)
	wantCode(t, err, "PodSandboxStatus", codes.NotFound)
}

func TestRemovePodSandboxUnknownIsDone(t *testing.T) {
	ctx := spec(t)
	ok(t, runtime.RemovePodSandbox(ctx, noSuchID), "RemovePodSandbox")
}

func TestStopAndRemovePodSandboxConcurrently(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	all(t, "StopPodSandbox", func() error { return runtime.StopPodSandbox(ctx, p.id) })
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("state %v", s.State)
	}
	all(t, "RemovePodSandbox", func() error { return runtime.RemovePodSandbox(ctx, p.id) })
	_, err := runtime.PodSandboxStatus(ctx, p.id, false)
	wantCode(t, err, "PodSandboxStatus", codes.NotFound)
}

// all makes a call eight times at once; each has to succeed.
func all(t *testing.T, what string, call func() error) {
	t.Helper()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := call(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	wg.Wait()
}

func TestPodSandboxStatusUnknown(t *testing.T) {
	ctx := spec(t)
	for _, id := range []string{noSuchID, "../../etc", "a b", "\x00"} {
		_, err := runtime.PodSandboxStatus(ctx, id, false)
		wantCode(t, err, "PodSandboxStatus of "+id, codes.NotFound, codes.InvalidArgument)
	}
}

func TestPodSandboxStatusVerbose(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	s := must[*cri.PodSandboxStatusResponse](t, "status")(runtime.PodSandboxStatus(ctx, p.id, true))
	if len(s.Info) == 0 {
		t.Error("no info")
	}
}

func TestPodSandboxStatusOfATruncatedID(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	s := must[*cri.PodSandboxStatusResponse](t, "status")(runtime.PodSandboxStatus(ctx, p.id[:13], false))
	if s.Status.Id != p.id {
		t.Errorf("id %s", s.Status.Id)
	}
}

func TestListPodSandboxFilters(t *testing.T) {
	ctx := spec(t)
	group := unique("group")
	label := func(n string) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Labels["group"], c.Labels["n"] = group, n }
	}
	a, b := runPod(t, ctx, label("a")), runPod(t, ctx, label("b"))
	ok(t, runtime.StopPodSandbox(ctx, b.id), "StopPodSandbox")
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	notReady := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}
	both := map[string]string{"group": group}
	for name, c := range map[string]struct {
		filter *cri.PodSandboxFilter
		want   []*pod
	}{
		"id":                    {&cri.PodSandboxFilter{Id: a.id}, []*pod{a}},
		"truncated id":          {&cri.PodSandboxFilter{Id: a.id[:13]}, []*pod{a}},
		"unknown id":            {&cri.PodSandboxFilter{Id: noSuchID}, nil},
		"label":                 {&cri.PodSandboxFilter{LabelSelector: both}, []*pod{a, b}},
		"two labels":            {&cri.PodSandboxFilter{LabelSelector: map[string]string{"group": group, "n": "b"}}, []*pod{b}},
		"label of other value":  {&cri.PodSandboxFilter{LabelSelector: map[string]string{"group": group, "n": ""}}, nil},
		"label and ready":       {&cri.PodSandboxFilter{LabelSelector: both, State: ready}, []*pod{a}},
		"label and not ready":   {&cri.PodSandboxFilter{LabelSelector: both, State: notReady}, []*pod{b}},
		"id and wrong state":    {&cri.PodSandboxFilter{Id: a.id, State: notReady}, nil},
		"id and label of other": {&cri.PodSandboxFilter{Id: a.id, LabelSelector: map[string]string{"n": "b"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			items := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, c.filter))
			got := map[string]bool{}
			for _, i := range items {
				got[i.Id] = true
			}
			if len(items) != len(c.want) {
				t.Errorf("%d pods, want %d", len(items), len(c.want))
			}
			for _, p := range c.want {
				if !got[p.id] {
					t.Errorf("%s is missing", p.id)
				}
			}
		})
	}
	all := must[[]*cri.PodSandbox](t, "list")(runtime.ListPodSandbox(ctx, nil))
	n := 0
	for _, i := range all {
		if i.Id == a.id || i.Id == b.id {
			n++
		}
	}
	if n != 2 {
		t.Errorf("without a filter %d of 2 are listed", n)
	}
}

func TestRunPodSandboxTellsNamesWithUnderscoresApart(t *testing.T) {
	ctx := spec(t)
	a := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.Metadata.Name, c.Metadata.Namespace = "x_y", "z" })
	b := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Metadata.Name, c.Metadata.Namespace, c.Metadata.Uid = "x", "y_z", a.cfg.Metadata.Uid
	})
	if a.id == b.id {
		t.Errorf("two pods, one id")
	}
}

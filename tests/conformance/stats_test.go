package conformance

import (
	"maps"
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func checkStats(t *testing.T, k *container, s *cri.ContainerStats) {
	t.Helper()
	a := s.GetAttributes()
	if a.GetId() != k.id || a.GetMetadata().GetName() != k.cfg.Metadata.Name || !maps.Equal(a.GetLabels(), k.cfg.Labels) || !maps.Equal(a.GetAnnotations(), k.cfg.Annotations) {
		t.Errorf("attributes %v", a)
	}
	if s.GetCpu().GetTimestamp() == 0 || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("cpu %v", s.GetCpu())
	}
	if s.GetMemory().GetTimestamp() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("memory %v", s.GetMemory())
	}
	w := s.GetWritableLayer()
	if w.GetTimestamp() == 0 || w.GetUsedBytes() == nil || w.GetInodesUsed() == nil {
		t.Errorf("writable layer %v", w)
	}
	// One that fails stat fails the statistics of all pods: it must outlive this container.
	if info, err := os.Stat(w.GetFsId().GetMountpoint()); err != nil || !info.IsDir() {
		t.Errorf("mount point of the writable layer: %v", err)
	}
}

func TestContainerStats(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	k.exec("dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	var s *cri.ContainerStats
	eventually(t, "the written file in the statistics", func() bool {
		s = must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
		return s.GetWritableLayer().GetUsedBytes().GetValue() >= 3<<20
	})
	checkStats(t, k, s)
	before := s.Cpu.UsageCoreNanoSeconds.Value
	k.exec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	eventually(t, "a growing cpu time", func() bool {
		s = must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
		return s.Cpu.UsageCoreNanoSeconds.Value > before
	})
	mountpoint := s.WritableLayer.FsId.Mountpoint
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	if !exists(mountpoint) {
		t.Errorf("%s went with the container", mountpoint)
	}
	_, err := runtime.ContainerStats(ctx, k.id)
	wantCode(t, err, "ContainerStats of a removed container", codes.NotFound)
}

func TestContainerStatsUnknown(t *testing.T) {
	ctx := spec(t)
	_, err := runtime.ContainerStats(ctx, noSuchID)
	wantCode(t, err, "ContainerStats", codes.NotFound)
}

func TestListContainerStatsFilters(t *testing.T) {
	ctx := spec(t)
	p, other := runPod(t, ctx), runPod(t, ctx)
	group := unique("group")
	label := func(c *cri.ContainerConfig) { c.Labels["group"] = group }
	a, b, c := p.run(idle, label), p.run(idle), other.run(idle, label)
	eventually(t, "the first measure of the writable layers", func() bool {
		for _, k := range []*container{a, b, c} {
			s := must[*cri.ContainerStats](t, "ContainerStats")(runtime.ContainerStats(ctx, k.id))
			if s.GetWritableLayer().GetTimestamp() == 0 {
				return false
			}
		}
		return true
	})
	for name, k := range map[string]struct {
		filter *cri.ContainerStatsFilter
		want   []*container
	}{
		"id":                {&cri.ContainerStatsFilter{Id: a.id}, []*container{a}},
		"truncated id":      {&cri.ContainerStatsFilter{Id: a.id[:13]}, []*container{a}},
		"unknown id":        {&cri.ContainerStatsFilter{Id: noSuchID}, nil},
		"pod":               {&cri.ContainerStatsFilter{PodSandboxId: p.id}, []*container{a, b}},
		"unknown pod":       {&cri.ContainerStatsFilter{PodSandboxId: noSuchID}, nil},
		"label":             {&cri.ContainerStatsFilter{LabelSelector: map[string]string{"group": group}}, []*container{a, c}},
		"pod and label":     {&cri.ContainerStatsFilter{PodSandboxId: p.id, LabelSelector: map[string]string{"group": group}}, []*container{a}},
		"id of another pod": {&cri.ContainerStatsFilter{Id: c.id, PodSandboxId: p.id}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			got := map[string]*cri.ContainerStats{}
			for _, s := range must[[]*cri.ContainerStats](t, "ListContainerStats")(runtime.ListContainerStats(ctx, k.filter)) {
				got[s.GetAttributes().GetId()] = s
			}
			if len(got) != len(k.want) {
				t.Errorf("%d, want %d", len(got), len(k.want))
			}
			for _, w := range k.want {
				if s := got[w.id]; s != nil {
					checkStats(t, w, s)
				} else {
					t.Errorf("%s is missing", w.id)
				}
			}
		})
	}
}

// Containers that come and go while the list is made do not fail it.
func TestListContainerStatsWhileContainersGo(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5 {
			k, err := p.tryCreate(p.config(ref("busybox:1"), []string{"true"}))
			if err == nil {
				runtime.StartContainer(ctx, k.id)
				runtime.RemoveContainer(ctx, k.id)
			}
		}
	}()
	image(t, "busybox:1")
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if _, err := runtime.ListContainerStats(ctx, &cri.ContainerStatsFilter{PodSandboxId: p.id}); err != nil {
			t.Errorf("ListContainerStats: %v", err)
			<-done
			return
		}
	}
}

package conformance

import (
	"errors"
	"io"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What can be read depends on the node: these may be absent.
func optional(name string) bool {
	for _, part := range []string{"hugetlb", "blkio", "pressure", "fs_reads", "fs_writes"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// Every family that is announced has values, with as many labels as announced.
func TestPodSandboxMetrics(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle, func(c *cri.ContainerConfig) {
		c.Linux.Resources.CpuShares = 512
		c.Linux.Resources.MemoryLimitInBytes = 64 << 20
	})
	descriptors := map[string]*cri.MetricDescriptor{}
	for _, d := range must[[]*cri.MetricDescriptor](t, "ListMetricDescriptors")(runtime.ListMetricDescriptors(ctx)) {
		if descriptors[d.Name] != nil || d.Help == "" {
			t.Errorf("descriptor %v", d)
		}
		descriptors[d.Name] = d
	}
	if len(descriptors) < 50 {
		t.Fatalf("%d descriptors; are all groups included?", len(descriptors))
	}
	var of *cri.PodSandboxMetrics
	for _, m := range must[[]*cri.PodSandboxMetrics](t, "ListPodSandboxMetrics")(runtime.ListPodSandboxMetrics(ctx)) {
		if m.PodSandboxId == p.id {
			of = m
		}
	}
	if len(of.GetContainerMetrics()) != 1 || of.ContainerMetrics[0].ContainerId != k.id {
		t.Fatalf("metrics %v", of)
	}
	seen := map[string]uint64{}
	check := func(m *cri.Metric, id, container string) {
		d := descriptors[m.Name]
		if d == nil || len(d.LabelKeys) != len(m.LabelValues) {
			t.Errorf("%v is not as announced: %v", m, d)
			return
		}
		labels := map[string]string{}
		for n, key := range d.LabelKeys {
			labels[key] = m.LabelValues[n]
		}
		if labels["id"] != id || labels["container"] != container || labels["pod"] != p.cfg.Metadata.Name || labels["namespace"] != "conformance" {
			t.Errorf("labels of %s: %v", m.Name, labels)
		}
		counter := strings.HasSuffix(m.Name, "_total") && m.Name != "container_fs_inodes_total" || m.Name == "container_memory_failcnt"
		if counter != (m.MetricType == cri.MetricType_COUNTER) {
			t.Errorf("%s is a %v", m.Name, m.MetricType)
		}
		seen[m.Name] = m.GetValue().GetValue()
	}
	for _, m := range of.Metrics {
		check(m, p.id, "POD")
	}
	for _, m := range of.ContainerMetrics[0].Metrics {
		check(m, k.id, k.cfg.Metadata.Name)
	}
	for name := range descriptors {
		if _, found := seen[name]; !found && !optional(name) {
			t.Errorf("%s has no value", name)
		}
	}
	for name, want := range map[string]uint64{
		"container_spec_cpu_shares": 512, "container_spec_memory_limit_bytes": 64 << 20,
	} {
		if seen[name] != want {
			t.Errorf("%s is %d", name, seen[name])
		}
	}
	for _, name := range []string{"container_memory_working_set_bytes", "container_processes", "container_file_descriptors", "container_fs_limit_bytes", "container_last_seen"} {
		if seen[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
}

// A Stream* call gives what the list gives, and ends.
func TestStreamedLists(t *testing.T) {
	ctx := spec(t)
	group := unique("group")
	labels := map[string]string{"group": group}
	var ids, pods []string
	for range 3 {
		p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.Labels["group"] = group })
		k := p.run(idle, func(c *cri.ContainerConfig) { c.Labels["group"] = group })
		// The newest comes first.
		ids, pods = append([]string{k.id}, ids...), append([]string{p.id}, pods...)
	}
	for name, k := range map[string]struct {
		got  func() ([]string, error)
		want []string
	}{
		"containers": {func() ([]string, error) {
			stream, err := rawRuntime.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: labels}})
			return whole(stream, err, func(m *cri.StreamContainersResponse) (ids []string) {
				for _, c := range m.Containers {
					ids = append(ids, c.Id)
				}
				return ids
			})
		}, ids},
		"pods": {func() ([]string, error) {
			stream, err := rawRuntime.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels}})
			return whole(stream, err, func(m *cri.StreamPodSandboxesResponse) (ids []string) {
				for _, p := range m.PodSandboxes {
					ids = append(ids, p.Id)
				}
				return ids
			})
		}, pods},
		"statistics": {func() ([]string, error) {
			stream, err := rawRuntime.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{Filter: &cri.ContainerStatsFilter{LabelSelector: labels}})
			return whole(stream, err, func(m *cri.StreamContainerStatsResponse) (ids []string) {
				for _, s := range m.ContainerStats {
					ids = append(ids, s.Attributes.Id)
				}
				return ids
			})
		}, ids},
		"statistics of pods": {func() ([]string, error) {
			stream, err := rawRuntime.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{LabelSelector: labels}})
			return whole(stream, err, func(m *cri.StreamPodSandboxStatsResponse) (ids []string) {
				for _, s := range m.PodSandboxStats {
					ids = append(ids, s.Attributes.Id)
				}
				return ids
			})
		}, pods},
		"metrics": {func() ([]string, error) {
			stream, err := rawRuntime.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
			return whole(stream, err, func(m *cri.StreamPodSandboxMetricsResponse) (ids []string) {
				for _, s := range m.PodSandboxMetrics {
					if strings.Contains(strings.Join(pods, " "), s.PodSandboxId) {
						ids = append(ids, s.PodSandboxId)
					}
				}
				return ids
			})
		}, pods},
		"images": {func() ([]string, error) {
			stream, err := rawImages.StreamImages(ctx, &cri.StreamImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: ref("busybox:1")}}})
			return whole(stream, err, func(m *cri.StreamImagesResponse) (ids []string) {
				for _, i := range m.Images {
					ids = append(ids, i.Id)
				}
				return ids
			})
		}, []string{pull(t, ref("busybox:1"))}},
		"nothing": {func() ([]string, error) {
			stream, err := rawRuntime.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{Id: noSuchID}})
			return whole(stream, err, func(*cri.StreamContainersResponse) []string { return []string{"one"} })
		}, nil},
	} {
		got := must[[]string](t, name)(k.got())
		if strings.Join(got, " ") != strings.Join(k.want, " ") {
			t.Errorf("%s: %v, want %v", name, got, k.want)
		}
	}
}

// whole reads a stream to its end.
func whole[M any](stream interface{ Recv() (*M, error) }, err error, ids func(*M) []string) ([]string, error) {
	var found []string
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil {
			found = append(found, ids(m)...)
		}
	}
	if errors.Is(err, io.EOF) {
		return found, nil
	}
	return nil, err
}

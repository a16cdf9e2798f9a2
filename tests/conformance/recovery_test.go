package conformance

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the runtime says of a pod and of its containers, in whichever state they are.
func said(t *testing.T, ctx context.Context, id string, containers []string) []proto.Message {
	t.Helper()
	answer := must[*cri.PodSandboxStatusResponse](t, "PodSandboxStatus")(runtime.PodSandboxStatus(ctx, id, true))
	answer.Timestamp = 0
	all := []proto.Message{answer}
	for _, c := range containers {
		all = append(all, must[*cri.ContainerStatusResponse](t, "ContainerStatus")(runtime.ContainerStatus(ctx, c, true)))
	}
	filter := &cri.ContainerFilter{PodSandboxId: id}
	for _, c := range must[[]*cri.Container](t, "ListContainers")(runtime.ListContainers(ctx, filter)) {
		all = append(all, c)
	}
	for _, p := range must[[]*cri.PodSandbox](t, "ListPodSandbox")(runtime.ListPodSandbox(ctx, &cri.PodSandboxFilter{Id: id})) {
		all = append(all, p)
	}
	return all
}

// Every answer about pods and containers is the same after the runtime was killed, the order of lists
// included, and nothing is left over.
func TestAnswersOutliveTheDaemon(t *testing.T) {
	criod := restarts(t)
	// Not beside other specs: they would miss the daemon.
	ctx := within(t, 2*time.Minute)
	p := runPod(t, ctx)
	running := p.run(idle)
	created := p.create(running.status().GetImage().GetImage(), []string{"true"})
	ended, _ := p.finish("exit 7")
	ids := []string{running.id, created.id, ended.id}
	before := said(t, ctx, p.id, ids)
	for range 3 {
		criod.run("kill")
		criod.run("start")
		after := said(t, ctx, p.id, ids)
		if len(after) != len(before) {
			t.Fatalf("%d answers instead of %d", len(after), len(before))
		}
		for n := range before {
			if !proto.Equal(before[n], after[n]) {
				t.Errorf("before: %v\nafter: %v", before[n], after[n])
			}
		}
	}
	status := must[*cri.StatusResponse](t, "Status")(runtime.Status(ctx, true))
	var recovery struct {
		Leftovers  []any `json:"leftovers"`
		Unreadable []any `json:"unreadable"`
	}
	ok(t, json.Unmarshal([]byte(status.GetInfo()["recovery"]), &recovery), "the status tells of the recovery")
	if recovery.Leftovers == nil || len(recovery.Unreadable) != 0 {
		t.Errorf("recovery: %s", status.GetInfo()["recovery"])
	}
	if out := running.exec("echo x"); out != "x\n" {
		t.Errorf("exec: %q", out)
	}
}

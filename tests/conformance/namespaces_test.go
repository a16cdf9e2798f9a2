package conformance

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func target(id string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: id}
	}
}

// As `kubectl debug --target` asks for it.
func TestPidNamespaceOfATarget(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	observed := p.run("exec sleep 4711")
	debugger := p.run(idle, target(observed.id))
	eventually(t, "the other's process to be seen", func() bool {
		return strings.Contains(debugger.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"), "sleep 4711")
	})

	other := runPod(t, ctx)
	img := image(t, "busybox:1")
	_, err := other.tryCreate(other.config(img, []string{"true"}, target(observed.id)))
	wantInvalid(t, err, "a target in another pod")
	created := p.create(img, []string{"true"})
	_, err = p.tryCreate(p.config(img, []string{"true"}, target(created.id)))
	if *peer == "" {
		wantCode(t, err, "a target that does not run", codes.FailedPrecondition)
	}
}

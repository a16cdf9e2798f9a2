package kubernetes

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func httpProbe(path string) v1.ProbeHandler {
	return v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: path, Port: intstr.FromInt32(8080), Scheme: v1.URISchemeHTTP}}
}

func tcpProbe(port int32) v1.ProbeHandler {
	return v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt32(port)}}
}

// probed gives a container all three probes.
func probed(c v1.Container, handler v1.ProbeHandler) v1.Container {
	c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = probe(handler), probe(handler), probe(handler)
	return c
}

const (
	webServer  = "mkdir -p /www; echo fine >/www/healthz; httpd -f -p 8080 -h /www"
	echoServer = "nc -ll -p 9090 -e cat"
)

// allProbes is a pod with a container for each kind of probe.
func allProbes(name string) *v1.Pod {
	return ofPod(name, v1.RestartPolicyAlways, []v1.Container{
		probed(sh("exec", "touch /tmp/fine; "+idle), execProbe("test -e /tmp/fine")),
		probed(sh("http", background(webServer)), httpProbe("/healthz")),
		probed(sh("tcp", background(echoServer)), tcpProbe(9090)),
	})
}

func TestAloneProbes(t *testing.T) {
	t.Parallel()
	p := static(t, allProbes("probes"))
	for _, each := range statuses(p.untilReady()) {
		equal(t, each.Name+": restarts", each.RestartCount, 0)
		if !each.Ready || each.Started == nil || !*each.Started {
			t.Errorf("%s: ready %v, started %v", each.Name, each.Ready, each.Started)
		}
	}
}

func TestAloneReadinessFollowsItsProbe(t *testing.T) {
	t.Parallel()
	c := sh("it", idle)
	c.ReadinessProbe = probe(execProbe("test -e /tmp/ready"))
	c.ReadinessProbe.FailureThreshold = 1
	p := static(t, ofPod("readiness", v1.RestartPolicyAlways, []v1.Container{c}))
	running := func(pod *v1.Pod) bool { return status(pod, "it").State.Running != nil }
	if status(p.until("running", running), "it").Ready {
		t.Error("ready before its probe says so")
	}
	for range 2 {
		p.exec("it", "touch /tmp/ready")
		p.untilReady()
		p.exec("it", "rm /tmp/ready")
		pod := p.until("unready", func(pod *v1.Pod) bool { return readiness(pod).Status == v1.ConditionFalse })
		equal(t, "restarts", status(pod, "it").RestartCount, 0)
	}
}

// A container whose probe fails, or does not come back in time, is restarted, and no other one.
func TestAloneLiveness(t *testing.T) {
	t.Parallel()
	grace := int64(1)
	live := func(c v1.Container, handler v1.ProbeHandler) v1.Container {
		c.LivenessProbe = &v1.Probe{
			ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 1,
			InitialDelaySeconds: 1, TerminationGracePeriodSeconds: &grace,
		}
		return c
	}
	p := static(t, ofPod("liveness", v1.RestartPolicyAlways, []v1.Container{
		live(sh("fails", idle), execProbe("exit 4")),
		live(sh("hangs", idle), execProbe("sleep 1000")),
		live(sh("absent", background(webServer)), httpProbe("/nothing")),
		sh("other", idle),
	}, func(spec *v1.PodSpec) { *spec.TerminationGracePeriodSeconds = 2 }))
	pod := p.until("restarted", func(pod *v1.Pod) bool {
		for _, name := range []string{"fails", "hangs", "absent"} {
			if status(pod, name).RestartCount == 0 {
				return false
			}
		}
		return true
	})
	equal(t, "restarts of the other", status(pod, "other").RestartCount, 0)
	last := status(pod, "hangs").LastTerminationState.Terminated
	if last == nil || last.ExitCode != 0 || last.Reason != "Completed" {
		t.Errorf("the one that hung ended with %v", last)
	}
}

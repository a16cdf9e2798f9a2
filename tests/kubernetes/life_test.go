package kubernetes

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAloneInitContainers(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("init", v1.RestartPolicyOnFailure,
		[]v1.Container{sh("main", "cat /scratch/order")},
		initially(
			sh("first", "echo first >>/scratch/order"),
			sh("second", "[ -e /scratch/tried ] || { touch /scratch/tried; exit 3; }; echo second >>/scratch/order"),
		),
		emptyDir("work", "/scratch")))
	pod := p.untilPhase(v1.PodSucceeded)
	equal(t, "first: restarts", status(pod, "first").RestartCount, 0)
	equal(t, "second: restarts", status(pod, "second").RestartCount, 1)
	if last := status(pod, "second").LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("second: ended before with %v", last)
	}
	for _, name := range []string{"first", "second", "main"} {
		end := ended(pod, name)
		equal(t, name+": exit code", end.ExitCode, 0)
		equal(t, name+": reason", end.Reason, "Completed")
		if end.StartedAt.IsZero() || end.FinishedAt.Before(&end.StartedAt) {
			t.Errorf("%s: from %v to %v", name, end.StartedAt, end.FinishedAt)
		}
	}
	equal(t, "log", p.log("main"), "first\nsecond\n")
}

func TestAloneInitContainerFails(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("init-fails", v1.RestartPolicyNever,
		[]v1.Container{sh("main", "true")}, initially(sh("first", "exit 7"))))
	pod := p.untilPhase(v1.PodFailed)
	equal(t, "exit code", ended(pod, "first").ExitCode, 7)
	equal(t, "restarts", status(pod, "first").RestartCount, 0)
	all := must[[]*cri.Container](t, "list")(
		runtime.ListContainers(context.Background(), &cri.ContainerFilter{LabelSelector: p.labels()}))
	if len(all) != 1 {
		t.Errorf("there are %d containers, want the first only: %v", len(all), all)
	}
}

// Sidecars are there before what comes after them, are restarted, and end after the last container.
func TestAloneSidecars(t *testing.T) {
	t.Parallel()
	always := v1.ContainerRestartPolicyAlways
	steady := sh("steady", "trap 'echo steady >>/scratch/order; exit 0' TERM; touch /scratch/up; sleep 1000000 & wait")
	steady.RestartPolicy = &always
	steady.StartupProbe = probe(execProbe("test -e /scratch/up"))
	shaky := sh("shaky", "[ -e /scratch/tried ] || { touch /scratch/tried; exit 5; }; touch /scratch/again; "+idle)
	shaky.RestartPolicy = &always
	where := t.TempDir()
	p := static(t, ofPod("sidecars", v1.RestartPolicyNever,
		[]v1.Container{sh("main", "until [ -e /scratch/again ]; do sleep 0.2; done; echo main >>/scratch/order")},
		initially(steady, shaky, sh("between", "test -e /scratch/up && echo between >>/scratch/order")),
		hostPath("work", "/scratch", where)))
	pod := p.untilPhase(v1.PodSucceeded)
	equal(t, "steady: restarts", status(pod, "steady").RestartCount, 0)
	equal(t, "shaky: restarts", status(pod, "shaky").RestartCount, 1)
	equal(t, "steady: exit code", ended(pod, "steady").ExitCode, 0)
	order := must[[]byte](t, "order")(os.ReadFile(filepath.Join(where, "order")))
	equal(t, "order", string(order), "between\nmain\nsteady\n")
}

func TestAloneRestartPolicies(t *testing.T) {
	t.Parallel()
	never := static(t, ofPod("never", v1.RestartPolicyNever, []v1.Container{sh("it", "echo out; echo err >&2; exit 9")}))
	onFailure := static(t, ofPod("on-failure", v1.RestartPolicyOnFailure, []v1.Container{
		sh("it", "[ -e /scratch/tried ] && exit 0; touch /scratch/tried; exit 6")}, emptyDir("work", "/scratch")))
	always := static(t, ofPod("always", v1.RestartPolicyAlways, []v1.Container{sh("it", "exit 0")}))

	pod := never.untilPhase(v1.PodFailed)
	equal(t, "never: exit code", ended(pod, "it").ExitCode, 9)
	equal(t, "never: restarts", status(pod, "it").RestartCount, 0)
	if log := never.log("it"); log != "out\nerr\n" && log != "err\nout\n" {
		t.Errorf("never: log %q", log)
	}
	pod = onFailure.untilPhase(v1.PodSucceeded)
	equal(t, "on failure: restarts", status(pod, "it").RestartCount, 1)
	always.until("restarted", func(pod *v1.Pod) bool {
		last := status(pod, "it").LastTerminationState.Terminated
		return status(pod, "it").RestartCount >= 2 && last != nil && last.ExitCode == 0
	})
}

// Of the containers that are dead the kubelet keeps one, and removes the others with their logs.
func TestAloneDeadContainersAreRemoved(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("dead", v1.RestartPolicyAlways, []v1.Container{sh("it", "exit 1")}))
	pod := p.until("restarted", func(pod *v1.Pod) bool { return status(pod, "it").RestartCount >= 4 })
	logs := filepath.Join(folder, "pods", "default_"+p.name+"_"+uidOf(pod), "it")
	eventually(t, "no more than one dead container and the next", func() (bool, string) {
		all, err := runtime.ListContainers(context.Background(), &cri.ContainerFilter{LabelSelector: p.labels()})
		left, _ := filepath.Glob(logs + "/*")
		created := map[int64]bool{}
		for _, each := range all {
			created[each.CreatedAt] = true
		}
		equal(t, "different times of creation", len(created), len(all))
		return err == nil && len(all) <= 2 && len(left) <= 2, "left: " + sprint(all, left)
	})
}

func TestAlonePreStopAndGracePeriod(t *testing.T) {
	t.Parallel()
	where := t.TempDir()
	hooked := sh("hooked", "trap 'sleep 1; echo term >>/scratch/order; exit 0' TERM; sleep 1000000 & wait")
	hooked.Lifecycle = &v1.Lifecycle{
		PostStart: &v1.LifecycleHandler{Exec: execProbe("echo post-start >>/scratch/order").Exec},
		PreStop:   &v1.LifecycleHandler{Exec: execProbe("sleep 1; echo pre-stop >>/scratch/order").Exec},
	}
	p := static(t, ofPod("hooks", v1.RestartPolicyAlways, []v1.Container{hooked}, hostPath("work", "/scratch", where)))
	p.untilReady()
	p.end()
	order := must[[]byte](t, "order")(os.ReadFile(filepath.Join(where, "order")))
	equal(t, "order", string(order), "post-start\npre-stop\nterm\n")
}

// A container that takes no notice of SIGTERM is killed after its grace period.
func TestAloneDeafContainer(t *testing.T) {
	t.Parallel()
	where := t.TempDir()
	p := static(t, ofPod("deaf", v1.RestartPolicyNever, []v1.Container{
		sh("it", "trap 'echo term >>/scratch/order' TERM; echo on >>/scratch/order; while :; do sleep 1000000 & wait; done")},
		hostPath("work", "/scratch", where), func(spec *v1.PodSpec) { *spec.TerminationGracePeriodSeconds = 2 }))
	eventually(t, "the trap", func() (bool, string) {
		order, _ := os.ReadFile(filepath.Join(where, "order"))
		return string(order) == "on\n", string(order)
	})
	p.end()
	order := must[[]byte](t, "order")(os.ReadFile(filepath.Join(where, "order")))
	equal(t, "order", string(order), "on\nterm\n")
}

// What a container writes as its last words becomes the message of its end.
func TestAloneTerminationMessage(t *testing.T) {
	t.Parallel()
	file := sh("file", "echo -n 'from the file' >/dev/termination-log; exit 1")
	logs := sh("logs", "seq 5000; echo last; exit 1")
	logs.TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	p := static(t, ofPod("message", v1.RestartPolicyNever, []v1.Container{file, logs}))
	pod := p.untilPhase(v1.PodFailed)
	equal(t, "message in the file", ended(pod, "file").Message, "from the file")
	message := ended(pod, "logs").Message
	if len(message) < 5 || message[len(message)-5:] != "last\n" {
		t.Errorf("message of the log ends with %q", message)
	}
}

// A program that does not exist is an error that names it, and nothing else of the pod suffers.
func TestAloneMissingProgram(t *testing.T) {
	t.Parallel()
	c := sh("it", "")
	c.Command = []string{"/no/such/program"}
	p := static(t, ofPod("missing", v1.RestartPolicyNever, []v1.Container{c, sh("other", "exit 0")}))
	pod := p.until("refused", func(pod *v1.Pod) bool {
		waiting := status(pod, "it").State.Waiting
		return waiting != nil && waiting.Reason == "CreateContainerError" && ended(pod, "other").Reason == "Completed"
	})
	if message := status(pod, "it").State.Waiting.Message; !strings.Contains(message, "/no/such/program") {
		t.Errorf("message %q", message)
	}
}

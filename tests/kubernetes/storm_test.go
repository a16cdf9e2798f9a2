package kubernetes

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// witness is what must not change of a pod whatever happens below it.
type witness struct {
	*pod
	before *v1.Pod
}

func (p *pod) witness() witness { return witness{p, p.untilReady()} }

// unmoved sees to it that no container was restarted, and none is unready now; with steady, that none
// ever was since.
func (w witness) unmoved(when string, steady bool) {
	w.t.Helper()
	now := w.untilReady()
	for _, was := range statuses(w.before) {
		is := status(now, was.Name)
		what := fmt.Sprintf("%s, %s, %s: ", when, w.name, was.Name)
		equal(w.t, what+"id", is.ContainerID, was.ContainerID)
		equal(w.t, what+"restarts", is.RestartCount, was.RestartCount)
		equal(w.t, what+"image", is.ImageID, was.ImageID)
		if was.State.Running != nil && (is.State.Running == nil || !is.State.Running.StartedAt.Equal(&was.State.Running.StartedAt)) {
			w.t.Errorf("%sstate %v, was %v", what, is.State, was.State)
		}
	}
	if steady {
		if is, was := readiness(now), readiness(w.before); !is.LastTransitionTime.Equal(&was.LastTransitionTime) {
			w.t.Errorf("%s, %s: became unready meanwhile: ready since %v, was since %v", when, w.name, is.LastTransitionTime, was.LastTransitionTime)
		}
	}
	equal(w.t, when+", "+w.name+": address", now.Status.PodIP, w.before.Status.PodIP)
}

// killCriod kills criod, leaves it dead for some time, and starts it again.
func killCriod(t *testing.T) {
	t.Helper()
	script(t, "CRIOD_RESTART", "kill")
	time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
	script(t, "CRIOD_RESTART", "start")
}

func restartKubelet(t *testing.T, how string) {
	t.Helper()
	script(t, "KUBE_KUBELET", how)
	script(t, "KUBE_KUBELET", "start")
}

// numbered reads all log files of a container, rotated ones first, and gives the lines.
func numbered(t *testing.T, dir string) ([]string, int) {
	t.Helper()
	files := must[[]string](t, "logs")(filepath.Glob(dir + "/0.log.*"))
	sort.Strings(files)
	rotated := len(files)
	var lines []string
	for _, path := range append(files, dir+"/0.log") {
		data := must[[]byte](t, "log")(os.ReadFile(path))
		var from io.Reader = bytes.NewReader(data)
		if strings.HasSuffix(path, ".gz") {
			from = must[*gzip.Reader](t, path)(gzip.NewReader(from))
		}
		for scanner := bufio.NewScanner(from); scanner.Scan(); {
			parts := strings.SplitN(scanner.Text(), " ", 4)
			if len(parts) != 4 || parts[1] != "stdout" || parts[2] != "F" {
				t.Fatalf("%s: line %q", path, scanner.Text())
			}
			lines = append(lines, parts[3])
		}
	}
	return lines, rotated
}

// A kubelet on its own, with criod killed again and again under it: nothing restarts, nothing becomes
// unready, no line is lost while logs are rotated, and an exec goes on. What nothing uses is collected.
func TestAloneStorm(t *testing.T) {
	sidecar := sh("sidecar", "touch /tmp/up; "+idle)
	always := v1.ContainerRestartPolicyAlways
	sidecar.RestartPolicy, sidecar.StartupProbe = &always, probe(execProbe("test -e /tmp/up"))
	host := probed(sh("it", background("nc -ll -p 9191 -e cat")), tcpProbe(9191))
	pods := []*pod{
		static(t, allProbes("storm-probes")),
		static(t, ofPod("storm-sidecar", v1.RestartPolicyAlways, []v1.Container{sh("it", idle)},
			initially(sidecar, sh("before", "true")))),
		static(t, ofPod("storm-host", v1.RestartPolicyAlways, []v1.Container{host},
			func(spec *v1.PodSpec) { spec.HostNetwork = true })),
		static(t, echoes("storm-echo")),
	}
	// 500 lines each 100 ms; "-" once the file is there.
	const steps = 500
	writer := static(t, ofPod("storm-writer", v1.RestartPolicyNever, []v1.Container{sh("it", fmt.Sprintf(
		"n=1; until [ -e /stop ]; do seq $n $((n + %d)); n=$((n + %d)); sleep 0.1; done; echo -", steps-1, steps))}))
	unused := sh("it", idle)
	unused.Image = image("plain:1")
	p := static(t, ofPod("storm-image", v1.RestartPolicyAlways, []v1.Container{unused}))
	p.untilReady()
	p.end()

	var witnesses []witness
	for _, p := range append(pods, writer) {
		witnesses = append(witnesses, p.witness())
	}
	all := func(when string, steady bool) {
		t.Helper()
		for _, w := range witnesses {
			w.unmoved(when, steady)
		}
	}

	query := url.Values{"command": {"cat"}, "input": {"1"}, "output": {"1"}, "error": {"1"}}
	run := executor(t, "WebSocket", serverURL(t, "/exec/default/"+pods[3].name+"/echo", query))
	in, keyboard := io.Pipe()
	exec, over := newPump("exec", 1), make(chan error, 1)
	go func() {
		over <- run.StreamWithContext(within(t), remotecommand.StreamOptions{Stdin: in, Stdout: exec, Stderr: io.Discard})
	}()
	go exec.run(keyboard)
	forward, hangUp := pumpThrough(t, "port-forward", 2, forwardFromServer(t, pods[3], 9090))
	for n := range 10 {
		killCriod(t)
		exec.moves(t, fmt.Sprintf("after %d kills", n+1))
		forward.moves(t, fmt.Sprintf("after %d kills", n+1))
	}
	all("criod killed", true)
	exec.stop(t)
	hangUp()
	keyboard.Close()
	if err := <-over; err != nil {
		t.Errorf("the exec ended with %v", err)
	}

	restartKubelet(t, "stop")
	all("the kubelet restarted", false)
	restartKubelet(t, "kill")
	for range 5 {
		killCriod(t)
	}
	all("the kubelet killed and criod, too", false)
	// New pods come and go meanwhile.
	churn := static(t, allProbes("storm-late"))
	for range 3 {
		killCriod(t)
	}
	churn.untilReady()
	killCriod(t)
	churn.end()
	all("pods came and went", false)

	witnesses = witnesses[:len(pods)]
	writer.exec("it", "touch /stop")
	ended := writer.untilPhase(v1.PodSucceeded)
	lines, rotated := numbered(t, filepath.Join(folder, "pods", "default_"+writer.name+"_"+uidOf(ended), "it"))
	if rotated < 3 {
		t.Errorf("logs were rotated %d times only", rotated)
	}
	for n, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(n+1) {
			t.Fatalf("line %d of %d is %q", n+1, len(lines), line)
		}
	}
	equal(t, "the last line", lines[len(lines)-1], "-")

	// It is collected when the kubelet starts and no container of it is left.
	ctx := context.Background()
	eventually(t, "the end of an image that nothing uses", func() (bool, string) {
		restartKubelet(t, "stop")
		answer, err := images.ImageStatus(ctx, &cri.ImageSpec{Image: image("plain:1")}, false)
		return err == nil && answer.GetImage() == nil, fmt.Sprint(answer, err)
	})
	used := must[*cri.ImageStatusResponse](t, "image")(images.ImageStatus(ctx, &cri.ImageSpec{Image: image("busybox:1")}, false))
	if used.GetImage() == nil {
		t.Error("an image that is in use was removed")
	}
	all("garbage collected", false)
}

// What a pod uses is in the kubelet's summary.
func TestAloneStatistics(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("statistics", v1.RestartPolicyAlways, []v1.Container{sh("it", "while :; do :; done")},
		func(spec *v1.PodSpec) { *spec.TerminationGracePeriodSeconds = 0 }))
	p.untilReady()
	type usage struct {
		CPU    struct{ UsageCoreNanoSeconds, UsageNanoCores *uint64 }
		Memory struct{ WorkingSetBytes *uint64 }
		Rootfs struct{ UsedBytes *uint64 }
	}
	var summary struct {
		Node struct {
			Fs, Runtime struct{ ImageFs struct{ UsedBytes *uint64 } }
		}
		Pods []struct {
			PodRef     struct{ Name string }
			Containers []struct {
				Name string
				usage
			}
		}
	}
	eventually(t, "the container's statistics", func() (bool, string) {
		data, err := fetch("/stats/summary")
		if err != nil || json.Unmarshal([]byte(data), &summary) != nil {
			return false, fmt.Sprint(data, err)
		}
		for _, pod := range summary.Pods {
			for _, c := range pod.Containers {
				if pod.PodRef.Name == p.name && c.Name == "it" && c.CPU.UsageNanoCores != nil && *c.CPU.UsageNanoCores > 1e6 &&
					c.Memory.WorkingSetBytes != nil && *c.Memory.WorkingSetBytes > 0 && c.Rootfs.UsedBytes != nil &&
					summary.Node.Runtime.ImageFs.UsedBytes != nil && *summary.Node.Runtime.ImageFs.UsedBytes > 0 {
					return true, ""
				}
			}
		}
		return false, data
	})
}

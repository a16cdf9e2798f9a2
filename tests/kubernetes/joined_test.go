package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Streams of kubectl go on byte for byte while criod is killed again and again, and no pod restarts or
// becomes unready, also not when the kubelet does.
func TestJoinedStorm(t *testing.T) {
	echo := create(t, echoes("echo"))
	probes := create(t, allProbes("probes"))
	counter := create(t, ofPod("counter", v1.RestartPolicyNever, []v1.Container{sh("it",
		"n=1; until [ -e /stop ]; do echo $n; n=$((n + 1)); usleep 20000; done; echo -")}))
	witnesses := []witness{echo.witness(), probes.witness(), counter.witness()}
	all := func(when string) {
		t.Helper()
		for _, w := range witnesses {
			w.unmoved(when, true)
		}
	}

	log := &screen{}
	follow := open(t, log, "logs", "-f", counter.name)
	term := onTerminal(t, "exec", "-it", echo.name, "-c", "echo", "--", "sh")
	exec, execs := pumpInto(t, "exec -i", 1, "exec", "-i", echo.name, "-c", "echo", "--", "cat")
	attach, attaches := pumpInto(t, "attach -i", 2, "attach", "-i", echo.name, "-c", "cat")
	forward, hangUp := pumpThrough(t, "port-forward", 3, forwardedBy(t, echo, "9090"))
	for n := range 12 {
		killCriod(t)
		when := fmt.Sprintf("after %d kills", n+1)
		for _, pump := range []*pump{exec, attach, forward} {
			pump.moves(t, when)
		}
		fmt.Fprintf(term.master, "echo typed-$((%d + 1000))\n", n)
		term.screen.wait(t, fmt.Sprintf("typed-%d\r\n", n+1000))
		lines := strings.Count(log.String(), "\n")
		eventually(t, when+": more of the log", func() (bool, string) {
			return strings.Count(log.String(), "\n") > lines, follow.stderr.String()
		})
	}
	all("criod killed")
	for _, pump := range []*pump{exec, attach} {
		pump.stop(t)
	}
	hangUp()
	attaches.end()
	execs.keyboard.Close()
	execs.exits(0)
	fmt.Fprintln(term.master, "exit 7")
	term.exits(7)

	// A follower ends with the kubelet; the container's lines do not.
	counter.exec("it", "touch /stop")
	follow.exits(0)
	witnesses = witnesses[:2]
	lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
	for n, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(n+1) {
			t.Fatalf("line %d of %d that were followed is %q", n+1, len(lines), line)
		}
	}
	equal(t, "the last line", lines[len(lines)-1], "-")
	counter.untilPhase(v1.PodSucceeded)

	restartKubelet(t, "stop")
	all("the kubelet restarted")
	restartKubelet(t, "kill")
	for range 3 {
		killCriod(t)
	}
	all("the kubelet killed and criod, too")
}

func TestJoinedExec(t *testing.T) {
	t.Parallel()
	p := create(t, ofPod("exec", v1.RestartPolicyAlways, []v1.Container{sh("it", idle)}))
	p.untilReady()
	stdout, stderr, code := kubectl(t, "", "exec", p.name, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
	equal(t, "exit code", code, 3)
	equal(t, "stdout", stdout, "out\n")
	if !strings.HasPrefix(stderr, "err\n") {
		t.Errorf("stderr %q", stderr)
	}
	var data strings.Builder
	io.CopyN(&data, noise(7), 3<<20)
	stdout, stderr, code = kubectl(t, data.String(), "exec", "-i", p.name, "--", "sh", "-c", "cat; exit 42")
	equal(t, "exit code with input: "+stderr, code, 42)
	equal(t, "what came back is what was sent", stdout == data.String(), true)

	term := onTerminal(t, "exec", "-it", p.name, "--", "sh")
	fmt.Fprintln(term.master, "until stty size | grep '24 80'; do sleep 0.1; done; tty")
	term.screen.wait(t, "24 80\r\n/dev/pts/")
	term.size(99, 44)
	fmt.Fprintln(term.master, "until stty size | grep '44 99'; do sleep 0.1; done; echo seen-$((1 + 1))")
	term.screen.wait(t, "seen-2\r\n")
	// An interrupt is of the program, not of kubectl.
	fmt.Fprintln(term.master, "trap 'echo inter''rupted' INT; sleep 1000; echo on-$((2 + 1))")
	eventually(t, "the program to interrupt", func() (bool, string) {
		list := p.exec("it", "ps")
		return strings.Contains(list, "sleep 1000\n"), list
	})
	term.master.Write([]byte{3})
	term.screen.wait(t, "interrupted\r\n")
	fmt.Fprintln(term.master, "exit 5")
	term.exits(5)
}

func TestJoinedAttach(t *testing.T) {
	t.Parallel()
	p := create(t, echoes("attach"))
	p.untilReady()
	for n := range uint64(2) {
		pump, s := pumpInto(t, "attach", n, "attach", "-i", p.name, "-c", "cat")
		pump.moves(t, "attached")
		pump.stop(t)
		s.end()
	}
	equal(t, "restarts", status(must[*v1.Pod](t, "pod")(p.find()), "cat").RestartCount, 0)
}

func TestJoinedPortForward(t *testing.T) {
	t.Parallel()
	p := create(t, allProbes("forward"))
	p.untilReady()
	pump, hangUp := pumpThrough(t, "port-forward", 9, forwardedBy(t, p, "9090"))
	pump.moves(t, "forwarded")
	address := forwardedBy(t, p, "8080")
	for range 20 {
		answer := must[*http.Response](t, "web")(http.Get("http://" + address + "/healthz"))
		equal(t, "web", string(must[[]byte](t, "web")(io.ReadAll(answer.Body))), "fine\n")
		answer.Body.Close()
	}
	pump.moves(t, "beside others")
	hangUp()
}

func TestJoinedLogs(t *testing.T) {
	t.Parallel()
	p := create(t, ofPod("logs", v1.RestartPolicyOnFailure, []v1.Container{
		sh("it", "if [ -e /scratch/tried ]; then seq 4 6; until [ -e /scratch/go ]; do sleep 0.1; done; else touch /scratch/tried; seq 3; exit 1; fi"),
		sh("other", "echo from the other")}, emptyDir("work", "/scratch")))
	p.until("the second try", func(pod *v1.Pod) bool {
		it := status(pod, "it")
		return it.RestartCount == 1 && it.State.Running != nil
	})
	equal(t, "previous", succeeds(t, "logs", p.name, "-c", "it", "--previous"), "1\n2\n3\n")
	p.exec("it", "touch /scratch/go")
	p.untilPhase(v1.PodSucceeded)
	equal(t, "log", succeeds(t, "logs", p.name, "-c", "it"), "4\n5\n6\n")
	equal(t, "tail", succeeds(t, "logs", p.name, "-c", "it", "--tail", "1"), "6\n")
	equal(t, "follow", succeeds(t, "logs", p.name, "-c", "it", "-f"), "4\n5\n6\n")
	// kubectl asks for them in the order of a Go map, which is none.
	all := succeeds(t, "logs", p.name, "--all-containers")
	equal(t, "all, the other", strings.Count(all, "from the other\n"), 1)
	equal(t, "all", strings.Replace(all, "from the other\n", "", 1), "4\n5\n6\n")
	stamped := strings.Fields(succeeds(t, "logs", p.name, "-c", "it", "--tail", "1", "--timestamps"))
	if len(stamped) != 2 || !strings.HasPrefix(stamped[0], "20") {
		t.Errorf("with a timestamp: %q", stamped)
	}
}

func TestJoinedCopy(t *testing.T) {
	t.Parallel()
	p := create(t, ofPod("copy", v1.RestartPolicyAlways, []v1.Container{sh("it", idle)}))
	p.untilReady()
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	ok(t, os.MkdirAll(filepath.Join(from, "below"), 0o755), "folder")
	var data strings.Builder
	io.CopyN(&data, noise(8), 2<<20)
	ok(t, os.WriteFile(filepath.Join(from, "below/big"), []byte(data.String()), 0o644), "file")
	ok(t, os.WriteFile(filepath.Join(from, "small"), []byte("small\n"), 0o755), "file")
	succeeds(t, "cp", from, p.name+":/tmp/copied")
	equal(t, "modes", p.exec("it", "cd /tmp/copied; stat -c '%a %n' small below/big"), "755 small\n644 below/big\n")
	succeeds(t, "cp", p.name+":/tmp/copied", to)
	equal(t, "big", string(must[[]byte](t, "big")(os.ReadFile(filepath.Join(to, "below/big")))) == data.String(), true)
	equal(t, "small", string(must[[]byte](t, "small")(os.ReadFile(filepath.Join(to, "small")))), "small\n")
}

// An ephemeral container sees the processes of the one that it is to look at, and may be talked to.
func TestJoinedDebug(t *testing.T) {
	t.Parallel()
	p := create(t, ofPod("debug", v1.RestartPolicyAlways, []v1.Container{sh("it", "sleep 987654 & "+idle), sh("other", idle)}))
	before := p.untilReady()
	out := &screen{}
	s := open(t, out, "debug", p.name, "-i", "--image", image("busybox:1"), "--target", "it", "-c", "look",
		"--profile", "general", "--", "sh", "-c", "read word; ps; echo got $word; exit 4")
	fmt.Fprintln(s.keyboard, "something")
	out.wait(t, "got something\n")
	if !strings.Contains(out.String(), "sleep 987654\n") {
		t.Errorf("the target's processes are not there: %s", out)
	}
	pod := p.until("ended", func(pod *v1.Pod) bool { return status(pod, "look").State.Terminated != nil })
	equal(t, "exit code", ended(pod, "look").ExitCode, 4)
	for _, each := range pod.Status.ContainerStatuses {
		equal(t, each.Name+": id", each.ContainerID, status(before, each.Name).ContainerID)
		equal(t, each.Name+": restarts", each.RestartCount, 0)
	}
}

func TestJoinedVolumes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	meta := metav1.ObjectMeta{Name: "volumes"}
	settings := &v1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"setting": "first", "other": "kept"}}
	must[*v1.ConfigMap](t, "config map")(api.CoreV1().ConfigMaps("default").Create(ctx, settings, metav1.CreateOptions{}))
	must[*v1.Secret](t, "secret")(api.CoreV1().Secrets("default").Create(ctx,
		&v1.Secret{ObjectMeta: meta, StringData: map[string]string{"word": "secret"}}, metav1.CreateOptions{}))
	named := v1.LocalObjectReference{Name: "volumes"}
	p := create(t, ofPod("volumes", v1.RestartPolicyAlways, []v1.Container{sh("it", idle)},
		volume("all", "/all", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
			{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: named}},
			{Secret: &v1.SecretProjection{LocalObjectReference: named}},
			{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{
				Path: "name", FieldRef: &v1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}}}},
		}}}),
		func(spec *v1.PodSpec) {
			spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts,
				v1.VolumeMount{Name: "all", MountPath: "/one", SubPath: "other"})
			spec.Containers[0].EnvFrom = []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: named}}}
		}))
	p.untilReady()
	equal(t, "files", p.exec("it", "cd /all; cat setting other word name /one; echo $word; df -t tmpfs . >&2"),
		"firstkeptsecretvolumeskeptsecret\n")
	settings.Data["setting"] = "second"
	must[*v1.ConfigMap](t, "config map")(api.CoreV1().ConfigMaps("default").Update(ctx, settings, metav1.UpdateOptions{}))
	eventually(t, "the new setting", func() (bool, string) {
		now := p.exec("it", "cat /all/setting")
		return now == "second", now
	})
}

// A pod of a file is one of the API server's, too, with the host's address where it has its network.
func TestJoinedStaticPod(t *testing.T) {
	t.Parallel()
	p := static(t, ofPod("static", v1.RestartPolicyAlways, []v1.Container{sh("it", "echo here; "+idle)},
		func(spec *v1.PodSpec) { spec.HostNetwork = true }))
	pod := p.untilReady()
	equal(t, "address", pod.Status.PodIP, os.Getenv("KUBE_ADDRESS"))
	equal(t, "log", succeeds(t, "logs", p.name), "here\n")
	equal(t, "exec", succeeds(t, "exec", p.name, "--", "echo", "fine"), "fine\n")
}

// New limits come into force in a container that goes on.
func TestJoinedResize(t *testing.T) {
	t.Parallel()
	c := sh("it", idle)
	c.Resources = v1.ResourceRequirements{Limits: amounts("200m", "64Mi"), Requests: amounts("100m", "32Mi")}
	p := create(t, ofPod("resize", v1.RestartPolicyAlways, []v1.Container{c}))
	before := p.untilReady()
	id := bare(status(before, "it").ContainerID)
	equal(t, "memory before", cgroupFile(t, id, "memory.limit_in_bytes", "memory.max"), "67108864")
	for _, each := range []struct{ cpu, memory, quota, bytes string }{
		{"400m", "96Mi", "40000", "100663296"},
		{"300m", "80Mi", "30000", "83886080"},
	} {
		wanted := v1.ResourceRequirements{Limits: amounts(each.cpu, each.memory), Requests: amounts("150m", "48Mi")}
		patch := must[[]byte](t, "patch")(json.Marshal(map[string]any{"spec": map[string]any{
			"containers": []any{map[string]any{"name": "it", "resources": wanted}}}}))
		succeeds(t, "patch", "pod", p.name, "--subresource", "resize", "--patch", string(patch))
		p.until("resized", func(pod *v1.Pod) bool {
			now := status(pod, "it").Resources
			return now != nil && now.Limits.Memory().Equal(wanted.Limits[v1.ResourceMemory]) &&
				now.Limits.Cpu().Equal(wanted.Limits[v1.ResourceCPU])
		})
		equal(t, "memory", cgroupFile(t, id, "memory.limit_in_bytes", "memory.max"), each.bytes)
		quota := cgroupFile(t, id, "cpu.cfs_quota_us", "cpu.max")
		if quota != each.quota && quota != each.quota+" 100000" {
			t.Errorf("quota %q", quota)
		}
	}
	after := p.untilReady()
	equal(t, "id", bare(status(after, "it").ContainerID), id)
	equal(t, "restarts", status(after, "it").RestartCount, 0)
}

package kubernetes

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// patience is how long a test waits for something that must come.
const patience = 3 * time.Minute

var (
	// folder has all that the node owns.
	folder   = os.Getenv("KUBE_DIR")
	registry = os.Getenv("KUBE_REGISTRY")
	// server is the kubelet's own.
	server = "https://" + os.Getenv("KUBE_ADDRESS") + ":10250"

	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
	// api is nil while the kubelet is alone.
	api kubernetes.Interface

	toServer = &rest.Config{Host: server, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	client   = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
)

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	if err := connect(); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		os.Exit(2)
	}
	// Only what this round is for.
	flag.Parse()
	other := "^TestJoined"
	if api != nil {
		other = "^TestAlone"
	}
	skip := flag.Lookup("test.skip").Value
	if also := skip.String(); also != "" {
		other += "|" + also
	}
	if err := skip.Set(other); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

func connect() error {
	if folder == "" {
		return fmt.Errorf("run it by tests/setup/kubernetes")
	}
	ctx := context.Background()
	endpoint := "unix://" + filepath.Join(folder, "criod.sock")
	var err error
	if runtime, err = criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(patience).Build(ctx); err != nil {
		return err
	}
	if images, err = criclient.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(patience).Build(ctx); err != nil {
		return err
	}
	config := os.Getenv("KUBECONFIG")
	if _, err := os.Stat(config); err != nil {
		return nil
	}
	settings, err := clientcmd.BuildConfigFromFlags("", config)
	if err != nil {
		return err
	}
	settings.QPS, settings.Burst = 200, 200
	api, err = kubernetes.NewForConfig(settings)
	return err
}

func must[T any](t *testing.T, what string) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		ok(t, err, what)
		return v
	}
}

func ok(t *testing.T, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// eventually polls until the condition holds; what it says of the last time goes into the failure.
func eventually(t *testing.T, what string, condition func() (bool, string)) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		holds, last := condition()
		if holds {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s; at last: %s", what, last)
		}
	}
}

// script runs one of those that the driver wrote: to end and start criod or the kubelet.
func script(t *testing.T, variable string, arguments ...string) {
	t.Helper()
	if out, err := exec.Command(os.Getenv(variable), arguments...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", os.Getenv(variable), arguments, err, out)
	}
}

// ---- specs

// idle is a script that waits, and ends at once on SIGTERM.
const idle = "trap 'exit 0' TERM; sleep 1000000 & wait"

// in the background of idle: a script with a server, for example.
func background(command string) string { return command + " & " + idle }

func image(name string) string { return registry + "/test/" + name }

// sh is a container of busybox with a shell script.
func sh(name, script string) v1.Container {
	return v1.Container{
		Name: name, Image: image("busybox:1"), Command: []string{"sh", "-c", script},
		TerminationMessagePolicy: v1.TerminationMessageReadFile, TerminationMessagePath: "/dev/termination-log",
		ImagePullPolicy: v1.PullIfNotPresent,
	}
}

// ofPod is a pod with these containers, changed by the options.
func ofPod(name string, policy v1.RestartPolicy, containers []v1.Container, options ...func(*v1.PodSpec)) *v1.Pod {
	grace, no := int64(30), false
	pod := &v1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"test": name}},
		Spec: v1.PodSpec{
			RestartPolicy: policy, Containers: containers, TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			Tolerations: []v1.Toleration{{Operator: v1.TolerationOpExists}},
		},
	}
	for _, option := range options {
		option(&pod.Spec)
	}
	return pod
}

// volume adds a volume, mounted by each container at the same path.
func volume(name, path string, source v1.VolumeSource) func(*v1.PodSpec) {
	return func(spec *v1.PodSpec) {
		spec.Volumes = append(spec.Volumes, v1.Volume{Name: name, VolumeSource: source})
		for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
			for n := range list {
				list[n].VolumeMounts = append(list[n].VolumeMounts, v1.VolumeMount{Name: name, MountPath: path})
			}
		}
	}
}

func emptyDir(name, path string) func(*v1.PodSpec) {
	return volume(name, path, v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})
}

func hostPath(name, path, onHost string) func(*v1.PodSpec) {
	return volume(name, path, v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: onHost}})
}

func initially(containers ...v1.Container) func(*v1.PodSpec) {
	return func(spec *v1.PodSpec) { spec.InitContainers = append(spec.InitContainers, containers...) }
}

func probe(handler v1.ProbeHandler) *v1.Probe {
	return &v1.Probe{ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 30, FailureThreshold: 30}
}

func execProbe(script string) v1.ProbeHandler {
	return v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", script}}}
}

// ---- pods

// pod is one that the kubelet runs.
type pod struct {
	t    *testing.T
	name string
	// end removes it, and waits until nothing of it is left.
	end func()
}

// static hands the kubelet a file with a pod, which is removed at the latest when the test ends.
func static(t *testing.T, spec *v1.Pod) *pod {
	t.Helper()
	data := must[[]byte](t, "manifest")(json.Marshal(spec))
	written := filepath.Join(folder, spec.Name+".json")
	place := filepath.Join(folder, "manifests", spec.Name+".json")
	ok(t, os.WriteFile(written, data, 0o600), "manifest")
	ok(t, os.Rename(written, place), "manifest")
	p := &pod{t: t, name: spec.Name + "-node1"}
	p.end = sync.OnceFunc(func() {
		ok(t, os.Remove(place), "manifest")
		p.gone()
	})
	t.Cleanup(p.end)
	return p
}

// create asks the API server for a pod on the node, which is removed at the latest when the test ends.
func create(t *testing.T, spec *v1.Pod) *pod {
	t.Helper()
	spec.Spec.NodeName = "node1"
	must[*v1.Pod](t, "create")(api.CoreV1().Pods("default").Create(context.Background(), spec, metav1.CreateOptions{}))
	p := &pod{t: t, name: spec.Name}
	p.end = sync.OnceFunc(func() {
		ok(t, api.CoreV1().Pods("default").Delete(context.Background(), p.name, metav1.DeleteOptions{}), "delete")
		p.gone()
	})
	t.Cleanup(p.end)
	return p
}

// gone waits until the kubelet has forgotten the pod. What is left of it then goes with the kubelet's
// next collection of garbage, for which the driver waits.
func (p *pod) gone() {
	eventually(p.t, "the end of pod "+p.name, func() (bool, string) {
		if found, err := p.find(); found != nil || err != nil {
			return false, fmt.Sprint("still there: ", err)
		}
		running, err := runtime.ListContainers(context.Background(), &cri.ContainerFilter{
			LabelSelector: p.labels(), State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}})
		return len(running) == 0 && err == nil, fmt.Sprint("running: ", running, err)
	})
}

func (p *pod) labels() map[string]string {
	return map[string]string{"io.kubernetes.pod.name": p.name}
}

// serverPods are those that the kubelet's own server lists, asked not more often than needed.
var serverPods struct {
	sync.Mutex
	at   time.Time
	list v1.PodList
}

func listOfServer() (v1.PodList, error) {
	serverPods.Lock()
	defer serverPods.Unlock()
	if time.Since(serverPods.at) < 80*time.Millisecond {
		return serverPods.list, nil
	}
	data, err := fetch("/pods")
	if err != nil {
		return v1.PodList{}, err
	}
	var list v1.PodList
	if err := json.Unmarshal([]byte(data), &list); err != nil {
		return list, err
	}
	serverPods.at, serverPods.list = time.Now(), list
	return list, nil
}

// fetch asks the kubelet's server.
func fetch(path string) (string, error) {
	answer, err := client.Get(server + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, answer.Status, data)
	}
	return string(data), err
}

// find gives the pod as it is known now, or nil.
func (p *pod) find() (*v1.Pod, error) {
	var list v1.PodList
	if api == nil {
		var err error
		if list, err = listOfServer(); err != nil {
			return nil, err
		}
	} else {
		options := metav1.ListOptions{FieldSelector: "metadata.name=" + p.name}
		answer, err := api.CoreV1().Pods("default").List(context.Background(), options)
		if err != nil {
			return nil, err
		}
		list = *answer
	}
	for _, each := range list.Items {
		if each.Name == p.name {
			return &each, nil
		}
	}
	return nil, nil
}

// until waits for a state of the pod, and gives it.
func (p *pod) until(what string, condition func(*v1.Pod) bool) *v1.Pod {
	p.t.Helper()
	var last *v1.Pod
	eventually(p.t, p.name+": "+what, func() (bool, string) {
		found, err := p.find()
		if found == nil || err != nil {
			return false, fmt.Sprint("not there: ", err)
		}
		last = found
		if condition(found) {
			return true, ""
		}
		data, _ := json.Marshal(found.Status)
		return false, string(data)
	})
	return last
}

func (p *pod) untilReady() *v1.Pod {
	p.t.Helper()
	return p.until("ready", func(pod *v1.Pod) bool { return readiness(pod).Status == v1.ConditionTrue })
}

func (p *pod) untilPhase(phase v1.PodPhase) *v1.Pod {
	p.t.Helper()
	return p.until(string(phase), func(pod *v1.Pod) bool { return pod.Status.Phase == phase })
}

func readiness(pod *v1.Pod) v1.PodCondition {
	for _, each := range pod.Status.Conditions {
		if each.Type == v1.PodReady {
			return each
		}
	}
	return v1.PodCondition{}
}

// statuses are those of all containers, of whatever kind.
func statuses(pod *v1.Pod) []v1.ContainerStatus {
	var all []v1.ContainerStatus
	all = append(all, pod.Status.InitContainerStatuses...)
	all = append(all, pod.Status.ContainerStatuses...)
	return append(all, pod.Status.EphemeralContainerStatuses...)
}

// status is that of a container; an empty one where there is none yet.
func status(pod *v1.Pod, name string) v1.ContainerStatus {
	for _, each := range statuses(pod) {
		if each.Name == name {
			return each
		}
	}
	return v1.ContainerStatus{}
}

// ended gives the container's end; the zero value where it has none.
func ended(pod *v1.Pod, name string) v1.ContainerStateTerminated {
	if end := status(pod, name).State.Terminated; end != nil {
		return *end
	}
	return v1.ContainerStateTerminated{}
}

func bare(id string) string {
	_, after, _ := strings.Cut(id, "://")
	return after
}

// exec runs a shell script in a container, and asks for status 0.
func (p *pod) exec(name, script string) string {
	p.t.Helper()
	id := bare(status(must[*v1.Pod](p.t, "pod")(p.find()), name).ContainerID)
	stdout, stderr, err := runtime.ExecSync(context.Background(), id, []string{"sh", "-c", script}, patience)
	if err != nil {
		p.t.Fatalf("%s: exec %q: %v (stderr %q)", p.name, script, err, stderr)
	}
	return string(stdout)
}

// log is what a container wrote so far, as the kubelet's server gives it.
func (p *pod) log(name string) string {
	p.t.Helper()
	return must[string](p.t, "log")(fetch("/containerLogs/default/" + p.name + "/" + name))
}

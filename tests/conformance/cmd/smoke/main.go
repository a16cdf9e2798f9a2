// Command smoke runs one pod with one container from pull to removal, through the kubelet's own
// client library, and prints what it saw as JSON. It ends with status 1 if a step failed.
//
//	smoke -endpoint /run/crio/crio.sock -image 127.0.0.1:5000/test/busybox:1 [-handler NAME]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/klog/v2"
)

// Result is what is printed. Times are in milliseconds.
type Result struct {
	Runtime  string           `json:"runtime"`
	Pod      string           `json:"pod"`
	IP       string           `json:"ip"`
	Image    string           `json:"image"`
	Exec     string           `json:"exec"`
	Log      string           `json:"log"`
	ExitCode int32            `json:"exit_code"`
	Millis   map[string]int64 `json:"milliseconds"`
	Error    string           `json:"error,omitempty"`
}

func main() {
	endpoint := flag.String("endpoint", "/run/crio/crio.sock", "the runtime's socket")
	image := flag.String("image", "", "an image with a shell")
	handler := flag.String("handler", "", "the runtime handler")
	parent := flag.String("cgroup-parent", "", "the pod's cgroup parent")
	flag.Parse()
	klog.SetLogger(logr.Discard())
	result := Result{Millis: map[string]int64{}}
	if err := run(&result, *endpoint, *image, *handler, *parent); err != nil {
		result.Error = err.Error()
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	out.Encode(result)
	if result.Error != "" {
		os.Exit(1)
	}
}

func run(result *Result, endpoint, image, handler, parent string) (failed error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	endpoint = "unix://" + strings.TrimPrefix(endpoint, "unix://")
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(2 * time.Minute).Build(ctx)
	if err != nil {
		return err
	}
	images, err := criclient.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(2 * time.Minute).Build(ctx)
	if err != nil {
		return err
	}
	step := func(name string, do func() error) bool {
		begin := time.Now()
		err := do()
		result.Millis[name] = time.Since(begin).Milliseconds()
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", name, err)
		}
		return err == nil
	}
	dir, err := os.MkdirTemp("", "smoke-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	step("version", func() error {
		v, err := runtime.Version(ctx, "v1")
		result.Runtime = v.GetRuntimeName() + " " + v.GetRuntimeVersion()
		return err
	})
	if !step("pull", func() (err error) {
		result.Image, err = images.PullImage(ctx, &cri.ImageSpec{Image: image}, nil, nil)
		return err
	}) {
		return failed
	}
	name := fmt.Sprintf("smoke-%d", time.Now().UnixNano())
	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "smoke"},
		Hostname:     "smoke",
		LogDirectory: dir,
		DnsConfig:    &cri.DNSConfig{},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    parent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
	if !step("run pod", func() (err error) {
		result.Pod, err = runtime.RunPodSandbox(ctx, pod, handler)
		return err
	}) {
		return failed
	}
	defer step("remove pod", func() error { return runtime.RemovePodSandbox(ctx, result.Pod) })
	defer step("stop pod", func() error { return runtime.StopPodSandbox(ctx, result.Pod) })
	step("pod status", func() error {
		s, err := runtime.PodSandboxStatus(ctx, result.Pod, false)
		result.IP = s.GetStatus().GetNetwork().GetIp()
		return err
	})
	return container(ctx, result, runtime, pod, image, step, &failed)
}

func container(ctx context.Context, result *Result, runtime internalapi.RuntimeService, pod *cri.PodSandboxConfig, image string, step func(string, func() error) bool, failed *error) error {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "smoke"},
		Image:    &cri.ImageSpec{Image: image},
		Command:  []string{"sh", "-c", "trap 'echo stopped; exit 3' TERM; echo started; while :; do sleep 0.05; done"},
		LogPath:  "0.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: pod.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	log := filepath.Join(pod.LogDirectory, config.LogPath)
	var id string
	if !step("create", func() (err error) {
		id, err = runtime.CreateContainer(ctx, result.Pod, config, pod)
		return err
	}) || !step("start", func() error { return runtime.StartContainer(ctx, id) }) {
		return *failed
	}
	step("first line", func() error {
		for {
			if data, _ := os.ReadFile(log); bytes.Contains(data, []byte("started\n")) {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	})
	step("exec", func() error {
		out, _, err := runtime.ExecSync(ctx, id, []string{"hostname"}, time.Minute)
		result.Exec = string(out)
		return err
	})
	step("stop", func() error { return runtime.StopContainer(ctx, id, 30) })
	step("status", func() error {
		s, err := runtime.ContainerStatus(ctx, id, false)
		result.ExitCode = s.GetStatus().GetExitCode()
		if err == nil && s.Status.State != cri.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("state %v", s.Status.State)
		}
		return err
	})
	step("log", func() error {
		var out bytes.Buffer
		err := logs.ReadLogs(ctx, log, id, &logs.LogOptions{}, runtime, &out, &out)
		result.Log = out.String()
		return err
	})
	step("remove", func() error { return runtime.RemoveContainer(ctx, id) })
	return *failed
}

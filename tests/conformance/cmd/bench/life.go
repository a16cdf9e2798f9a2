package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is measured, by the names of the table.
const (
	runPod    = "RunPodSandbox"
	startOne  = "CreateContainer + StartContainer"
	create    = "  CreateContainer"
	start     = "  StartContainer"
	fromZero  = "pod + container: nothing to started"
	exec      = "ExecSync of true"
	stop      = "StopContainer until EXITED"
	stopPod   = "StopPodSandbox"
	removeOne = "RemoveContainer"
	removePod = "RemovePodSandbox"
	takeDown  = "pod + container: started to removed"
	withMore  = "pod + container, with others there"
	listAll   = "ListContainers"
	listPods  = "ListPodSandbox"
	podStatus = "PodSandboxStatus"
	statusOne = "ContainerStatus"
)

// idle ends at once when it is asked to, and uses no time meanwhile.
const idle = "trap 'exit 0' TERM; sleep 1000000 & wait"

// measure takes the time of what succeeds.
func (t *target) measure(what string, do func() error) error {
	begin := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %s: %w", t.name, what, err)
	}
	t.samples[what] = append(t.samples[what], time.Since(begin))
	return nil
}

// podConfig is a pod as the kubelet asks for it.
func (t *target) podConfig(o options) (*cri.PodSandboxConfig, error) {
	t.made++
	name := fmt.Sprintf("%s-%d-%d", t.name, os.Getpid(), t.made)
	logs := filepath.Join(o.logs, name)
	if err := os.MkdirAll(filepath.Join(logs, "main"), 0o755); err != nil {
		return nil, err
	}
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: namespace},
		Hostname:     name,
		LogDirectory: logs,
		DnsConfig: &cri.DNSConfig{
			Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"},
		},
		Labels: map[string]string{
			"app": namespace, "io.kubernetes.pod.name": name,
			"io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": "uid-" + name,
		},
		Annotations: map[string]string{"kubernetes.io/config.source": "api"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: filepath.Join(o.parent, t.name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: namespaces(),
				Seccomp:          o.seccomp(),
			},
			Overhead:  &cri.LinuxContainerResources{},
			Resources: &cri.LinuxContainerResources{},
		},
	}, nil
}

func (o options) seccomp() *cri.SecurityProfile {
	if o.unconfined {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	}
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
}

func namespaces() *cri.NamespaceOption {
	return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
}

func containerConfig(o options, pod *cri.PodSandboxConfig) *cri.ContainerConfig {
	labels := map[string]string{"io.kubernetes.container.name": "main"}
	for key, value := range pod.Labels {
		labels[key] = value
	}
	return &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: "main"},
		Image:       &cri.ImageSpec{Image: o.image, UserSpecifiedImage: o.image},
		Command:     []string{"sh", "-c", idle},
		Labels:      labels,
		Annotations: map[string]string{"io.kubernetes.container.hash": "c0ffee"},
		LogPath:     "main/0.log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 128 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: namespaces(),
				Seccomp:          o.seccomp(),
			},
		},
	}
}

// up runs a pod with one container.
func (t *target) up(ctx context.Context, o options) (pod, container string, err error) {
	config, err := t.podConfig(o)
	if err != nil {
		return "", "", err
	}
	if err = t.measure(runPod, func() (err error) {
		pod, err = t.runtime.RunPodSandbox(ctx, config, "")
		return err
	}); err != nil {
		return "", "", err
	}
	err = t.measure(startOne, func() error {
		if err := t.measure(create, func() (err error) {
			container, err = t.runtime.CreateContainer(ctx, pod, containerConfig(o, config), config)
			return err
		}); err != nil {
			return err
		}
		return t.measure(start, func() error { return t.runtime.StartContainer(ctx, container) })
	})
	return pod, container, err
}

// life takes one pod with one container from nothing to nothing.
func (t *target) life(ctx context.Context, o options) error {
	var pod, container string
	if err := t.measure(fromZero, func() (err error) {
		pod, container, err = t.up(ctx, o)
		return err
	}); err != nil {
		return err
	}
	for range o.execs {
		if err := t.measure(exec, func() error {
			_, stderr, err := t.runtime.ExecSync(ctx, container, []string{"true"}, patience)
			if err != nil && len(stderr) > 0 {
				err = fmt.Errorf("%w: %s", err, stderr)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return t.measure(takeDown, func() error {
		if err := t.measure(stop, func() error {
			if err := t.runtime.StopContainer(ctx, container, 30); err != nil {
				return err
			}
			return t.exited(ctx, container)
		}); err != nil {
			return err
		}
		for _, step := range []struct {
			what string
			do   func(context.Context, string) error
			id   string
		}{
			{stopPod, t.runtime.StopPodSandbox, pod},
			{removeOne, t.runtime.RemoveContainer, container},
			{removePod, t.runtime.RemovePodSandbox, pod},
		} {
			if err := t.measure(step.what, func() error { return step.do(ctx, step.id) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// exited waits until the container's status says that it has ended, with code 0.
func (t *target) exited(ctx context.Context, container string) error {
	for {
		answer, err := t.runtime.ContainerStatus(ctx, container, false)
		if err != nil {
			return err
		}
		status := answer.GetStatus()
		if status.GetState() == cri.ContainerState_CONTAINER_EXITED {
			if status.GetExitCode() != 0 {
				return fmt.Errorf("exit code %d", status.GetExitCode())
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

type made struct{ pod, container string }

// populate runs pods on all runtimes, and gives the last of each.
func populate(ctx context.Context, o options, targets []*target) (map[*target]made, error) {
	last := map[*target]made{}
	for n := range o.pods {
		progress("pod %d of %d", n+1, o.pods)
		for _, t := range order(targets, n) {
			// These are not to be mixed with those of a runtime that is empty.
			kept := t.samples
			t.samples = map[string][]time.Duration{}
			begin := time.Now()
			pod, container, err := t.up(ctx, o)
			took := time.Since(begin)
			t.samples = kept
			if err != nil {
				return nil, err
			}
			if n >= o.pods/2 {
				t.samples[withMore] = append(t.samples[withMore], took)
			}
			last[t] = made{pod, container}
		}
	}
	return last, nil
}

// many runs pods on all runtimes, and measures lists while they are there.
func many(ctx context.Context, o options, targets []*target) error {
	for _, t := range targets {
		t.memory.idle = t.daemonMemory()
	}
	last, err := populate(ctx, o, targets)
	if err != nil {
		return err
	}
	progress("lists")
	for n := range o.lists {
		for _, t := range order(targets, n) {
			for _, step := range []struct {
				what string
				do   func() error
			}{
				{listAll, func() error { _, err := t.runtime.ListContainers(ctx, nil); return err }},
				{listPods, func() error { _, err := t.runtime.ListPodSandbox(ctx, nil); return err }},
				{podStatus, func() error { _, err := t.runtime.PodSandboxStatus(ctx, last[t].pod, false); return err }},
				{statusOne, func() error { _, err := t.runtime.ContainerStatus(ctx, last[t].container, false); return err }},
			} {
				if err := t.measure(step.what, step.do); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// clean removes every pod of this command, of whichever run.
func (t *target) clean() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pods, err := t.runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s: ListPodSandbox: %w", t.name, err)
	}
	for n, pod := range pods {
		if pod.GetMetadata().GetNamespace() != namespace {
			continue
		}
		progress("%s: removing pod %d of %d", t.name, n+1, len(pods))
		// The answer that counts is the removal's.
		_ = t.runtime.StopPodSandbox(ctx, pod.Id)
		if err := t.runtime.RemovePodSandbox(ctx, pod.Id); err != nil {
			return fmt.Errorf("%s: RemovePodSandbox: %w", t.name, err)
		}
	}
	progress("")
	return nil
}

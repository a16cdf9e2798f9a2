package conformance

import (
	"context"
	"maps"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// request is an offence that needs nothing but a call.
func request[A any](method func(context.Context) (A, error)) offence {
	return func(o *offender) error {
		_, err := method(o.ctx)
		return err
	}
}

// of is an offence in a request about the container that runs.
func of[A any](method func(ctx context.Context, container string) (A, error)) offence {
	return func(o *offender) error {
		_, err := method(o.ctx, o.running.id)
		return err
	}
}

// byID are the calls about a pod or container, with the id that they are given.
func byID() map[string]func(ctx context.Context, id string) error {
	r := rawRuntime
	return map[string]func(ctx context.Context, id string) error{
		"StopPodSandboxRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			_, err := r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandboxRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			_, err := r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"PodSandboxStatusRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			_, err := r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"PodSandboxStatsRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			_, err := r.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
			return err
		},
		"CreateContainerRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			config := &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "x"}}
			_, err := r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: config})
			return err
		},
		"StartContainerRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		},
		"StopContainerRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainerRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"ContainerStatusRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"UpdateContainerResourcesRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id})
			return err
		},
		"UpdatePodSandboxResourcesRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			_, err := r.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id})
			return err
		},
		"ReopenContainerLogRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"ExecSyncRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"ExecRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			return err
		},
		"AttachRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdout: true})
			return err
		},
		"PortForwardRequest.pod_sandbox_id": func(ctx context.Context, id string) error {
			_, err := r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: id})
			return err
		},
		"ContainerStatsRequest.container_id": func(ctx context.Context, id string) error {
			_, err := r.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
			return err
		},
	}
}

// offencesByRequest are those of fields outside the two configurations.
func offencesByRequest() map[[2]string]offence {
	r := rawRuntime
	all := map[[2]string]offence{}
	for field, call := range byID() {
		all[[2]string{field, "is empty"}] = func(o *offender) error { return call(o.ctx, "") }
		all[[2]string{field, "not found"}] = func(o *offender) error { return call(o.ctx, noID) }
	}
	exec := func(q *cri.ExecRequest) offence {
		return of(func(ctx context.Context, id string) (*cri.ExecResponse, error) {
			q.ContainerId = id
			return r.Exec(ctx, q)
		})
	}
	attach := func(q *cri.AttachRequest) offence {
		return of(func(ctx context.Context, id string) (*cri.AttachResponse, error) {
			q.ContainerId = id
			return r.Attach(ctx, q)
		})
	}
	sync := func(q *cri.ExecSyncRequest) offence {
		return of(func(ctx context.Context, id string) (*cri.ExecSyncResponse, error) {
			q.ContainerId = id
			return r.ExecSync(ctx, q)
		})
	}
	update := func(q *cri.UpdateContainerResourcesRequest) offence {
		return of(func(ctx context.Context, id string) (*cri.UpdateContainerResourcesResponse, error) {
			q.ContainerId = id
			return r.UpdateContainerResources(ctx, q)
		})
	}
	updatePod := func(q *cri.UpdatePodSandboxResourcesRequest) offence {
		return func(o *offender) error {
			q.PodSandboxId = o.pod.id
			_, err := r.UpdatePodSandboxResources(o.ctx, q)
			return err
		}
	}
	pull := func(q *cri.PullImageRequest) offence {
		return request(func(ctx context.Context) (*cri.PullImageResponse, error) { return rawImages.PullImage(ctx, q) })
	}
	status := func(q *cri.ImageStatusRequest) offence {
		return request(func(ctx context.Context) (*cri.ImageStatusResponse, error) { return rawImages.ImageStatus(ctx, q) })
	}
	remove := func(q *cri.RemoveImageRequest) offence {
		return request(func(ctx context.Context) (*cri.RemoveImageResponse, error) { return rawImages.RemoveImage(ctx, q) })
	}
	command := []string{"true"}
	windows := &cri.UpdateContainerResourcesRequest{Windows: &cri.WindowsContainerResources{CpuCount: 1}}
	maps.Copy(all, map[[2]string]offence{
		{"RunPodSandboxRequest.config", ""}: request(func(ctx context.Context) (*cri.RunPodSandboxResponse, error) {
			return r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{})
		}),
		{"RunPodSandboxRequest.runtime_handler", ""}: func(o *offender) error {
			q := &cri.RunPodSandboxRequest{Config: podConfig(o.t), RuntimeHandler: "no-such-handler"}
			_, err := r.RunPodSandbox(o.ctx, q)
			return err
		},
		{"CreateContainerRequest.config", ""}: func(o *offender) error {
			_, err := r.CreateContainer(o.ctx, &cri.CreateContainerRequest{PodSandboxId: o.pod.id})
			return err
		},
		{"UpdateContainerResourcesRequest.windows", ""}:   update(windows),
		{"UpdateContainerResourcesRequest.windows.*", ""}: update(windows),
		{"ExecSyncRequest.cmd", ""}:                       sync(&cri.ExecSyncRequest{}),
		{"ExecSyncRequest.timeout", ""}:                   sync(&cri.ExecSyncRequest{Cmd: command, Timeout: -1}),
		{"ExecRequest.cmd", ""}:                           exec(&cri.ExecRequest{Stdout: true}),
		{"ExecRequest.tty", ""}:                           exec(&cri.ExecRequest{Cmd: command, Tty: true, Stderr: true}),
		{"ExecRequest.stderr", ""}:                        exec(&cri.ExecRequest{Cmd: command, Tty: true, Stderr: true}),
		{"ExecRequest.stdin", ""}:                         exec(&cri.ExecRequest{Cmd: command}),
		{"ExecRequest.stdout", ""}:                        exec(&cri.ExecRequest{Cmd: command}),
		{"AttachRequest.tty", ""}:                         attach(&cri.AttachRequest{Tty: true, Stderr: true}),
		{"AttachRequest.stderr", ""}:                      attach(&cri.AttachRequest{Tty: true, Stderr: true}),
		{"AttachRequest.stdin", ""}:                       attach(&cri.AttachRequest{}),
		{"AttachRequest.stdout", ""}:                      attach(&cri.AttachRequest{}),
		{"PortForwardRequest.port", ""}: func(o *offender) error {
			_, err := r.PortForward(o.ctx, &cri.PortForwardRequest{PodSandboxId: o.pod.id, Port: []int32{70000}})
			return err
		},
		{"CheckpointContainerRequest.*", ""}: of(func(ctx context.Context, id string) (*cri.CheckpointContainerResponse, error) {
			return r.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: id})
		}),
		{"CheckpointPodRequest.*", ""}: request(func(ctx context.Context) (*cri.CheckpointPodResponse, error) {
			return r.CheckpointPod(ctx, &cri.CheckpointPodRequest{})
		}),
		{"RestorePodRequest.*", ""}: request(func(ctx context.Context) (*cri.RestorePodResponse, error) {
			return r.RestorePod(ctx, &cri.RestorePodRequest{})
		}),
		{"ImageStatusRequest.image", ""}:             status(&cri.ImageStatusRequest{}),
		{"ImageStatusRequest.image.image", ""}:       status(&cri.ImageStatusRequest{Image: &cri.ImageSpec{}}),
		{"RemoveImageRequest.image", ""}:             remove(&cri.RemoveImageRequest{}),
		{"RemoveImageRequest.image.image", ""}:       remove(&cri.RemoveImageRequest{Image: &cri.ImageSpec{}}),
		{"PullImageRequest.image", ""}:               pull(&cri.PullImageRequest{}),
		{"PullImageRequest.image.image", "is named"}: pull(&cri.PullImageRequest{Image: &cri.ImageSpec{}}),
		{"PullImageRequest.image.image", "bad name"}: pull(&cri.PullImageRequest{Image: &cri.ImageSpec{Image: "bad name:1"}}),
		{"PullImageRequest.auth.auth", ""}: pull(&cri.PullImageRequest{
			Image: &cri.ImageSpec{Image: ref("busybox:1")}, Auth: &cri.AuthConfig{Auth: "no base64!"},
		}),
	})
	type limits = *cri.LinuxContainerResources
	maps.Copy(all, ofResources("UpdateContainerResourcesRequest.linux", func(l limits) offence {
		return update(&cri.UpdateContainerResourcesRequest{Linux: l})
	}))
	maps.Copy(all, ofResources("UpdatePodSandboxResourcesRequest.overhead", func(l limits) offence {
		return updatePod(&cri.UpdatePodSandboxResourcesRequest{Overhead: l})
	}))
	maps.Copy(all, ofResources("UpdatePodSandboxResourcesRequest.resources", func(l limits) offence {
		return updatePod(&cri.UpdatePodSandboxResourcesRequest{Resources: l})
	}))
	return all
}

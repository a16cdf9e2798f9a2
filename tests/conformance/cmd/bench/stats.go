package main

import (
	"context"
	"fmt"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	listStats    = "ListContainerStats"
	listPodStats = "ListPodSandboxStats"
	listMetrics  = "ListPodSandboxMetrics"
	statsOne     = "ContainerStats"
)

// statistics measures what the kubelet asks for all the time, with many pods there.
func statistics(ctx context.Context, o options, targets []*target) error {
	last, err := populate(ctx, o, targets)
	if err != nil {
		return err
	}
	for _, t := range targets {
		t.cpu = -t.cpuTime()
	}
	for n := range o.lists {
		progress("statistics %d of %d", n+1, o.lists)
		for _, t := range order(targets, n) {
			for _, step := range []struct {
				what string
				do   func() (int, error)
				want int
			}{
				{listStats, func() (int, error) {
					s, err := t.runtime.ListContainerStats(ctx, &cri.ContainerStatsFilter{})
					return len(s), err
				}, o.pods},
				{listPodStats, func() (int, error) {
					s, err := t.runtime.ListPodSandboxStats(ctx, &cri.PodSandboxStatsFilter{})
					return len(s), err
				}, o.pods},
				{listMetrics, func() (int, error) {
					s, err := t.runtime.ListPodSandboxMetrics(ctx)
					return len(s), err
				}, o.pods},
				{statsOne, func() (int, error) {
					_, err := t.runtime.ContainerStats(ctx, last[t].container)
					return 1, err
				}, 1},
			} {
				err := t.measure(step.what, func() error {
					got, err := step.do()
					if err == nil && got < step.want {
						err = fmt.Errorf("%d answers, want %d", got, step.want)
					}
					return err
				})
				// Not every peer has all of them.
				if status.Code(err) == codes.Unimplemented {
					continue
				}
				if err != nil {
					return err
				}
			}
		}
	}
	for _, t := range targets {
		t.cpu += t.cpuTime()
	}
	progress("")
	table(os.Stdout, targets, []string{listStats, listPodStats, listMetrics, statsOne}, o.lists)
	return nil
}

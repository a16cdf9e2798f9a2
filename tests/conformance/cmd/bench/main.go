// Command bench measures container runtimes beside each other, through the kubelet's own client
// library, and prints a table.
//
//	bench -runtime criod=/run/crio/crio.sock:PID,… -helper criod=criod-monitor:/run/crio \
//	      -runtime containerd=/…/containerd.sock:PID -helper containerd=containerd-shim-runc-v2 \
//	      -image 127.0.0.1:5000/test/busybox:1 [-rounds 20] [-pods 20]
//
//	bench -runtime … -streams -podserver PROGRAM [-stream-program criod-stream:TEXT]
//	                                  measures exec and port-forward instead, with client-go
//
//	bench -runtime … -stats          measures statistics and metrics of the pods instead
//
//	bench -runtime criod=… -clean     only removes the pods that an earlier run left behind
//
// The PIDs are those of the daemon's processes. A helper is the program of which there is one for
// each container or pod, with a text that its command line has with this daemon and no other.
//
// In each round every runtime takes one pod through its whole life, one runtime after the other,
// and the next round begins with the other one: what else the machine does meanwhile falls on both.
// The requests are the same for all, and like the kubelet's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// namespace is the Kubernetes namespace of all that a run makes.
const namespace = "side-by-side"

// patience is how long one request may take.
const patience = 2 * time.Minute

type options struct {
	image  string
	parent string
	rounds int
	execs  int
	pods   int
	lists  int
	logs   string
	clean  bool
	// Without the runtimes' own seccomp profiles, which differ.
	unconfined bool
	// Statistics instead of lives.
	stats bool
	// For exec and port-forward.
	streams       bool
	podServer     string
	streamProgram string
	megabytes     int
}

// target is a runtime that is measured.
type target struct {
	name    string
	socket  string
	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
	daemon  []int
	helper  string
	mark    string
	samples map[string][]time.Duration
	memory  memory
	// Files that count its processor time; without any, its processes do.
	cpuFiles []string
	cpu      time.Duration
	made     int
}

func main() {
	var o options
	var targets, besides []*target
	helpers, cpu := map[string]string{}, map[string]string{}
	flag.Func("runtime", "NAME=SOCKET[:PID,…], once for each runtime", func(s string) error {
		t, err := parseTarget(s)
		targets = append(targets, t)
		return err
	})
	assign := func(to map[string]string) func(string) error {
		return func(s string) error {
			name, value, ok := strings.Cut(s, "=")
			if !ok {
				return errors.New("want NAME=VALUE")
			}
			to[name] = value
			return nil
		}
	}
	flag.Func("helper", "NAME=PROGRAM[:TEXT], the program that watches containers", assign(helpers))
	flag.Func("cpu", "NAME=FILE,…, cgroups' files that count its processor time (else: the PIDs)", assign(cpu))
	flag.Func("beside", "NAME=PROGRAM:TEXT, other programs that watch containers, for their memory", func(s string) error {
		name, program, _ := strings.Cut(s, "=")
		t := &target{name: name}
		t.helper, t.mark, _ = strings.Cut(program, ":")
		besides = append(besides, t)
		return nil
	})
	flag.StringVar(&o.image, "image", "", "an image with a shell")
	flag.StringVar(&o.parent, "cgroup-parent", "", "the pods' cgroup parent")
	flag.IntVar(&o.rounds, "rounds", 20, "pods that each runtime takes through life")
	flag.IntVar(&o.execs, "execs", 3, "commands in each of them")
	flag.IntVar(&o.pods, "pods", 20, "pods that are there while lists and memory are measured")
	flag.IntVar(&o.lists, "lists", 50, "lists that are asked for then")
	flag.BoolVar(&o.unconfined, "unconfined", false, "no seccomp profile (the default: each runtime's own)")
	flag.BoolVar(&o.clean, "clean", false, "only remove the pods that an earlier run left behind")
	flag.BoolVar(&o.stats, "stats", false, "measure statistics and metrics")
	flag.BoolVar(&o.streams, "streams", false, "measure exec and port-forward")
	flag.StringVar(&o.podServer, "podserver", "", "the program that is served from in the pod")
	flag.StringVar(&o.streamProgram, "stream-program", "", "PROGRAM:TEXT, what serves streams of the first runtime, for its memory")
	flag.IntVar(&o.megabytes, "megabytes", 1024, "how much is transferred at once")
	flag.Parse()
	klog.SetLogger(logr.Discard())

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	for _, t := range targets {
		t.cpuFiles = strings.FieldsFunc(cpu[t.name], func(r rune) bool { return r == ',' })
	}
	if err := run(ctx, o, targets, besides, helpers); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseTarget(s string) (*target, error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok {
		return nil, errors.New("want NAME=SOCKET")
	}
	socket, pids, _ := strings.Cut(strings.TrimPrefix(rest, "unix://"), ":")
	t := &target{name: name, socket: socket, samples: map[string][]time.Duration{}}
	for _, pid := range strings.FieldsFunc(pids, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return nil, err
		}
		t.daemon = append(t.daemon, n)
	}
	return t, nil
}

func (t *target) connect(ctx context.Context, helper string) error {
	var found bool
	if t.helper, t.mark, found = strings.Cut(helper, ":"); !found {
		t.mark = t.socket
	}
	var err error
	t.runtime, err = criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint("unix://" + t.socket).WithConnectionTimeout(patience).Build(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	t.images, err = criclient.NewRemoteImageServiceBuilder().
		WithEndpoint("unix://" + t.socket).WithConnectionTimeout(patience).Build(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	return nil
}

func run(ctx context.Context, o options, targets, besides []*target, helpers map[string]string) (failed error) {
	if len(targets) == 0 {
		return errors.New("no -runtime")
	}
	for _, t := range targets {
		if err := t.connect(ctx, helpers[t.name]); err != nil {
			return err
		}
	}
	// Whatever happens, and after an interrupt too: nothing is left behind.
	defer func() {
		for _, t := range targets {
			if err := t.clean(); err != nil && failed == nil {
				failed = err
			}
		}
	}()
	if o.clean {
		return nil
	}
	var err error
	if o.logs, err = os.MkdirTemp("", "criod-side-by-side-logs-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.logs)
	for _, t := range targets {
		if _, err := t.images.PullImage(ctx, &cri.ImageSpec{Image: o.image}, nil, nil); err != nil {
			return fmt.Errorf("%s: PullImage: %w", t.name, err)
		}
		if o.streams {
			continue
		}
		// The first pod finds caches cold and no bridge: it does not count.
		if err := t.life(ctx, o); err != nil {
			return err
		}
		clear(t.samples)
	}
	if o.streams {
		return streams(ctx, o, targets)
	}
	if o.stats {
		return statistics(ctx, o, targets)
	}
	for _, t := range targets {
		t.cpu = -t.cpuTime()
	}
	for round := range o.rounds {
		progress("round %d of %d", round+1, o.rounds)
		for _, t := range order(targets, round) {
			if err := t.life(ctx, o); err != nil {
				return err
			}
		}
	}
	for _, t := range targets {
		t.cpu += t.cpuTime()
	}
	if err := many(ctx, o, targets); err != nil {
		return err
	}
	for _, t := range append(append([]*target{}, targets...), besides...) {
		if err := t.takeMemory(o.pods); err != nil {
			return err
		}
	}
	progress("")
	show(os.Stdout, o, targets, besides)
	return nil
}

// order lets each runtime come first as often as any other.
func order(targets []*target, round int) []*target {
	at := round % len(targets)
	return append(append([]*target{}, targets[at:]...), targets[:at]...)
}

// progress overwrites one line of a terminal.
func progress(format string, args ...any) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, args...)
	}
}

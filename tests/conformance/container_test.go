package conformance

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainerLifeIsShownInItsStatus(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	c := p.create(image(t, "busybox:1"), []string{"sh", "-c", idle}, func(c *cri.ContainerConfig) {
		c.Labels["odd/label.name"] = "ünïcode = \"quoted\"\n"
		c.Annotations["empty"] = ""
	})
	created := c.status()
	check := func(s *cri.ContainerStatus, want cri.ContainerState) {
		t.Helper()
		if s.Id != c.id || s.State != want {
			t.Errorf("id %s, state %v, want %v", s.Id, s.State, want)
		}
		if s.Metadata.Name != c.cfg.Metadata.Name || s.Metadata.Attempt != c.cfg.Metadata.Attempt {
			t.Errorf("metadata %v", s.Metadata)
		}
		if !maps.Equal(s.Labels, c.cfg.Labels) || !maps.Equal(s.Annotations, c.cfg.Annotations) {
			t.Errorf("labels %q, annotations %q", s.Labels, s.Annotations)
		}
		if s.LogPath != c.logPath() {
			t.Errorf("log path %q, want %q", s.LogPath, c.logPath())
		}
		if s.CreatedAt != created.CreatedAt || s.CreatedAt == 0 {
			t.Errorf("created at %d", s.CreatedAt)
		}
		if s.Image.GetImage() == "" || s.ImageRef == "" {
			t.Errorf("image %v, ref %q", s.Image, s.ImageRef)
		}
	}
	check(created, cri.ContainerState_CONTAINER_CREATED)
	if created.StartedAt != 0 || created.FinishedAt != 0 {
		t.Errorf("started at %d, finished at %d", created.StartedAt, created.FinishedAt)
	}
	c.start()
	running := c.status()
	check(running, cri.ContainerState_CONTAINER_RUNNING)
	if running.StartedAt < created.CreatedAt || running.FinishedAt != 0 {
		t.Errorf("started at %d, finished at %d", running.StartedAt, running.FinishedAt)
	}
	c.trapped()
	ok(t, runtime.StopContainer(ctx, c.id, 30), "StopContainer")
	exited := c.status()
	check(exited, cri.ContainerState_CONTAINER_EXITED)
	if exited.StartedAt != running.StartedAt || exited.FinishedAt < exited.StartedAt || exited.FinishedAt > time.Now().UnixNano() {
		t.Errorf("started at %d, finished at %d", exited.StartedAt, exited.FinishedAt)
	}
	if exited.ExitCode != 0 || exited.Reason != "Completed" {
		t.Errorf("exit code %d, reason %q", exited.ExitCode, exited.Reason)
	}
	ok(t, runtime.RemoveContainer(ctx, c.id), "RemoveContainer")
	_, err := runtime.ContainerStatus(ctx, c.id, false)
	wantCode(t, err, "ContainerStatus", codes.NotFound)
}

func TestContainerExitCodes(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, sharedPid) // so that a signal to itself has its usual effect
	for name, c := range map[string]struct {
		script, reason string
		code           int32
	}{
		"zero":    {"exit 0", "Completed", 0},
		"three":   {"exit 3", "Error", 3},
		"255":     {"exit 255", "Error", 255},
		"sigkill": {"kill -KILL $$", "Error", 137},
		"sigterm": {"kill -TERM $$", "Error", 143},
		"sigsegv": {"kill -SEGV $$", "Error", 139},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			_, s := (&pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}).finish(c.script)
			if s.ExitCode != c.code || s.Reason != c.reason {
				t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
			}
			if s.StartedAt == 0 || s.FinishedAt < s.StartedAt && *peer != "containerd" {
				t.Errorf("started at %d, finished at %d", s.StartedAt, s.FinishedAt)
			}
		})
	}
}

func TestContainerImageIDIsThatOfThePull(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	c := p.run(idle)
	id := pull(t, ref("busybox:1"))
	s := c.status()
	if s.ImageId != id {
		t.Errorf("status: image id %q, pulled as %q", s.ImageId, id)
	}
	if s.Image.GetUserSpecifiedImage() != ref("busybox:1") {
		t.Errorf("status: user specified image %q", s.Image.GetUserSpecifiedImage())
	}
	for _, l := range must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{Id: c.id})) {
		if l.ImageId != id {
			t.Errorf("list: image id %q, pulled as %q", l.ImageId, id)
		}
	}
}

func TestCreateContainerByImageIDAndDigest(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	id := pull(t, ref("busybox:1"))
	for _, name := range []string{id, registry + "/test/busybox@" + digestOf(t, "busybox:1")} {
		if strings.Contains(name, "@") {
			pull(t, name)
		}
		c := p.create(name, []string{"sh", "-c", "exit 0"})
		c.start()
		if s := c.wait(); s.ExitCode != 0 || s.Image.GetImage() == "" {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func TestContainerConfigOfTheImage(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for name, c := range map[string]struct {
		command, args []string
		want          string
	}{
		"entry point and command of the image": {nil, nil, "args=one two words\npwd=/srv/sub\nGREETING=hello from the image\n"},
		"arguments replace the command":        {nil, []string{"a", "b"}, "args=a b\npwd=/srv/sub\nGREETING=hello from the image\n"},
		"a command replaces both":              {[]string{"echo", "only"}, nil, "only\n"},
		"a command with arguments":             {[]string{"echo"}, []string{"x", "y z"}, "x y z\n"},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			c1 := p.create(image(t, "config:1"), c.command, func(cfg *cri.ContainerConfig) { cfg.Args = c.args })
			c1.start()
			c1.wait()
			if got := c1.output(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	c := p.create(image(t, "config:1"), nil, func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "GREETING", Value: []byte("from the request = 1\nline 2")}}
		c.WorkingDir = "/tmp/new"
	})
	c.start()
	c.wait()
	if got, want := c.output(), "args=one two words\npwd=/tmp/new\nGREETING=from the request = 1\nline 2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestContainerStopSignalOfTheImage(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	c := p.create(image(t, "config:1"), nil, func(c *cri.ContainerConfig) { c.Args = []string{"wait"} })
	c.start()
	eventually(t, "the trap", func() bool { return strings.Contains(c.output(), "waiting") })
	ok(t, runtime.StopContainer(ctx, c.id, 30), "StopContainer")
	if s := c.status(); s.ExitCode != 7 {
		t.Errorf("exit code %d, log %q", s.ExitCode, c.output())
	}
}

func TestContainerStopSignalOfTheRequest(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	c := p.create(image(t, "config:1"), nil, func(c *cri.ContainerConfig) {
		c.Args, c.StopSignal = []string{"wait"}, cri.Signal_SIGNAL_SIGTERM
	})
	c.start()
	eventually(t, "the trap", func() bool { return strings.Contains(c.output(), "waiting") })
	ok(t, runtime.StopContainer(ctx, c.id, 30), "StopContainer")
	if s := c.status(); s.ExitCode != 8 || s.StopSignal != cri.Signal_SIGNAL_SIGTERM {
		t.Errorf("exit code %d, stop signal %v", s.ExitCode, s.StopSignal)
	}
}

func TestContainerUsers(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for name, c := range map[string]struct {
		image  string
		change func(*cri.LinuxContainerSecurityContext)
		want   string
	}{
		"number in the image":        {"user-1002:1", nil, "1002 0 0"},
		"name in the image":          {"user-www-data:1", nil, "33 33 33 50"},
		"number and group in it":     {"user-1003-users:1", nil, "1003 100 100"},
		"name and number of a group": {"user-www-data-100:1", nil, "33 100"},
		"no user":                    {"busybox:1", nil, "0 0 0"},
		"the request's number":       {"user-1002:1", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 4000} }, "4000 0 0"},
		"the request's root":         {"user-1002:1", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 0} }, "0 0 0"},
		"the request's name":         {"user-1002:1", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "www-data" }, "33 33 33 50"},
		"the request's user, group": {"busybox:1", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 5}, &cri.Int64Value{Value: 6}
		}, "5 6 6"},
		"supplemental groups": {"busybox:1", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &cri.Int64Value{Value: 33}, []int64{777}
		}, "33 33 33 50 777"},
		"supplemental groups, strict": {"busybox:1", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = &cri.Int64Value{Value: 33}, []int64{777}, cri.SupplementalGroupsPolicy_Strict
		}, "33 33 33 777"},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			k := p.create(image(t, c.image), []string{"sh", "-c", "echo $(id -u) $(id -g) $(id -G)"}, func(cfg *cri.ContainerConfig) {
				if c.change != nil {
					c.change(cfg.Linux.SecurityContext)
				}
			})
			k.start()
			k.wait()
			// The order of the supplemental groups, and whether the group is among them, is open.
			got, want := strings.Fields(k.output()), strings.Fields(c.want)
			if len(got) < 2 || fmt.Sprint(got[:2]) != fmt.Sprint(want[:2]) || len(want) > 2 && fmt.Sprint(set(got[1:])) != fmt.Sprint(set(want[1:])) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func set(words []string) map[string]bool {
	out := map[string]bool{}
	for _, w := range words {
		out[w] = true
	}
	return out
}

func TestContainerOfAnUnknownUserFailsAndLeavesNothing(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, err := p.tryCreate(p.config(image(t, "user-unknown:1"), []string{"true"}))
	if err == nil {
		err = runtime.StartContainer(ctx, k.id)
	}
	if err == nil {
		t.Error("it ran")
	}
}

func TestContainerReadonlyRootfs(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, s := p.finish("echo x > /file && echo written; echo y > /dev/shm/file && echo shm", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.ReadonlyRootfs = true
	})
	if got := k.output(); got != "shm\n" {
		t.Errorf("exit code %d, output %q", s.ExitCode, got)
	}
}

func TestContainerRootfsIsItsOwn(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	a, b := p.run(idle), p.run(idle)
	a.exec("echo mine > /file && rm /bin/vi")
	if got := b.exec("ls /file /bin/vi 2>/dev/null; true"); got != "/bin/vi\n" {
		t.Errorf("the other container sees %q", got)
	}
}

func TestContainerTerminal(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, _ := p.finish("test -t 0 && test -t 1 && test -t 2 && echo terminal $TERM; echo err >&2", func(c *cri.ContainerConfig) {
		c.Tty, c.Stdin = true, true
	})
	records := readLog(t, k.logPath())
	if got := strings.ReplaceAll(text(t, records, "stdout"), "\r", ""); got != "terminal xterm\nerr\n" {
		t.Errorf("got %q", got)
	}
}

func TestContainerEnvironmentHasNothingOfTheNode(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, _ := p.finish("env", func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "EMPTY"}}
	})
	got := set(strings.Split(strings.TrimSpace(k.output()), "\n"))
	for _, want := range []string{"PATH=/bin", "A=1", "EMPTY="} {
		if !got[want] {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	for line := range got {
		key, _, _ := strings.Cut(line, "=")
		switch key {
		case "PATH", "A", "EMPTY", "HOSTNAME", "HOME", "SHLVL", "PWD", "TERM", "container":
		default:
			t.Errorf("unexpected %q", line)
		}
	}
}

func TestCreateContainerRepeatedGivesTheSameID(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.create(image(t, "busybox:1"), []string{"true"})
	again := must[*container](t, "CreateContainer again")(p.tryCreate(k.cfg))
	if again.id != k.id {
		t.Errorf("another id: %s and %s", k.id, again.id)
	}
}

func TestCreateContainerConcurrentlyGivesOneID(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	cfg := p.config(image(t, "busybox:1"), []string{"true"})
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			id, err := runtime.CreateContainer(ctx, p.id, cfg, p.cfg)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("CreateContainer: %v", err)
			} else {
				ids[id] = true
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("%d ids", len(ids))
	}
}

func TestCreateContainerInAnUnknownPod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	_, err := runtime.CreateContainer(ctx, noSuchID, p.config(image(t, "busybox:1"), []string{"true"}), p.cfg)
	wantCode(t, err, "CreateContainer", codes.NotFound)
}

func TestCreateContainerInAStoppedPod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	if _, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"})); err == nil {
		t.Error("it was created")
	}
}

func TestCreateContainerOfAMissingImage(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	cfg := p.config(ref("not-there:1"), []string{"true"})
	_, err := p.tryCreate(cfg)
	wantCode(t, err, "CreateContainer", codes.NotFound)
	// The name is not taken by what failed.
	cfg.Image.Image = image(t, "busybox:1")
	_, err = p.tryCreate(cfg)
	ok(t, err, "CreateContainer with an image")
}

func TestCreateContainerBadRequests(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for name, change := range map[string]func(*cri.ContainerConfig){
		"no metadata": func(c *cri.ContainerConfig) { c.Metadata = nil },
		"no name":     func(c *cri.ContainerConfig) { c.Metadata.Name = "" },
		"no image":    func(c *cri.ContainerConfig) { c.Image = nil },
		"empty image": func(c *cri.ContainerConfig) { c.Image.Image = "" },
		"mount without container path": func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: t.TempDir()}}
		},
		"mount without host path": func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{ContainerPath: "/mnt"}}
		},
		"log path that climbs": func(c *cri.ContainerConfig) { c.LogPath = "../../escaped.log" },
		"unknown capability": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NO_SUCH_CAP"}}
		},
		"group without user": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5}
		},
		"empty environment key": func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Value: []byte("x")}} },
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			cfg := p.config(image(t, "busybox:1"), []string{"true"}, change)
			_, err := runtime.CreateContainer(ctx, p.id, cfg, p.cfg)
			wantInvalid(t, err, name)
		})
	}
	_, err := rawRuntime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id})
	wantInvalid(t, err, "no config at all")
	left := must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{PodSandboxId: p.id}))
	if len(left) != 0 && *peer == "" {
		t.Errorf("left behind: %v", left)
	}
}

func TestCreatedAtGrowsStrictly(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	last := int64(0)
	name := unique("ctr")
	for n := range uint32(6) {
		c := p.create(image(t, "busybox:1"), []string{"true"}, func(c *cri.ContainerConfig) {
			c.Metadata = &cri.ContainerMetadata{Name: name, Attempt: n}
			c.LogPath = fmt.Sprintf("%s/%d.log", name, n)
		})
		if at := c.status().CreatedAt; at <= last {
			t.Errorf("attempt %d was created at %d, the one before at %d", n, at, last)
		} else {
			last = at
		}
	}
}

// A repeated call is one whose answer was lost: it has the result of the first.
func TestStartContainerTwiceStartsOnce(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	before := k.status()
	ok(t, runtime.StartContainer(ctx, k.id), "StartContainer of a running container")
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != before.StartedAt {
		t.Errorf("status %v, before %v", s, before)
	}
	k.trapped()
	ok(t, runtime.StopContainer(ctx, k.id, 30), "StopContainer")
	ok(t, runtime.StartContainer(ctx, k.id), "StartContainer of a container that has ended")
	if s := k.status(); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 {
		t.Errorf("state %v, exit code %d", s.State, s.ExitCode)
	}
}

func TestStartContainerUnknown(t *testing.T) {
	ctx := spec(t)
	wantCode(t, runtime.StartContainer(ctx, noSuchID), "StartContainer", codes.NotFound)
}

// What cannot start must be seen as exited: CREATED would be tried again at once and for ever.
func TestStartContainerOfAMissingCommandLeavesExited(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for name, command := range map[string][]string{
		"no such file": {"/no/such/command"}, "not in the path": {"no-such-command"},
		"a folder": {"/etc"}, "not executable": {"/etc/passwd"},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			cfg := p.config(image(t, "busybox:1"), command)
			k, err := p.tryCreate(cfg)
			if err != nil {
				// Found out early: then there is no container, and the command is named.
				if !strings.Contains(err.Error(), command[0]) {
					t.Errorf("the error does not name the command: %v", err)
				}
				left := must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{LabelSelector: cfg.Labels}))
				if len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
				return
			}
			err = runtime.StartContainer(ctx, k.id)
			if err == nil || !strings.Contains(err.Error(), command[0]) {
				t.Errorf("StartContainer: %v", err)
			}
			k.t = t
			s := k.status()
			if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.FinishedAt == 0 || s.Reason == "" {
				t.Errorf("state %v, exit code %d, finished at %d, reason %q", s.State, s.ExitCode, s.FinishedAt, s.Reason)
			}
			ok(t, runtime.StopContainer(ctx, k.id, 1), "StopContainer")
			ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
		})
	}
}

func TestRemoveContainerCanBeRepeatedAndKeepsTheLog(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, _ := p.finish("echo still here")
	for range 3 {
		ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	}
	if got := k.output(); got != "still here\n" {
		t.Errorf("log: %q", got)
	}
	// The name is free again, and the log goes on in the file that is there.
	again := must[*container](t, "CreateContainer")(p.tryCreate(k.cfg))
	if again.id == k.id {
		t.Error("the id of the removed container came back")
	}
}

func TestRemoveContainerStopsWhatStillRuns(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("while :; do sleep 1; done")
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	_, err := runtime.ContainerStatus(ctx, k.id, false)
	wantCode(t, err, "ContainerStatus", codes.NotFound)
}

func TestRemoveContainerThatWasNeverStarted(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.create(image(t, "busybox:1"), []string{"true"})
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	left := must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, &cri.ContainerFilter{PodSandboxId: p.id}))
	if len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRemoveContainerUnknownIsDone(t *testing.T) {
	ctx := spec(t)
	ok(t, runtime.RemoveContainer(ctx, noSuchID), "RemoveContainer")
}

func TestContainerStatusUnknown(t *testing.T) {
	ctx := spec(t)
	for _, id := range []string{noSuchID, "../../etc", "a b"} {
		_, err := runtime.ContainerStatus(ctx, id, false)
		wantCode(t, err, "ContainerStatus of "+id, codes.NotFound, codes.InvalidArgument)
	}
}

func TestContainerStatusVerboseAndOfATruncatedID(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	s := must[*cri.ContainerStatusResponse](t, "status")(runtime.ContainerStatus(ctx, k.id[:13], true))
	if s.Status.Id != k.id || len(s.Info) == 0 {
		t.Errorf("id %s, info %v", s.Status.Id, s.Info)
	}
}

func TestListContainersFilters(t *testing.T) {
	ctx := spec(t)
	p, other := runPod(t, ctx), runPod(t, ctx)
	group := unique("group")
	label := func(n string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Labels["group"], c.Labels["n"] = group, n }
	}
	created := p.create(image(t, "busybox:1"), []string{"true"}, label("created"))
	running := p.run(idle, label("running"))
	exited, _ := p.finish("exit 0", label("exited"))
	stranger := other.run(idle, label("stranger"))
	state := func(s cri.ContainerState) *cri.ContainerStateValue { return &cri.ContainerStateValue{State: s} }
	both := map[string]string{"group": group}
	for name, c := range map[string]struct {
		filter *cri.ContainerFilter
		want   []*container
	}{
		"id":                {&cri.ContainerFilter{Id: running.id}, []*container{running}},
		"truncated id":      {&cri.ContainerFilter{Id: running.id[:13]}, []*container{running}},
		"unknown id":        {&cri.ContainerFilter{Id: noSuchID}, nil},
		"pod":               {&cri.ContainerFilter{PodSandboxId: p.id}, []*container{created, running, exited}},
		"truncated pod id":  {&cri.ContainerFilter{PodSandboxId: p.id[:13]}, []*container{created, running, exited}},
		"unknown pod":       {&cri.ContainerFilter{PodSandboxId: noSuchID}, nil},
		"label":             {&cri.ContainerFilter{LabelSelector: both}, []*container{created, running, exited, stranger}},
		"label and created": {&cri.ContainerFilter{LabelSelector: both, State: state(cri.ContainerState_CONTAINER_CREATED)}, []*container{created}},
		"label and running": {&cri.ContainerFilter{LabelSelector: both, State: state(cri.ContainerState_CONTAINER_RUNNING)}, []*container{running, stranger}},
		"pod and exited":    {&cri.ContainerFilter{PodSandboxId: p.id, State: state(cri.ContainerState_CONTAINER_EXITED)}, []*container{exited}},
		"id of another pod": {&cri.ContainerFilter{Id: stranger.id, PodSandboxId: p.id}, nil},
		"two labels":        {&cri.ContainerFilter{LabelSelector: map[string]string{"group": group, "n": "exited"}}, []*container{exited}},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			items := must[[]*cri.Container](t, "list")(runtime.ListContainers(ctx, c.filter))
			got := map[string]*cri.Container{}
			for _, i := range items {
				got[i.Id] = i
			}
			if len(items) != len(c.want) {
				t.Errorf("%d containers, want %d", len(items), len(c.want))
			}
			for _, k := range c.want {
				i := got[k.id]
				if i == nil {
					t.Errorf("%v is missing", k.cfg.Labels)
					continue
				}
				if i.PodSandboxId != k.pod.id || !maps.Equal(i.Labels, k.cfg.Labels) || !maps.Equal(i.Annotations, k.cfg.Annotations) || i.Metadata.Name != k.cfg.Metadata.Name {
					t.Errorf("listed as %v", i)
				}
			}
		})
	}
}

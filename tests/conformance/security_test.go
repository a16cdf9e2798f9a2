package conformance

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// apparmorIsOn says whether the node's kernel has AppArmor.
func apparmorIsOn() bool {
	text, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return strings.HasPrefix(string(text), "Y")
}

func local(ref string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}
}

// profile writes a seccomp profile.
func profile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile.json")
	ok(t, os.WriteFile(path, []byte(text), 0o644), "profile")
	return path
}

const noChmod = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
	{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}`

func TestSeccompLocalhost(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	path := profile(t, noChmod)
	for name, ask := range map[string]func(*cri.LinuxContainerSecurityContext){
		"by field": func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = local(path) },
		"by path": func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp, s.SeccompProfilePath = nil, "localhost/"+path
		},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			k, _ := p.finish("touch /f; chmod 600 /f && echo changed; mkdir /d && echo made", func(c *cri.ContainerConfig) {
				ask(c.Linux.SecurityContext)
			})
			if got := k.output(); got != "made\n" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// What the default profile refuses is refused to commands as well, and each with the answer that
// programs know what to do with.
func TestSeccompDefaultKeepsNamespacesAway(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	confined := func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}
	k := p.run(idle, confined)
	if got := k.exec("unshare -U true 2>&1; grep ^Seccomp: /proc/self/status"); !strings.Contains(got, "not permitted") || !strings.HasSuffix(got, "Seccomp:\t2\n") {
		t.Errorf("got %q", got)
	}
}

func TestSecurityBadRequests(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	type security = cri.LinuxContainerSecurityContext
	broken := profile(t, "{")
	action := profile(t, `{"defaultAction": "SCMP_ACT_PERHAPS"}`)
	arch := profile(t, `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}`)
	large := profile(t, `{"defaultAction": "SCMP_ACT_ALLOW", "x": "`+strings.Repeat("x", 2<<20)+`"}`)
	fifo := "/dev/zero"
	for name, c := range map[string]struct {
		change func(*security)
		says   []string
	}{
		"profile that is not there":  {func(s *security) { s.Seccomp = local("/nowhere/p.json") }, []string{"seccomp", "/nowhere/p.json"}},
		"profile by a relative path": {func(s *security) { s.Seccomp = local("p.json") }, []string{"seccomp", "p.json"}},
		"profile that is a device":   {func(s *security) { s.Seccomp = local(fifo) }, []string{"seccomp", fifo}},
		"profile that is no JSON":    {func(s *security) { s.Seccomp = local(broken) }, []string{"seccomp", broken}},
		"profile that is too large":  {func(s *security) { s.Seccomp = local(large) }, []string{"seccomp", large}},
		"unknown action":             {func(s *security) { s.Seccomp = local(action) }, []string{"seccomp", action, "SCMP_ACT_PERHAPS"}},
		"unknown architecture":       {func(s *security) { s.Seccomp = local(arch) }, []string{"seccomp", arch, "SCMP_ARCH_PDP11"}},
		"no profile named":           {func(s *security) { s.Seccomp = local("") }, []string{"seccomp", "localhost_ref"}},
		"profile without its type": {func(s *security) {
			s.Seccomp = &cri.SecurityProfile{LocalhostRef: "/x"}
		}, []string{"seccomp", "localhost_ref"}},
		"unknown kind of profile":   {func(s *security) { s.Seccomp = &cri.SecurityProfile{ProfileType: 9} }, []string{"seccomp", "9"}},
		"unknown kind of AppArmor":  {func(s *security) { s.Apparmor = &cri.SecurityProfile{ProfileType: 9} }, []string{"apparmor", "9"}},
		"AppArmor in no known form": {func(s *security) { s.ApparmorProfile = "nothing/known" }, []string{"apparmor_profile", "nothing/known"}},
		"unknown capability to drop": {func(s *security) {
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"NO_SUCH"}}
		}, []string{"capabilities.drop_capabilities", "NO_SUCH"}},
		"unknown ambient capability": {func(s *security) {
			s.Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"NO_SUCH"}}
		}, []string{"capabilities.add_ambient_capabilities", "NO_SUCH"}},
		"negative user":                   {func(s *security) { s.RunAsUser = &cri.Int64Value{Value: -1} }, []string{"run_as_user"}},
		"user beyond all":                 {func(s *security) { s.RunAsUser = &cri.Int64Value{Value: 1<<32 - 1} }, []string{"run_as_user"}},
		"two users":                       {func(s *security) { s.RunAsUser, s.RunAsUsername = &cri.Int64Value{}, "root" }, []string{"run_as_user"}},
		"group beyond all":                {func(s *security) { s.SupplementalGroups = []int64{1 << 40} }, []string{"supplemental_groups"}},
		"unknown policy":                  {func(s *security) { s.SupplementalGroupsPolicy = 7 }, []string{"supplemental_groups_policy", "7"}},
		"privileged in a pod that is not": {func(s *security) { s.Privileged = true }, []string{"privileged"}},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			cfg := p.config(image(t, "busybox:1"), []string{"true"}, func(cfg *cri.ContainerConfig) { c.change(cfg.Linux.SecurityContext) })
			_, err := runtime.CreateContainer(ctx, p.id, cfg, p.cfg)
			wantInvalid(t, err, name)
			for _, word := range c.says {
				if err != nil && *peer == "" && !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not say %q", err, word)
				}
			}
		})
	}
}

// A pod's context is checked whether a process comes to have it or not.
func TestSecurityOfAPodBadRequests(t *testing.T) {
	ctx := spec(t)
	type security = cri.LinuxSandboxSecurityContext
	for name, c := range map[string]struct {
		change func(*cri.PodSandboxConfig, *security)
		says   []string
	}{
		"profile that is not there": {func(_ *cri.PodSandboxConfig, s *security) { s.Seccomp = local("/nowhere/p.json") }, []string{"seccomp", "/nowhere/p.json"}},
		"unknown kind of profile":   {func(_ *cri.PodSandboxConfig, s *security) { s.Seccomp = &cri.SecurityProfile{ProfileType: 5} }, []string{"seccomp", "5"}},
		"old form, no profile":      {func(_ *cri.PodSandboxConfig, s *security) { s.Seccomp, s.SeccompProfilePath = nil, "x" }, []string{"seccomp_profile_path"}},
		"unknown kind of AppArmor":  {func(_ *cri.PodSandboxConfig, s *security) { s.Apparmor = &cri.SecurityProfile{ProfileType: 5} }, []string{"apparmor", "5"}},
		"negative group":            {func(_ *cri.PodSandboxConfig, s *security) { s.SupplementalGroups = []int64{-1} }, []string{"supplemental_groups"}},
		"unknown policy":            {func(_ *cri.PodSandboxConfig, s *security) { s.SupplementalGroupsPolicy = 3 }, []string{"supplemental_groups_policy"}},
		"negative user":             {func(_ *cri.PodSandboxConfig, s *security) { s.RunAsUser = &cri.Int64Value{Value: -2} }, []string{"run_as_user"}},
		"sysctl of two lines": {func(c *cri.PodSandboxConfig, _ *security) {
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1\n2"}
		}, []string{"linux.sysctls", "net.core.somaxconn"}},
		"sysctl of the node's network": {func(c *cri.PodSandboxConfig, _ *security) {
			hostNetwork(c)
			c.Linux.Sysctls = map[string]string{"net/core/somaxconn": "1"}
		}, []string{"linux.sysctls", "namespace_options.network"}},
		"sysctl of the node's memory": {func(c *cri.PodSandboxConfig, s *security) {
			s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}, []string{"linux.sysctls", "namespace_options.ipc"}},
		"sysctl that nobody knows": {func(c *cri.PodSandboxConfig, _ *security) {
			c.Linux.Sysctls = map[string]string{"net.no.such": "1"}
		}, []string{"net.no.such"}},
		"sysctl that climbs": {func(c *cri.PodSandboxConfig, _ *security) {
			c.Linux.Sysctls = map[string]string{"net/../kernel/panic": "1"}
		}, []string{"linux.sysctls"}},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			cfg := podConfig(t, func(cfg *cri.PodSandboxConfig) { c.change(cfg, cfg.Linux.SecurityContext) })
			id, err := runtime.RunPodSandbox(ctx, cfg, handler())
			if err == nil {
				removePodAfter(t, id)
			}
			wantInvalid(t, err, name)
			for _, word := range c.says {
				if err != nil && *peer == "" && !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not say %q", err, word)
				}
			}
		})
	}
}

// What a pod asks for holds for the process that holds its pid namespace.
func TestSecurityOfAPodsOwnProcess(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, sharedPid, func(c *cri.PodSandboxConfig) {
		s := c.Linux.SecurityContext
		s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 4001}, &cri.Int64Value{Value: 4002}
		s.SupplementalGroups = []int64{4003}
	})
	k := p.run(idle)
	got := k.exec("grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status | tr -s '\\t ' ' '")
	want := []string{"Uid: 4001 4001 4001 4001", "Gid: 4002 4002 4002 4002", "CapEff: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"}
	if *peer == "" {
		want = append(want, "CapBnd: 0000000000000000", "Groups: 4002 4003")
	}
	for _, line := range want {
		if !slices.Contains(strings.Split(strings.ReplaceAll(got, " \n", "\n"), "\n"), line) {
			t.Errorf("no %q in %q", line, got)
		}
	}
}

// A pod of the kubelet may name a group and no user.
func TestSecurityOfAPodWithAGroupAlone(t *testing.T) {
	ctx := spec(t)
	runPod(t, ctx, sharedPid, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 4002}
	})
}

func TestAppArmorWhereTheKernelHasNone(t *testing.T) {
	ctx := spec(t)
	if apparmorIsOn() {
		t.Skip("the kernel has it")
	}
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		c.Annotations["container.apparmor.security.beta.kubernetes.io/noted"] = "localhost/noted-profile"
	})
	_, s := p.finish("true", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		c.Linux.SecurityContext.ApparmorProfile = "runtime/default"
	})
	if s.ExitCode != 0 {
		t.Errorf("by default: %v", s)
	}
	for name, change := range map[string]func(*cri.ContainerConfig){
		"field-profile": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Apparmor = local("field-profile") },
		"old-profile":   func(c *cri.ContainerConfig) { c.Linux.SecurityContext.ApparmorProfile = "localhost/old-profile" },
		"noted-profile": func(c *cri.ContainerConfig) { c.Metadata.Name = "noted" },
	} {
		_, err := p.tryCreate(p.config(image(t, "busybox:1"), []string{"true"}, change))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "AppArmor") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The kubelet asks for what is to be hidden by name, and for nothing by an empty list.
func TestProcMountUnmasked(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	look := "awk '$5 ~ \"^/proc/(sys|bus|interrupts)$\" {print $5}' /proc/self/mountinfo | sort"
	with := func(masked, readonly []string) string {
		k, _ := p.finish(look, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = masked, readonly
		})
		return k.output()
	}
	if got := with([]string{"/proc/interrupts"}, []string{"/proc/bus", "/proc/sys"}); got != "/proc/bus\n/proc/interrupts\n/proc/sys\n" {
		t.Errorf("masked: %q", got)
	}
	if got := with(nil, nil); got != "" {
		t.Errorf("unmasked: %q", got)
	}
	if *peer != "" {
		return
	}
	// Who says nothing of security at all is no worse off than who asks for the defaults.
	k, _ := p.finish(look, func(c *cri.ContainerConfig) { c.Linux = nil })
	if got := k.output(); got != "/proc/bus\n/proc/interrupts\n/proc/sys\n" {
		t.Errorf("by default: %q", got)
	}
}

func TestPrivileged(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	k := p.run(idle, func(c *cri.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.Privileged = true
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/interrupts"}, []string{"/proc/sys"}
	})
	bounding := func(status string) string {
		_, after, _ := strings.Cut(status, "CapBnd:\t")
		line, _, _ := strings.Cut(after, "\n")
		return line
	}
	own := must[[]byte](t, "status")(os.ReadFile("/proc/self/status"))
	inside := k.exec("cat /proc/1/status")
	if got, want := bounding(inside), bounding(string(own)); got != want {
		t.Errorf("capabilities %s, the node has %s", got, want)
	}
	if !strings.Contains(inside, "\nSeccomp:\t0\n") {
		t.Error("confined by seccomp")
	}
	if got := k.exec("grep -c ' /proc/interrupts ' /proc/self/mountinfo; mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; [ -e /dev/kmsg ] && echo devices"); got != "0\nmounted\ndevices\n" {
		t.Errorf("got %q", got)
	}
	// Others in the pod are what they ask to be.
	other := p.run(idle)
	if got := other.exec("(mount -t tmpfs none /mnt || mount -t tmpfs none /tmp) 2>/dev/null && echo mounted; [ -e /dev/kmsg ] && echo devices; true"); got != "" {
		t.Errorf("beside it: %q", got)
	}
}

func TestAmbientCapabilities(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	bind := "grep -E '^Cap(Eff|Amb)' /proc/self/status | tr '\\t' ' '"
	with := func(add, ambient []string) string {
		k, _ := p.finish(bind, func(c *cri.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.RunAsUser = &cri.Int64Value{Value: 1000}
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: add, AddAmbientCapabilities: ambient}
		})
		return k.output()
	}
	if got := with([]string{"NET_BIND_SERVICE"}, nil); got != "CapEff: 0000000000000000\nCapAmb: 0000000000000000\n" {
		t.Errorf("added: %q", got)
	}
	if got := with(nil, []string{"NET_BIND_SERVICE"}); got != "CapEff: 0000000000000400\nCapAmb: 0000000000000400\n" {
		t.Errorf("ambient: %q", got)
	}
}

// Programs look up who they are.
func TestUsersWithoutARowGetOne(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	as := func(image string, uid, gid int64, options ...func(*cri.ContainerConfig)) *container {
		options = append(options, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: uid}
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: gid}
			c.WorkingDir = "/work"
		})
		k := p.create(image, []string{"sh", "-c", "id -un; id -gn; grep -c . /etc/passwd; echo $HOME"}, options...)
		k.start()
		k.wait()
		return k
	}
	users := image(t, "user-www-data:1")
	first := as(users, 4242, 4343)
	if got := strings.Fields(first.output()); len(got) != 4 || got[0] != "4242" || got[1] != "4343" || got[3] != "/work" {
		t.Errorf("got %q", got)
	}
	// It is that container's alone.
	rows := strings.Fields(first.output())[2]
	second := as(users, 33, 33)
	if got := strings.Fields(second.output()); len(got) != 4 || got[0] != "www-data" || got[2] >= rows {
		t.Errorf("a user with a row, after one with %s rows: %q", rows, got)
	}
	readonly := as(users, 4242, 0, func(c *cri.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true })
	if got := strings.Fields(readonly.output()); len(got) != 4 || got[0] != "4242" {
		t.Errorf("on a read-only root: %q", got)
	}
	own := filepath.Join(t.TempDir(), "passwd")
	ok(t, os.WriteFile(own, []byte("x:x:0:0::/:\n"), 0o644), "passwd")
	mounted := as(users, 4242, 0, func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: own, ContainerPath: "/etc/passwd", Readonly: true}}
	})
	if text := must[[]byte](t, "passwd")(os.ReadFile(own)); string(text) != "x:x:0:0::/:\n" {
		t.Errorf("a mounted file was written: %q, %q", text, mounted.output())
	}
}

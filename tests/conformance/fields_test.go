package conformance

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldRefused is what ../../api/cri/FIELDS.md says of a field: an error's code, and words of it.
type fieldRefused struct{ table, field, code, words string }

var (
	fieldRow    = regexp.MustCompile("^\\| `([^`]+)` \\| [^|]* \\| [^|]* \\| ([^|]*) \\| [^|]*\\|$")
	refusalForm = regexp.MustCompile("^(\\w+) `(.*)`$")
)

// refusals reads them all.
func refusals(t *testing.T) []fieldRefused {
	t.Helper()
	var all []fieldRefused
	var table string
	for _, line := range strings.Split(readFile(t, "../../api/cri/FIELDS.md"), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			table = strings.Trim(title, "`")
		}
		row := fieldRow.FindStringSubmatch(line)
		if row == nil {
			continue
		}
		for _, one := range strings.Split(row[2], "; ") {
			if parts := refusalForm.FindStringSubmatch(strings.TrimSpace(one)); parts != nil {
				all = append(all, fieldRefused{table, row[1], parts[1], parts[2]})
			} else if strings.TrimSpace(one) != "" {
				t.Errorf("%s: %q is no code and words", row[1], one)
			}
		}
	}
	if len(all) < 100 {
		t.Fatalf("only %d refusals: has the table another form?", len(all))
	}
	return all
}

// offence makes a request that is to be refused.
type offence func(*offender) error

// offender is what offences are committed with.
type offender struct {
	t   *testing.T
	ctx context.Context
	pod *pod
	// A container that runs.
	running *container
	image   string
}

func (o *offender) create(change func(*cri.ContainerConfig)) error {
	c, err := o.pod.tryCreate(o.pod.config(o.image, []string{"true"}, change))
	if err == nil {
		o.t.Errorf("%s was created", c.id)
	}
	return err
}

// inPod changes a pod's configuration.
func inPod(change func(*cri.PodSandboxConfig)) offence {
	return func(o *offender) error {
		cfg := podConfig(o.t, change)
		answer, err := rawRuntime.RunPodSandbox(o.ctx, &cri.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler()})
		if err == nil {
			removePodAfter(o.t, answer.PodSandboxId)
		}
		return err
	}
}

func inPodSecurity(change func(*cri.LinuxSandboxSecurityContext)) offence {
	return inPod(func(c *cri.PodSandboxConfig) { change(c.Linux.SecurityContext) })
}

func inPodModes(change func(*cri.NamespaceOption)) offence {
	return inPodSecurity(func(s *cri.LinuxSandboxSecurityContext) { change(s.NamespaceOptions) })
}

// inPodUsers asks for a user namespace with one thing wrong.
func inPodUsers(change func(*cri.UserNamespace)) offence {
	return inPodModes(func(n *cri.NamespaceOption) {
		n.UsernsOptions = &cri.UserNamespace{
			Mode: cri.NamespaceMode_POD,
			Uids: []*cri.IDMapping{{HostId: 65536, Length: 65536}},
			Gids: []*cri.IDMapping{{HostId: 65536, Length: 65536}},
		}
		change(n.UsernsOptions)
	})
}

func in(change func(*cri.ContainerConfig)) offence {
	return func(o *offender) error { return o.create(change) }
}

func inSecurity(change func(*cri.LinuxContainerSecurityContext)) offence {
	return in(func(c *cri.ContainerConfig) {
		// Of its own: the pod's would be changed along.
		options := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
		c.Linux.SecurityContext.NamespaceOptions = options
		change(c.Linux.SecurityContext)
	})
}

func inCapabilities(change func(*cri.Capability)) offence {
	return inSecurity(func(s *cri.LinuxContainerSecurityContext) {
		s.Capabilities = &cri.Capability{}
		change(s.Capabilities)
	})
}

// inMount changes a mount of a folder of the node.
func inMount(change func(*cri.Mount)) offence {
	return func(o *offender) error {
		m := &cri.Mount{HostPath: o.t.TempDir(), ContainerPath: "/mnt"}
		change(m)
		return o.create(mounts(m))
	}
}

func inDevice(change func(*cri.Device)) offence {
	return in(func(c *cri.ContainerConfig) {
		d := &cri.Device{HostPath: "/dev/null", ContainerPath: "/dev/null", Permissions: "r"}
		change(d)
		c.Devices = []*cri.Device{d}
	})
}

// ofResources are offences by limits, for each place that has some.
func ofResources(place string, ask func(*cri.LinuxContainerResources) offence) map[[2]string]offence {
	type r = cri.LinuxContainerResources
	pages := func(size string, limits ...uint64) []*cri.HugepageLimit {
		var all []*cri.HugepageLimit
		for _, limit := range limits {
			all = append(all, &cri.HugepageLimit{PageSize: size, Limit: limit})
		}
		return all
	}
	all := map[[2]string]offence{}
	for field, bad := range map[[2]string]*r{
		{"cpu_period", "1 is not between"}:                         {CpuPeriod: 1},
		{"cpu_quota", "1 is neither"}:                              {CpuQuota: 1},
		{"cpu_shares", "1 is not between"}:                         {CpuShares: 1},
		{"memory_limit_in_bytes", "-2 is neither"}:                 {MemoryLimitInBytes: -2},
		{"memory_limit_in_bytes", "below the least"}:               {MemoryLimitInBytes: 4096},
		{"oom_score_adj", "1001"}:                                  {OomScoreAdj: 1001},
		{"oom_score_adj", "a pod has none"}:                        {OomScoreAdj: 1},
		{"cpuset_cpus", "x"}:                                       {CpusetCpus: "x"},
		{"cpuset_mems", "x"}:                                       {CpusetMems: "x"},
		{"hugepage_limits", "two limits"}:                          {HugepageLimits: pages("2MB", 0, 2<<20)},
		{"hugepage_limits.page_size", "no pages"}:                  {HugepageLimits: pages("3MB", 0)},
		{"unified", "unified"}:                                     {Unified: map[string]string{"../cgroup.procs": "1"}},
		{"memory_swap_limit_in_bytes", "-2 is neither"}:            {MemorySwapLimitInBytes: -2},
		{"memory_swap_limit_in_bytes", "memory and swap together"}: {MemorySwapLimitInBytes: 1 << 30},
	} {
		all[[2]string{place + "." + field[0], field[1]}] = ask(bad)
	}
	return all
}

const noID = "0123456789ab"

// offences has one for each refusal: by table and field, and words that the refusal has in it.
func offences() map[string]map[[2]string]offence {
	type (
		C  = cri.ContainerConfig
		M  = cri.Mount
		N  = cri.NamespaceOption
		P  = cri.PodSandboxConfig
		PS = cri.LinuxSandboxSecurityContext
		S  = cri.LinuxContainerSecurityContext
		U  = cri.UserNamespace
	)
	const (
		security = "linux.security_context."
		modes    = security + "namespace_options."
		users    = modes + "userns_options."
	)
	kind := func(n int32, ref string) *cri.SecurityProfile {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_ProfileType(n), LocalhostRef: ref}
	}
	port := func(change func(*cri.PortMapping)) offence {
		return inPod(func(p *P) {
			m := &cri.PortMapping{HostPort: 8080, ContainerPort: 80}
			change(m)
			p.PortMappings = []*cri.PortMapping{m}
		})
	}
	users65536 := []*cri.IDMapping{{HostId: 65536, Length: 65536}}
	podTable := map[[2]string]offence{
		{"metadata", "missing"}:              inPod(func(p *P) { p.Metadata = nil }),
		{"metadata.name", "empty"}:           inPod(func(p *P) { p.Metadata.Name = "" }),
		{"metadata.uid", "empty"}:            inPod(func(p *P) { p.Metadata.Uid = "" }),
		{"metadata.namespace", "empty"}:      inPod(func(p *P) { p.Metadata.Namespace = "" }),
		{"metadata.name", "no name"}:         inPod(func(p *P) { p.Metadata.Name = "a;b" }),
		{"metadata.uid", "no name"}:          inPod(func(p *P) { p.Metadata.Uid = "a\x00b" }),
		{"metadata.namespace", "no name"}:    inPod(func(p *P) { p.Metadata.Namespace = "a\nb" }),
		{"annotations", "bytes"}:             inPod(func(p *P) { p.Annotations["x"] = strings.Repeat("x", 1<<20) }),
		{"labels", "bytes"}:                  inPod(func(p *P) { p.Labels["x"] = strings.Repeat("x", 1<<20) }),
		{"linux.cgroup_parent", "no path"}:   inPod(func(p *P) { p.Linux.CgroupParent = "/a\nb" }),
		{"hostname", "a b"}:                  inPod(func(p *P) { p.Hostname = "a b" }),
		{"hostname", "longer"}:               inPod(func(p *P) { p.Hostname = strings.Repeat("a", 65) }),
		{"log_directory", ""}:                inPod(func(p *P) { p.LogDirectory = "logs" }),
		{"dns_config", ""}:                   inPod(func(p *P) { p.DnsConfig.Options = slices.Repeat([]string{strings.Repeat("x", 1000)}, 2000) }),
		{"dns_config.servers", ""}:           inPod(func(p *P) { p.DnsConfig.Servers = []string{"1\n2"} }),
		{"dns_config.searches", ""}:          inPod(func(p *P) { p.DnsConfig.Searches = []string{"1\n2"} }),
		{"dns_config.options", ""}:           inPod(func(p *P) { p.DnsConfig.Options = []string{"1\n2"} }),
		{"port_mappings.protocol", ""}:       port(func(m *cri.PortMapping) { m.Protocol = 7 }),
		{"port_mappings.container_port", ""}: port(func(m *cri.PortMapping) { m.ContainerPort = 65536 }),
		{"port_mappings.host_port", ""}:      port(func(m *cri.PortMapping) { m.HostPort = -1 }),
		{"port_mappings.host_ip", ""}:        port(func(m *cri.PortMapping) { m.HostIp = "localhost" }),
		{"linux.cgroup_parent", "slice"}:     inPod(func(p *P) { p.Linux.CgroupParent = "kubepods.slice" }),
		{"linux.cgroup_parent", "climbs"}:    inPod(func(p *P) { p.Linux.CgroupParent = "/a/../../b" }),
		{modes + "network", "not for a pod"}: inPodModes(func(n *N) { n.Network = cri.NamespaceMode_CONTAINER }),
		{modes + "network", "unknown"}:       inPodModes(func(n *N) { n.Network = 9 }),
		{modes + "pid", "not for a pod"}:     inPodModes(func(n *N) { n.Pid = cri.NamespaceMode_TARGET }),
		{modes + "pid", "unknown"}:           inPodModes(func(n *N) { n.Pid = 9 }),
		{modes + "ipc", "not for a pod"}:     inPodModes(func(n *N) { n.Ipc = cri.NamespaceMode_CONTAINER }),
		{modes + "ipc", "unknown"}:           inPodModes(func(n *N) { n.Ipc = 9 }),
		{modes + "target_id", ""}:            inPodModes(func(n *N) { n.TargetId = "x" }),
		{users + "mode", "CONTAINER"}:        inPodUsers(func(u *U) { u.Mode = cri.NamespaceMode_CONTAINER }),
		{users + "mode", "own"}: inPodModes(func(n *N) {
			n.Ipc = cri.NamespaceMode_NODE
			n.UsernsOptions = &U{Mode: cri.NamespaceMode_POD, Uids: users65536, Gids: users65536}
		}),
		{users + "uids", "expected one"}:               inPodUsers(func(u *U) { u.Uids = nil }),
		{users + "uids", "NODE"}:                       inPodUsers(func(u *U) { u.Mode = cri.NamespaceMode_NODE }),
		{users + "uids.host_id", ""}:                   inPodUsers(func(u *U) { u.Uids[0].HostId = 4294967290 }),
		{users + "uids.container_id", ""}:              inPodUsers(func(u *U) { u.Uids[0].ContainerId = 1 }),
		{users + "uids.length", ""}:                    inPodUsers(func(u *U) { u.Uids[0].Length = 0 }),
		{users + "gids", "expected one"}:               inPodUsers(func(u *U) { u.Gids = nil }),
		{users + "gids.host_id", ""}:                   inPodUsers(func(u *U) { u.Gids[0].HostId = 4294967290 }),
		{users + "gids.container_id", ""}:              inPodUsers(func(u *U) { u.Gids[0].ContainerId = 1 }),
		{users + "gids.length", ""}:                    inPodUsers(func(u *U) { u.Gids[0].Length = 0 }),
		{security + "run_as_user.value", ""}:           inPodSecurity(func(s *PS) { s.RunAsUser = &cri.Int64Value{Value: -1} }),
		{security + "run_as_group.value", ""}:          inPodSecurity(func(s *PS) { s.RunAsGroup = &cri.Int64Value{Value: -1} }),
		{security + "supplemental_groups", ""}:         inPodSecurity(func(s *PS) { s.SupplementalGroups = []int64{-1} }),
		{security + "supplemental_groups_policy", ""}:  inPodSecurity(func(s *PS) { s.SupplementalGroupsPolicy = 9 }),
		{security + "seccomp.profile_type", ""}:        inPodSecurity(func(s *PS) { s.Seccomp = kind(9, "") }),
		{security + "seccomp.localhost_ref", "empty"}:  inPodSecurity(func(s *PS) { s.Seccomp = kind(2, "") }),
		{security + "seccomp.localhost_ref", "needs"}:  inPodSecurity(func(s *PS) { s.Seccomp = kind(0, "x") }),
		{security + "apparmor.profile_type", ""}:       inPodSecurity(func(s *PS) { s.Apparmor = kind(9, "") }),
		{security + "apparmor.localhost_ref", "empty"}: inPodSecurity(func(s *PS) { s.Apparmor = kind(2, "") }),
		{security + "apparmor.localhost_ref", "needs"}: inPodSecurity(func(s *PS) { s.Apparmor = kind(0, "x") }),
		{security + "seccomp_profile_path", ""}:        inPodSecurity(func(s *PS) { s.Seccomp, s.SeccompProfilePath = nil, "x" }),
		{"linux.sysctls", "kernel.panic"}:              inPod(func(p *P) { p.Linux.Sysctls = map[string]string{"kernel.panic": "1"} }),
		{"linux.sysctls", "net.core.somaxconn"}: inPod(func(p *P) {
			hostNetwork(p)
			p.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1024"}
		}),
		{"linux.sysctls", "kernel.shmmax"}: inPod(func(p *P) {
			p.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
			p.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}),
	}
	maps.Copy(podTable, ofResources("linux.overhead", func(r *cri.LinuxContainerResources) offence {
		return inPod(func(p *P) { p.Linux.Overhead = r })
	}))
	maps.Copy(podTable, ofResources("linux.resources", func(r *cri.LinuxContainerResources) offence {
		return inPod(func(p *P) { p.Linux.Resources = r })
	}))

	containerTable := map[[2]string]offence{
		{"metadata", ""}:                 in(func(c *C) { c.Metadata = nil }),
		{"metadata.name", ""}:            in(func(c *C) { c.Metadata.Name = "" }),
		{"image", ""}:                    in(func(c *C) { c.Image = nil }),
		{"image.image", "empty"}:         in(func(c *C) { c.Image.Image = "" }),
		{"image.image", "no-such-image"}: in(func(c *C) { c.Image.Image = ref("no-such-image:1") }),
		{"command", ""}: func(o *offender) error {
			// This image has neither.
			bare := ref("files:1")
			pull(o.t, bare)
			return o.create(func(c *C) { c.Command, c.Image.Image = nil, bare })
		},
		{"annotations", "bytes"}:           in(func(c *C) { c.Annotations["x"] = strings.Repeat("x", 1<<20) }),
		{"labels", "bytes"}:                in(func(c *C) { c.Labels["x"] = strings.Repeat("x", 1<<20) }),
		{"log_path", "no path"}:            in(func(c *C) { c.LogPath = strings.Repeat("x", 300) }),
		{"working_dir", "no path"}:         in(func(c *C) { c.WorkingDir = "/" + strings.Repeat("x", 5000) }),
		{security + "masked_paths", ""}:    inSecurity(func(s *S) { s.MaskedPaths = []string{"proc"} }),
		{security + "readonly_paths", ""}:  inSecurity(func(s *S) { s.ReadonlyPaths = []string{""} }),
		{"working_dir", "tmp"}:             in(func(c *C) { c.WorkingDir = "tmp" }),
		{"envs.key", "\"\""}:               in(func(c *C) { c.Envs = []*cri.KeyValue{{Key: ""}} }),
		{"envs.key", "A=B"}:                in(func(c *C) { c.Envs = []*cri.KeyValue{{Key: "A=B"}} }),
		{"envs.value", "UTF-8"}:            in(func(c *C) { c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte{0xff}}} }),
		{"envs.value", "NUL"}:              in(func(c *C) { c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte{0}}} }),
		{"mounts.container_path", "empty"}: inMount(func(m *M) { m.ContainerPath = "" }),
		{"mounts.container_path", "root"}:  inMount(func(m *M) { m.ContainerPath = "/a/.." }),
		{"mounts.host_path", "empty"}:      inMount(func(m *M) { m.HostPath = "" }),
		{"mounts.host_path", "absolute"}:   inMount(func(m *M) { m.HostPath = "tmp" }),
		{"mounts.propagation", "unknown"}:  inMount(func(m *M) { m.Propagation = 9 }),
		{"mounts.propagation", "shared"}: func(o *offender) error {
			return o.create(mounts(&M{HostPath: "/proc", ContainerPath: "/mnt", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}))
		},
		{"mounts.uidMappings", ""}:                       inMount(func(m *M) { m.UidMappings = users65536 }),
		{"mounts.gidMappings", ""}:                       inMount(func(m *M) { m.GidMappings = users65536 }),
		{"mounts.recursive_read_only", "needs readonly"}: inMount(func(m *M) { m.RecursiveReadOnly = true }),
		{"mounts.recursive_read_only", "private"}: inMount(func(m *M) {
			m.Readonly, m.RecursiveReadOnly, m.Propagation = true, true, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}),
		{"mounts.image.image", ""}: inMount(func(m *M) {
			m.HostPath, m.Readonly, m.Image = "", true, &cri.ImageSpec{Image: ref("no-such-image:1")}
		}),
		{"mounts.image_sub_path", ""}:                            inMount(func(m *M) { m.ImageSubPath = "x" }),
		{"mounts.mount_options", ""}:                             inMount(func(m *M) { m.MountOptions = []string{"suid"} }),
		{"devices.container_path", ""}:                           inDevice(func(d *cri.Device) { d.ContainerPath = "null" }),
		{"devices.host_path", "absolute"}:                        inDevice(func(d *cri.Device) { d.HostPath = "dev/null" }),
		{"devices.host_path", "no-such-device"}:                  inDevice(func(d *cri.Device) { d.HostPath = "/dev/no-such-device" }),
		{"devices.permissions", ""}:                              inDevice(func(d *cri.Device) { d.Permissions = "rx" }),
		{"annotations", "gpu1"}:                                  in(func(c *C) { c.Annotations["cdi.k8s.io/x"] = "gpu1" }),
		{"log_path", "leaves"}:                                   in(func(c *C) { c.LogPath = "../0.log" }),
		{security + "capabilities.add_capabilities", ""}:         inCapabilities(func(c *cri.Capability) { c.AddCapabilities = []string{"NO_SUCH"} }),
		{security + "capabilities.drop_capabilities", ""}:        inCapabilities(func(c *cri.Capability) { c.DropCapabilities = []string{"NO_SUCH"} }),
		{security + "capabilities.add_ambient_capabilities", ""}: inCapabilities(func(c *cri.Capability) { c.AddAmbientCapabilities = []string{"NO_SUCH"} }),
		{security + "privileged", ""}:                            inSecurity(func(s *S) { s.Privileged = true }),
		{modes + "network", "NODE"}:                              inSecurity(func(s *S) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE }),
		{modes + "network", "unknown"}:                           inSecurity(func(s *S) { s.NamespaceOptions.Network = 9 }),
		{modes + "pid", ""}:                                      inSecurity(func(s *S) { s.NamespaceOptions.Pid = 9 }),
		{modes + "ipc", "NODE"}:                                  inSecurity(func(s *S) { s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE }),
		{modes + "ipc", "unknown"}:                               inSecurity(func(s *S) { s.NamespaceOptions.Ipc = 9 }),
		{modes + "target_id", "only"}:                            inSecurity(func(s *S) { s.NamespaceOptions.TargetId = "x" }),
		{modes + "target_id", "not found"}:                       in(target(noID)),
		{modes + "userns_options", ""}: inSecurity(func(s *S) {
			s.NamespaceOptions.UsernsOptions = &U{Mode: cri.NamespaceMode_POD, Uids: users65536, Gids: users65536}
		}),
		{security + "run_as_user", ""}: inSecurity(func(s *S) {
			s.RunAsUser, s.RunAsUsername = &cri.Int64Value{Value: 1}, "root"
		}),
		{security + "run_as_user.value", ""}: inSecurity(func(s *S) { s.RunAsUser = &cri.Int64Value{Value: -1} }),
		{security + "run_as_group", ""}:      inSecurity(func(s *S) { s.RunAsGroup = &cri.Int64Value{Value: 1} }),
		{security + "run_as_group.value", ""}: inSecurity(func(s *S) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1}, &cri.Int64Value{Value: -1}
		}),
		{security + "run_as_username", ""}:             inSecurity(func(s *S) { s.RunAsUsername = "nobody-of-that-name" }),
		{security + "supplemental_groups", ""}:         inSecurity(func(s *S) { s.SupplementalGroups = []int64{-1} }),
		{security + "supplemental_groups_policy", ""}:  inSecurity(func(s *S) { s.SupplementalGroupsPolicy = 9 }),
		{security + "seccomp.profile_type", ""}:        inSecurity(func(s *S) { s.Seccomp = kind(9, "") }),
		{security + "seccomp.localhost_ref", "empty"}:  inSecurity(func(s *S) { s.Seccomp = kind(2, "") }),
		{security + "seccomp.localhost_ref", "needs"}:  inSecurity(func(s *S) { s.Seccomp = kind(0, "x") }),
		{security + "apparmor.profile_type", ""}:       inSecurity(func(s *S) { s.Apparmor = kind(9, "") }),
		{security + "apparmor.localhost_ref", "empty"}: inSecurity(func(s *S) { s.Apparmor = kind(2, "") }),
		{security + "apparmor.localhost_ref", "needs"}: inSecurity(func(s *S) { s.Apparmor = kind(0, "x") }),
		{security + "apparmor_profile", ""}:            inSecurity(func(s *S) { s.ApparmorProfile = "x" }),
		{security + "seccomp_profile_path", ""}:        inSecurity(func(s *S) { s.Seccomp, s.SeccompProfilePath = nil, "x" }),
		{"CDI_devices.name", "gpu0"}:                   in(cdiDevices("gpu0")),
		{"CDI_devices.name", "gone"}:                   in(cdiDevices("vendor.test/gpu=gone")),
		{"stop_signal", ""}:                            in(func(c *C) { c.StopSignal = 99 }),
	}
	maps.Copy(containerTable, ofResources("linux.resources", func(r *cri.LinuxContainerResources) offence {
		return in(func(c *C) { c.Linux.Resources = r })
	}))
	return map[string]map[[2]string]offence{
		"PodSandboxConfig": podTable,
		"ContainerConfig":  containerTable,
		"Requests":         offencesByRequest(),
	}
}

// everywhere says of an offence that is made in each place of its kind that it need not be one there:
// pods have other limits than containers, and some unknown ids are a success.
func everywhere(key [2]string) bool {
	return strings.Contains(key[0], "oom_score_adj") || strings.Contains(key[0], "memory_") || key[1] == "not found" || key[1] == "two limits"
}

// Each field of FIELDS.md that is refused, or some of whose values are, is refused with the error
// that stands there; and each offence here stands there.
func TestFieldsThatAreRefused(t *testing.T) {
	if *peer != "" {
		t.Skip("the words are criod's")
	}
	ctx := spec(t)
	p := runPod(t, ctx)
	o := offender{t: t, ctx: ctx, pod: p, running: p.run(idle), image: image(t, "busybox:1")}
	all := offences()
	used := map[string]bool{}
	for _, r := range refusals(t) {
		var found []offence
		for key, commit := range all[r.table] {
			if key[0] == r.field && strings.Contains(r.words, key[1]) {
				found = append(found, commit)
				used[fmt.Sprint(r.table, key)] = true
			}
		}
		if len(found) != 1 {
			t.Errorf("%s: %s: %q: %d offences here, not one", r.table, r.field, r.words, len(found))
			continue
		}
		t.Run(r.table+"/"+r.field, func(t *testing.T) {
			one := o
			one.t = t
			short, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			one.ctx = short
			err := found[0](&one)
			if status.Code(err).String() != r.code || !strings.Contains(fmt.Sprint(err), r.words) {
				t.Errorf("got %v, want %s with %q", err, r.code, r.words)
			}
		})
	}
	for table, some := range all {
		for _, key := range slices.SortedFunc(maps.Keys(some), func(a, b [2]string) int { return strings.Compare(a[0]+a[1], b[0]+b[1]) }) {
			if !used[fmt.Sprint(table, key)] && !everywhere(key) {
				t.Errorf("%s: %v: FIELDS.md does not say that it is refused", table, key)
			}
		}
	}
	if running := o.running.status(); running.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("none of it was to end anything: %v", running)
	}
}

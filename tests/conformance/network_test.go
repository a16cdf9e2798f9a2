package conformance

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// web is a script that serves one page with this text on a port.
func web(port int, page string) string {
	return fmt.Sprintf("mkdir -p /www && echo '%s' > /www/index.html && exec httpd -f -p %d -h /www", page, port)
}

func TestNetworkOfThePodHasAnAddress(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	s := p.status()
	if net.ParseIP(s.GetNetwork().GetIp()) == nil {
		t.Fatalf("ip %q", s.GetNetwork().GetIp())
	}
	if mode := s.GetLinux().GetNamespaces().GetOptions().GetNetwork(); s.GetLinux().GetNamespaces().GetOptions() == nil || mode != cri.NamespaceMode_POD {
		t.Errorf("network mode %v", s.GetLinux())
	}
	c := p.run(idle)
	if out := c.exec("ip -o addr"); !strings.Contains(out, " "+s.Network.Ip+"/") {
		t.Errorf("the address %s is not in the pod: %s", s.Network.Ip, out)
	}
	if out := c.exec("ip -o addr show lo"); !strings.Contains(out, "127.0.0.1") || !strings.Contains(c.exec("ip link show lo"), "UP") {
		t.Errorf("no loopback: %s", out)
	}
	// The address stays the same, and stays in the record while the pod is ready.
	if again := p.status().GetNetwork().GetIp(); again != s.Network.Ip {
		t.Errorf("ip changed to %q", again)
	}
}

func TestNetworkIsReachableFromTheNodeAndSharedInThePod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	page := unique("page")
	p.run(web(8080, page))
	var got string
	eventually(t, "the page", func() bool {
		got, _ = get(ctx, "http://"+net.JoinHostPort(p.status().Network.Ip, "8080"))
		return got != ""
	})
	if strings.TrimSpace(got) != page {
		t.Errorf("got %q", got)
	}
	other := p.run(idle)
	if out := other.exec("wget -q -O - http://127.0.0.1:8080/"); strings.TrimSpace(out) != page {
		t.Errorf("from the other container: %q", out)
	}
}

func TestNetworkOfTwoPodsDiffers(t *testing.T) {
	ctx := spec(t)
	a, b := runPod(t, ctx), runPod(t, ctx)
	if a.status().Network.Ip == b.status().Network.Ip {
		t.Errorf("both have %s", a.status().Network.Ip)
	}
}

func TestNetworkOfTheNode(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, hostNetwork)
	s := p.status()
	if mode := s.GetLinux().GetNamespaces().GetOptions().GetNetwork(); mode != cri.NamespaceMode_NODE {
		t.Errorf("network mode %v", mode)
	}
	c := p.run(idle)
	own := must[string](t, "readlink")(os.Readlink("/proc/self/ns/net"))
	if got := strings.TrimSpace(c.exec("readlink /proc/self/ns/net")); got != own {
		t.Errorf("network namespace %s, the node's is %s", got, own)
	}
	host := must[string](t, "hostname")(os.Hostname())
	if got := strings.TrimSpace(c.exec("hostname")); got != host {
		t.Errorf("hostname %q, the node's is %q", got, host)
	}
	want := readFile(t, "/etc/hosts")
	if got := c.exec("cat /etc/hosts"); got != want {
		t.Errorf("/etc/hosts is %q, the node's is %q", got, want)
	}
}

func TestHostsFileOfTheKubeletWins(t *testing.T) {
	ctx := spec(t)
	for name, option := range map[string]func(*cri.PodSandboxConfig){"pod network": func(*cri.PodSandboxConfig) {}, "host network": hostNetwork} {
		t.Run(name, func(t *testing.T) {
			known(t)
			p := runPod(t, ctx, option)
			file := writeFile(t, t.TempDir()+"/hosts", "127.0.0.1 localhost of-the-kubelet\n")
			c := p.run(idle, func(c *cri.ContainerConfig) {
				c.Mounts = []*cri.Mount{{HostPath: file, ContainerPath: "/etc/hosts"}}
			})
			if got := c.exec("cat /etc/hosts"); got != readFile(t, file) {
				t.Errorf("/etc/hosts is %q", got)
			}
			if n := strings.TrimSpace(c.exec("grep -c ' /etc/hosts ' /proc/mounts")); n != "1" {
				t.Errorf("/etc/hosts is mounted %s times", n)
			}
		})
	}
}

func TestHostname(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.Hostname = "some-host" })
	c := p.run(idle)
	for _, command := range []string{"hostname", "cat /etc/hostname", "cat /proc/sys/kernel/hostname", "echo $HOSTNAME"} {
		if got := strings.TrimSpace(c.exec(command)); got != "some-host" {
			t.Errorf("%s: %q", command, got)
		}
	}
}

func TestDNSConfigIsInResolvConf(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.DnsConfig = &cri.DNSConfig{
			Servers:  []string{"10.0.0.10", "fd00::10"},
			Searches: []string{"ns.svc.cluster.local", "cluster.local"},
			Options:  []string{"ndots:5", "timeout:1"},
		}
	})
	got := strings.Fields(p.run(idle).exec("cat /etc/resolv.conf"))
	want := strings.Fields("search ns.svc.cluster.local cluster.local nameserver 10.0.0.10 nameserver fd00::10 options ndots:5 timeout:1")
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("resolv.conf: %q", got)
	}
}

func TestDNSConfigEmptyIsTheNodes(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.DnsConfig = nil })
	if got := p.run(idle).exec("cat /etc/resolv.conf"); got != readFile(t, "/etc/resolv.conf") {
		t.Errorf("resolv.conf: %q", got)
	}
}

// freePort finds a port of the node that nobody uses now.
func freePort(t *testing.T) int32 {
	t.Helper()
	l := must[net.Listener](t, "listen")(net.Listen("tcp", "0.0.0.0:0"))
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// nodeAddress is an address of the node that is not its loopback.
func nodeAddress(t *testing.T) string {
	t.Helper()
	for _, a := range must[[]net.Addr](t, "addresses")(net.InterfaceAddrs()) {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("the node has no address but its loopback")
	return ""
}

func TestHostPort(t *testing.T) {
	ctx := spec(t)
	port, page := freePort(t), unique("page")
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: port}}
	})
	p.run(web(8080, page))
	url := fmt.Sprintf("http://%s:%d/", nodeAddress(t), port)
	var got string
	eventually(t, url, func() bool { got, _ = get(ctx, url); return got != "" })
	if strings.TrimSpace(got) != page {
		t.Errorf("got %q", got)
	}
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	if _, err := get(ctx, url); err == nil {
		t.Error("the port still answers after the pod was stopped")
	}
}

// The kubelet lists every container port, most of them without a host port.
func TestHostPortZeroIsIgnored(t *testing.T) {
	ctx := spec(t)
	zero := func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{
			{Protocol: cri.Protocol_TCP, ContainerPort: 80}, {Protocol: cri.Protocol_UDP, ContainerPort: 53},
			{Protocol: cri.Protocol_SCTP, ContainerPort: 99},
		}
	}
	a, b := runPod(t, ctx, zero), runPod(t, ctx, zero)
	for _, p := range []*pod{a, b} {
		if p.status().State != cri.PodSandboxState_SANDBOX_READY {
			t.Error("not ready")
		}
	}
}

func TestHostPortOfAHostNetworkPodIsIgnored(t *testing.T) {
	ctx := spec(t)
	port, page := freePort(t), unique("page")
	p := runPod(t, ctx, hostNetwork, func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: port, HostPort: port}}
	})
	p.run(web(int(port), page))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	var got string
	eventually(t, url, func() bool { got, _ = get(ctx, url); return got != "" })
	if strings.TrimSpace(got) != page {
		t.Errorf("got %q", got)
	}
}

func TestSysctlOfThePod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
	})
	c := p.run(idle)
	for file, want := range map[string]string{"net/ipv4/ip_unprivileged_port_start": "77", "kernel/shm_rmid_forced": "1"} {
		if got := strings.TrimSpace(c.exec("cat /proc/sys/" + file)); got != want {
			t.Errorf("%s is %s", file, got)
		}
	}
}

func TestIPCIsSharedInThePod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	a, b := p.run(idle), p.run(idle)
	a.exec("echo shared > /dev/shm/file")
	if got := b.exec("cat /dev/shm/file"); got != "shared\n" {
		t.Errorf("got %q", got)
	}
	for _, kind := range []string{"ipc", "net", "uts"} {
		link := "readlink /proc/self/ns/" + kind
		own := must[string](t, "readlink")(os.Readlink("/proc/self/ns/" + kind))
		if x, y := a.exec(link), b.exec(link); x != y || strings.TrimSpace(x) == own {
			t.Errorf("%s: %q and %q, the node's is %q", kind, x, y, own)
		}
	}
	stranger := runPod(t, ctx).run(idle)
	if got := stranger.exec("ls /dev/shm"); got != "" {
		t.Errorf("another pod sees %q", got)
	}
}

func TestIPCOfTheNode(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	})
	own := must[string](t, "readlink")(os.Readlink("/proc/self/ns/ipc"))
	if got := strings.TrimSpace(p.run(idle).exec("readlink /proc/self/ns/ipc")); got != own {
		t.Errorf("ipc namespace %s, the node's is %s", got, own)
	}
}

func TestPidNamespaceOfTheContainer(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	a, b := p.run(idle), p.run(idle)
	if x, y := a.exec("readlink /proc/self/ns/pid"), b.exec("readlink /proc/self/ns/pid"); x == y {
		t.Errorf("both are in %q", x)
	}
	if got := a.exec("tr '\\0' ' ' < /proc/1/cmdline"); !strings.HasPrefix(got, "sh -c ") {
		t.Errorf("process 1 is %q", got)
	}
}

func TestPidNamespaceSharedInThePod(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, sharedPid)
	marker := unique("marker")
	p.run("MARK=" + marker + "; " + idle)
	b := p.run(idle)
	if got := b.exec("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"); !strings.Contains(got, "MARK="+marker) {
		t.Errorf("the neighbour is not seen: %q", got)
	}
	if mode := p.status().GetLinux().GetNamespaces().GetOptions().GetPid(); mode != cri.NamespaceMode_POD {
		t.Errorf("pid mode %v", mode)
	}
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
}

func TestPidNamespaceOfTheNode(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
	})
	own := must[string](t, "readlink")(os.Readlink("/proc/self/ns/pid"))
	if got := strings.TrimSpace(p.run(idle).exec("readlink /proc/self/ns/pid")); got != own {
		t.Errorf("pid namespace %s, the node's is %s", got, own)
	}
}

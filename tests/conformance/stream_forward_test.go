package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/spdystream/spdy"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
)

// overDialers runs a part with each way to forward ports, to one podserver.
func overDialers(t *testing.T, p *pod, part func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int)) {
	t.Helper()
	k, ports := p.serve()
	for _, d := range dialers {
		t.Run(d.name, func(t *testing.T) {
			known(t)
			wire{name: "port-forward " + d.name}.known(t)
			k := k.in(t)
			address := must[string](t, "PortForward")(forwardURL(k.ctx, k.pod.id))
			part(t, k.pod, must[httpstream.Dialer](t, d.name)(d.dial(clientConfig, address)), k, ports)
		})
	}
}

// connect opens a TCP connection that cannot outlast the test.
func connect(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn := must[net.Conn](t, "connect")(net.DialTimeout("tcp", address, patience))
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// openConnections counts the connections in the pod that are not at their end, from or to these ports. They
// are seen by a process in the pod.
func openConnections(k *container, ports map[string]int) int {
	k.t.Helper()
	ends := map[string]bool{}
	for _, port := range ports {
		ends[fmt.Sprintf("%04X", port)] = true
	}
	stdout, _, err := runtime.ExecSync(k.ctx, k.id, []string{"cat", "/proc/net/tcp", "/proc/net/tcp6"}, patience)
	ok(k.t, err, "ExecSync")
	n := 0
	for line := range strings.Lines(string(stdout)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] == "0A" || fields[3] == "06" || fields[3] == "07" {
			continue // a header, listens, or is over
		}
		_, from, _ := strings.Cut(fields[1], ":")
		_, to, _ := strings.Cut(fields[2], ":")
		if ends[from] || ends[to] {
			n++
		}
	}
	return n
}

// closedInThePod waits until no connection is left.
func closedInThePod(k *container, ports map[string]int) {
	k.t.Helper()
	eventually(k.t, "the end of the connections in the pod", func() bool { return openConnections(k, ports) == 0 })
}

func TestPortForward(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		f := forwardOver(t, dialer, ports["echo"])
		conn := connect(t, f.address)
		for _, word := range []string{"one", "two", "three"} {
			io.WriteString(conn, word)
			got := make([]byte, len(word))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
				t.Fatalf("%v, %q", err, got)
			}
		}
		conn.Close()
		closedInThePod(k, ports)
		f.stop()
		if err := <-f.result; err != nil {
			t.Error(err)
		}
		f.result <- nil
	})
}

// The end of what the client sends reaches the server, whose answer comes back.
func TestPortForwardHalfClose(t *testing.T) {
	ctx := spec(t)
	const size = 8 << 20
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		conn := connect(t, forwardOver(t, dialer, ports["sum"]).address)
		must[int64](t, "send")(io.Copy(conn, noise(3, size)))
		ok(t, conn.CloseWrite(), "half-close")
		got := string(must[[]byte](t, "receive")(io.ReadAll(conn)))
		if want := sumOf(noise(3, size)) + "\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		closedInThePod(k, ports)
	})
}

func TestPortForwardBothWaysAtOnce(t *testing.T) {
	ctx := spec(t)
	const size = 1 << 20
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		f := forwardOver(t, dialer, ports["echo"])
		var wg sync.WaitGroup
		for n := range 50 {
			conn := connect(t, f.address)
			wg.Go(func() {
				if _, err := io.Copy(conn, noise(uint64(n), size)); err != nil {
					t.Errorf("%d: send: %v", n, err)
				}
				conn.CloseWrite()
			})
			wg.Go(func() {
				if got, want := sumOf(conn), sumOf(noise(uint64(n), size)); got != want {
					t.Errorf("%d: got %s, want %s", n, got, want)
				}
			})
		}
		wg.Wait()
		closedInThePod(k, ports)
	})
}

func TestPortForwardManyShortConnections(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		f := forwardOver(t, dialer, ports["echo"])
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for n := range 250 {
					if err := ping(f.address, fmt.Sprintf("%d of %d", n, worker)); err != nil {
						t.Errorf("connection %d of %d: %v", n, worker, err)
						return
					}
				}
			})
		}
		wg.Wait()
		closedInThePod(k, ports)
	})
}

// ping has a word echoed over a connection of its own.
func ping(address, word string) error {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
		return fmt.Errorf("%w, %q", err, got)
	}
	return nil
}

func TestPortForwardByIPv6(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		if ports["six"] == 0 {
			t.Skip("no IPv6 in pods")
		}
		if err := ping(forwardOver(t, dialer, ports["six"]).address, "hello"); err != nil {
			t.Error(err)
		}
	})
}

func TestPortForwardOfTheHostsNetwork(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx, hostNetwork), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		if err := ping(forwardOver(t, dialer, ports["echo"]).address, "hello"); err != nil {
			t.Error(err)
		}
	})
}

// pair opens the two streams of a connection to a port.
func pair(conn httpstream.Connection, id int, port string) (data, fault httpstream.Stream, err error) {
	headers := http.Header{}
	headers.Set(core.StreamType, core.StreamTypeError)
	headers.Set(core.PortHeader, port)
	headers.Set(core.PortForwardRequestIDHeader, strconv.Itoa(id))
	if fault, err = conn.CreateStream(headers); err != nil {
		return nil, nil, err
	}
	fault.Close()
	headers.Set(core.StreamType, core.StreamTypeData)
	data, err = conn.CreateStream(headers)
	return data, fault, err
}

func dialStreams(t *testing.T, dialer httpstream.Dialer) httpstream.Connection {
	t.Helper()
	conn, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	ok(t, err, "dial")
	t.Cleanup(func() { conn.Close() })
	if protocol != portforward.PortForwardProtocolV1Name {
		t.Errorf("protocol %q", protocol)
	}
	return conn
}

// readAll reads to the end, but not for ever.
func readAll(t *testing.T, what string, r io.Reader) string {
	t.Helper()
	result := make(chan string, 1)
	go func() {
		data, err := io.ReadAll(r)
		if err != nil {
			data = append(data, " and "+err.Error()...)
		}
		result <- string(data)
	}()
	select {
	case got := <-result:
		return got
	case <-time.After(patience):
		t.Fatalf("%s has no end", what)
		return ""
	}
}

// A connection that cannot be made is told on its error stream, and harms no other.
func TestPortForwardToAPortThatNobodyListensOn(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		conn := dialStreams(t, dialer)
		good, _, err := pair(conn, 1, strconv.Itoa(ports["echo"]))
		ok(t, err, "streams")
		data, fault, err := pair(conn, 2, "1")
		ok(t, err, "streams")
		if text := readAll(t, "the error stream", fault); !strings.Contains(text, "refused") || !strings.Contains(text, "1") {
			t.Errorf("error %q", text)
		}
		if got := readAll(t, "the data stream", data); got != "" {
			t.Errorf("data %q", got)
		}
		data.Reset()
		io.WriteString(good, "hello")
		good.Close()
		if got := readAll(t, "the other connection", good); got != "hello" {
			t.Errorf("the other connection: %q", got)
		}
	})
}

func TestPortForwardToNoPort(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		conn := dialStreams(t, dialer)
		for n, port := range []string{"", "0", "-1", "65536", "http", "99999999999999999999"} {
			_, fault, err := pair(conn, n, port)
			if err != nil {
				continue // refused at once
			}
			if text := readAll(t, "the error stream", fault); text == "" {
				t.Errorf("port %q: no error", port)
			}
		}
		if err := ping(forwardOver(t, must[httpstream.Dialer](t, "dialer")(dialers[0].dial(clientConfig,
			must[string](t, "PortForward")(forwardURL(ctx, p.id)))), ports["echo"]).address, "hello"); err != nil {
			t.Error(err)
		}
	})
}

// A server that has said all that it has to say can still be sent to.
func TestPortForwardServerThatIsDoneFirst(t *testing.T) {
	ctx := spec(t)
	const size = 4 << 20
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		conn := dialStreams(t, dialer)
		data, _, err := pair(conn, 1, strconv.Itoa(ports["talk"]))
		ok(t, err, "streams")
		if got := readAll(t, "what the server says", data); got != "hello\n" {
			t.Errorf("got %q", got)
		}
		must[int64](t, "send")(io.Copy(data, noise(11, size)))
		data.Close()
		want := "talked " + sumOf(noise(11, size))
		eventually(t, "what the server got", func() bool { return strings.Contains(k.output(), want) })
		closedInThePod(k, ports)
	})
}

// A server that reads nothing holds up its own connection only.
func TestPortForwardDeafServer(t *testing.T) {
	ctx := spec(t)
	overDialers(t, runPod(t, ctx), func(t *testing.T, p *pod, dialer httpstream.Dialer, k *container, ports map[string]int) {
		// By hand: client-go cannot close a connection that is stuck.
		stuck, framer := rawSPDY(t, must[string](t, "PortForward")(forwardURL(ctx, p.id)), portforward.PortForwardProtocolV1Name)
		for n, kind := range []string{core.StreamTypeError, core.StreamTypeData} {
			ok(t, framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(2*n + 1), Headers: http.Header{
				core.StreamType: {kind}, core.PortHeader: {strconv.Itoa(ports["deaf"])}, core.PortForwardRequestIDHeader: {"0"},
			}}), "streams")
		}
		stuck.SetWriteDeadline(time.Now().Add(time.Second))
		for sent := 0; sent < 64<<20; sent += 1 << 20 {
			if framer.WriteFrame(&spdy.DataFrame{StreamId: 3, Data: make([]byte, 1<<20)}) != nil {
				break
			}
		}
		echo := forwardOver(t, dialer, ports["echo"])
		for range 20 {
			if err := ping(echo.address, "hello"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// ---- port-forward over WebSocket with channels: two for each port, data and errors

func TestPortForwardOverWebSocketChannels(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, ports := p.serve()
	for _, protocol := range []string{"", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"} {
		t.Run("protocol "+protocol, func(t *testing.T) {
			known(t)
			k := k.in(t)
			address := must[string](t, "PortForward")(forwardURL(ctx, p.id, int32(ports["echo"]), 1))
			c := dialChannels(t, address, protocol)
			// Each channel begins with its port.
			begun := map[byte]bool{}
			got := map[byte]string{}
			for len(begun) < 4 {
				channel, data := c.receive(t)
				if want := []int{ports["echo"], 1}[channel/2]; len(data) != 2 || int(binary.LittleEndian.Uint16(data)) != want {
					// The port that nobody listens on may be told of before the last of them.
					if begun[channel] {
						got[channel] += string(data)
						continue
					}
					t.Fatalf("channel %d begins with %x", channel, data)
				}
				begun[channel] = true
			}
			word := strings.Repeat("hello", 20000)
			c.send(t, 0, []byte(word))
			for len(got[0]) < len(word) || got[3] == "" {
				channel, data, err := c.next()
				if err != nil {
					t.Fatalf("%v; there is %d of %d bytes, errors %q", err, len(got[0]), len(word), got[3])
				}
				got[channel] += string(data)
			}
			if got[0] != word || got[1] != "" || got[2] != "" || !strings.Contains(got[3], "refused") {
				t.Errorf("got %.300q", fmt.Sprint(got))
			}
			c.Close()
			closedInThePod(k, ports)
		})
	}
}

func TestPortForwardOfPodsThatAreNotThere(t *testing.T) {
	ctx := spec(t)
	if _, err := forwardURL(ctx, noSuchID, 80); err == nil {
		t.Error("unknown pod: no error")
	}
	p := runPod(t, ctx)
	ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
	address, err := forwardURL(ctx, p.id, 80)
	if err != nil {
		return
	}
	// It may be found out late.
	_, _, err = must[httpstream.Dialer](t, "dialer")(dialers[0].dial(clientConfig, address)).Dial(portforward.PortForwardProtocolV1Name)
	if err == nil {
		t.Error("stopped pod: no error")
	}
}

// A pod that is stopped ends its forwards' connections.
func TestStopPodSandboxEndsForwardedConnections(t *testing.T) {
	ctx := spec(t)
	for _, d := range dialers {
		t.Run(d.name, func(t *testing.T) {
			known(t)
			wire{name: "port-forward " + d.name}.known(t)
			p := runPod(t, ctx)
			_, ports := p.serve()
			address := must[string](t, "PortForward")(forwardURL(ctx, p.id))
			dialer := must[httpstream.Dialer](t, d.name)(d.dial(clientConfig, address))
			conn := connect(t, forwardOver(t, dialer, ports["echo"]).address)
			io.WriteString(conn, "x")
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			ok(t, runtime.StopPodSandbox(ctx, p.id), "StopPodSandbox")
			if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection is still open: %v", err)
			}
		})
	}
}

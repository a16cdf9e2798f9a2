package conformance

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream/spdy"
	core "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
)

// rawUpgrade sends a request by hand, asks for 101, and leaves the rest to the caller.
func rawUpgrade(t *testing.T, address string, headers ...string) (duplex, *bufio.Reader) {
	t.Helper()
	u := must[*url.URL](t, "URL")(url.Parse(address))
	conn := connectStream(t, u.Host)
	request := "GET " + u.Path + " HTTP/1.1\r\nHost: " + u.Host + "\r\nConnection: Upgrade\r\n"
	must[int](t, "request")(io.WriteString(conn, request+strings.Join(headers, "\r\n")+"\r\n\r\n"))
	reader := bufio.NewReader(conn)
	answer := must[*http.Response](t, "answer")(http.ReadResponse(reader, nil))
	if answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answer %s", answer.Status)
	}
	return conn, reader
}

// rawSPDY upgrades to SPDY, for frames by hand.
func rawSPDY(t *testing.T, address, protocol string) (duplex, *spdy.Framer) {
	t.Helper()
	conn, reader := rawUpgrade(t, address, "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: "+protocol)
	return conn, must[*spdy.Framer](t, "framer")(spdy.NewFramer(conn, reader))
}

func rawWebSocket(t *testing.T, address, protocol string) (duplex, *bufio.Reader) {
	t.Helper()
	return rawUpgrade(t, address, "Upgrade: websocket", "Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: "+protocol)
}

// rawStreams opens streams of these types on a connection for exec or attach.
func rawStreams(t *testing.T, framer *spdy.Framer, kinds ...string) {
	t.Helper()
	for n, kind := range kinds {
		ok(t, framer.WriteFrame(&spdy.SynStreamFrame{
			StreamId: spdy.StreamId(2*n + 1), Headers: http.Header{core.StreamType: {kind}},
		}), "SYN_STREAM")
	}
}

// wantEnd asks the other side to end a connection, whatever it says before.
func wantEnd(t *testing.T, what string, conn net.Conn, r io.Reader) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: the connection stays open", what)
	}
}

func control(kind uint16, length uint32, payload string) string {
	head := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 0x8003), kind)
	return string(binary.BigEndian.AppendUint32(head, length)) + payload
}

func TestHostileGarbageAfterTheUpgrade(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	zeros := strings.Repeat("\x00", 1<<16)
	for name, garbage := range map[string]string{
		"noise":               string(must[[]byte](t, "noise")(io.ReadAll(noise(5, 1<<16)))),
		"ones":                strings.Repeat("\xff", 1<<16),
		"zeros":               zeros,
		"text":                strings.Repeat("GET / HTTP/1.1\r\n", 1000),
		"half a head":         "\x80\x03\x00",
		"huge SYN_STREAM":     control(1, 0xffffff, zeros),
		"empty SYN_STREAM":    control(1, 0, ""),
		"headers of no zlib":  control(1, 1010, "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"+zeros[:1000]),
		"huge SETTINGS":       control(4, 0xffffff, "\x7f\xff\xff\xff"+zeros),
		"unknown control":     control(77, 4, "1234"),
		"data for no stream":  "\x00\x00\x00\x63\x00\x00\x00\x04data",
		"window of no stream": control(9, 8, "\x00\x00\x00\x63\x7f\xff\xff\xff"),
		"window of nothing":   strings.Repeat(control(9, 8, "\x00\x00\x00\x01\x00\x00\x00\x00"), 1000),
		"resets":              strings.Repeat(control(3, 8, "\x00\x00\x00\x01\x00\x00\x00\x05"), 10000),
		"pings":               strings.Repeat(control(6, 4, "\x00\x00\x00\x01"), 10000),
		"going away":          strings.Repeat(control(7, 8, zeros[:8]), 1000),
	} {
		t.Run("SPDY "+name, func(t *testing.T) {
			known(t)
			for _, begun := range []bool{false, true} {
				address := must[string](t, "Exec")(execURL(ctx, k.id, allThree, "cat"))
				conn, reader := rawUpgrade(t, address, "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: "+v4)
				if begun {
					framer := must[*spdy.Framer](t, "framer")(spdy.NewFramer(conn, reader))
					rawStreams(t, framer, "error", "stdin", "stdout", "stderr")
				}
				go func() {
					io.WriteString(conn, garbage)
					conn.CloseWrite()
				}()
				wantEnd(t, name, conn, reader)
			}
			k.in(t).works()
		})
	}
	for name, garbage := range map[string]string{
		"noise":               string(must[[]byte](t, "noise")(io.ReadAll(noise(6, 1<<16)))),
		"unmasked":            "\x82\x03\x00hi",
		"reserved bits":       "\xf2\x83\x00\x00\x00\x00\x00hi",
		"reserved opcode":     "\x83\x83\x00\x00\x00\x00\x00hi",
		"huge length":         "\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00" + zeros,
		"negative length":     "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00" + zeros,
		"a gigabyte":          "\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00" + zeros,
		"long ping":           "\x89\xfe\x01\x00\x00\x00\x00\x00" + zeros[:256],
		"ping in fragments":   "\x09\x80\x00\x00\x00\x00",
		"continuation first":  "\x80\x83\x00\x00\x00\x00\x00hi",
		"no channel":          strings.Repeat("\x82\x80\x00\x00\x00\x00", 10000),
		"unknown channel":     strings.Repeat("\x82\x82\x00\x00\x00\x00\x63x", 10000),
		"window that is none": strings.Repeat("\x82\x85\x00\x00\x00\x00\x04{{{{", 1000),
		"endless fragments":   "\x02\x82\x00\x00\x00\x00\x00x" + strings.Repeat("\x00\x81\x00\x00\x00\x00x", 10000),
		"pings":               strings.Repeat("\x89\x80\x00\x00\x00\x00", 10000),
	} {
		t.Run("WebSocket "+name, func(t *testing.T) {
			known(t)
			address := must[string](t, "Exec")(execURL(ctx, k.id, terminal, "cat"))
			conn, reader := rawWebSocket(t, address, v4)
			go func() {
				io.WriteString(conn, garbage)
				conn.CloseWrite()
			}()
			wantEnd(t, name, conn, reader)
			k.in(t).works()
		})
	}
	k.well()
}

// Headers of a few kilobytes that unpack to many megabytes.
func TestHostileHeaderBomb(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for name, bomb := range map[string]http.Header{
		"long value": {core.StreamType: {strings.Repeat("a", 128<<20)}},
		"long name":  {strings.Repeat("a", 64<<20): {"x"}},
		"many values": func() http.Header {
			many := http.Header{}
			for n := range 200000 {
				many["h"+strconv.Itoa(n)] = []string{"x"}
			}
			return many
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			address := must[string](t, "Exec")(execURL(ctx, k.id, allThree, "cat"))
			conn, framer := rawSPDY(t, address, v4)
			conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			// It may end before all is sent.
			framer.WriteFrame(&spdy.SynStreamFrame{StreamId: 1, Headers: bomb})
			conn.CloseWrite()
			wantEnd(t, name, conn, conn)
			k.in(t).works()
		})
	}
	k.well()
}

func TestHostileTenThousandStreams(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, ports := p.serve()
	other := p.run(idle)
	for name, open := range map[string]struct {
		address, protocol string
		headers           func(n int) http.Header
	}{
		"exec": {
			must[string](t, "Exec")(execURL(ctx, other.id, allThree, "cat")), v4,
			func(int) http.Header { return http.Header{core.StreamType: {"stdout"}} },
		},
		"port-forward": {
			must[string](t, "PortForward")(forwardURL(ctx, p.id)), portforward.PortForwardProtocolV1Name,
			func(n int) http.Header {
				return http.Header{
					core.StreamType: {[]string{"error", "data"}[n%2]}, core.PortHeader: {strconv.Itoa(ports["echo"])},
					core.PortForwardRequestIDHeader: {strconv.Itoa(n / 2)},
				}
			},
		},
		"port-forward, halves only": {
			must[string](t, "PortForward")(forwardURL(ctx, p.id)), portforward.PortForwardProtocolV1Name,
			func(n int) http.Header {
				return http.Header{
					core.StreamType: {"data"}, core.PortHeader: {strconv.Itoa(ports["echo"])},
					core.PortForwardRequestIDHeader: {strconv.Itoa(n)},
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			conn, framer := rawSPDY(t, open.address, open.protocol)
			conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			for n := range 10000 {
				if framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(2*n + 1), Headers: open.headers(n)}) != nil {
					break
				}
			}
			other.in(t).works()
			conn.Close()
			other.in(t).works()
		})
	}
	other.well()
	closedInThePod(k, ports)
}

// Clients that never read what a busy command writes: others notice nothing, and the commands end
// with their clients.
func TestHostileExecThatIsNeverRead(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run("n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done")
	var stuck []net.Conn
	for range 3 {
		conn, framer := rawSPDY(t, must[string](t, "Exec")(execURL(ctx, k.id, outputs, "yes")), v4)
		rawStreams(t, framer, "error", "stdout", "stderr")
		stuck = append(stuck, conn)
		conn, _ = rawWebSocket(t, must[string](t, "Exec")(execURL(ctx, k.id, outputs, "yes")), v4)
		stuck = append(stuck, conn)
	}
	time.Sleep(500 * time.Millisecond)
	for range 3 {
		k.works()
		before := strings.Count(k.output(), "tick")
		eventually(t, "more of the log", func() bool { return strings.Count(k.output(), "tick") > before+1 })
	}
	for _, conn := range stuck {
		conn.Close()
	}
	k.well()
}

// A container that is asked to stop stops, though nobody reads what its commands write.
func TestHostileExecThatIsNeverReadDoesNotHoldAStop(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	k.trapped()
	conn, framer := rawSPDY(t, must[string](t, "Exec")(execURL(ctx, k.id, outputs, "yes")), v4)
	rawStreams(t, framer, "error", "stdout", "stderr")
	time.Sleep(300 * time.Millisecond)
	ok(t, runtime.StopContainer(ctx, k.id, 20), "StopContainer")
	k.wait()
	conn.Close()
}

// An attached client that never reads is none of the container's business, nor of its log's, nor
// of other clients'.
func TestHostileAttachThatIsNeverRead(t *testing.T) {
	ctx := spec(t)
	const lines = 2000
	// Not faster than a client that reads can follow.
	script := fmt.Sprintf("line=$(head -c 8000 /dev/zero | tr '\\0' x); read begin; echo got $begin; read go; "+
		"i=0; while [ $i -lt %d ]; do echo \"$i $line\"; i=$((i+1)); [ $((i %% 5)) = 0 ] && sleep 0.01; done; %s", lines, answers)
	k := runPod(t, ctx).run(script, withStdin)
	conn, framer := rawSPDY(t, must[string](t, "Attach")(attachURL(ctx, k.id, outputs)), v4)
	rawStreams(t, framer, "error", "stdout", "stderr")
	socket, _ := rawWebSocket(t, must[string](t, "Attach")(attachURL(ctx, k.id, outputs)), v4)
	reader := wires[0].attached(k, allThree)
	reader.say("go\n")
	eventually(t, "all of the log", func() bool {
		data, err := os.ReadFile(k.logPath())
		return err == nil && strings.Contains(string(data), fmt.Sprintf(" %d x", lines-1))
	})
	reader.say("still here\n")
	reader.stdout.wait(t, "got still here\n")
	wires[0].attached(k, allThree).hangUp()
	conn.Close()
	socket.Close()
	// Nothing of the log is missing.
	n := 0
	for line := range strings.Lines(k.output()) {
		if strings.HasPrefix(line, fmt.Sprintf("%d xxx", n)) && len(strings.TrimSpace(line)) == 8001+len(strconv.Itoa(n)) {
			n++
		}
	}
	if n != lines {
		t.Errorf("%d of %d lines in the log", n, lines)
	}
}

// Connections that never ask for anything leave room for those that do.
func TestHostileConnectionsWithoutARequest(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	host := streamHost(t, k)
	for n := range 200 {
		conn := connectStream(t, host)
		switch n % 3 {
		case 1:
			io.WriteString(conn, "GET /exec/x")
		case 2:
			io.WriteString(conn, "GET /exec/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n")
		}
	}
	for range 3 {
		k.works()
	}
	k.well()
}

// Whoever upgrades and then opens no stream is not waited for without end.
func TestHostileUpgradeWithoutStreams(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	conn, _ := rawSPDY(t, must[string](t, "Exec")(execURL(ctx, k.id, allThree, "cat")), v4)
	conn.SetDeadline(time.Now().Add(2 * patience))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
	k.well()
}

package conformance

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// channels speaks WebSocket with channels by hand: each message begins with its channel, as a byte,
// or as a digit with base64 behind it.
type channels struct {
	*websocket.Conn
	base64 bool
}

const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel
)

func dialChannels(t *testing.T, address, protocol string) *channels {
	t.Helper()
	// Each message is one frame, below this size.
	return dialChannelsWith(t, &websocket.Dialer{HandshakeTimeout: patience, WriteBufferSize: 256 << 10}, address, protocol)
}

func dialChannelsWith(t *testing.T, dialer *websocket.Dialer, address, protocol string) *channels {
	t.Helper()
	dialer.TLSClientConfig = rawTLS(t)
	if protocol != "" {
		dialer.Subprotocols = []string{protocol}
	}
	conn, answer, err := dialer.Dial("ws"+strings.TrimPrefix(address, "http"), nil)
	if err != nil {
		t.Fatalf("%q: %v (%v)", protocol, err, answer)
	}
	t.Cleanup(func() { conn.Close() })
	if conn.Subprotocol() != protocol {
		t.Errorf("protocol %q, want %q", conn.Subprotocol(), protocol)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	conn.SetWriteDeadline(time.Now().Add(patience))
	return &channels{conn, strings.Contains(protocol, "base64")}
}

func (c *channels) send(t *testing.T, channel byte, data []byte) {
	t.Helper()
	kind, message := websocket.BinaryMessage, append([]byte{channel}, data...)
	if c.base64 {
		kind, message = websocket.TextMessage, append([]byte{'0' + channel}, base64.StdEncoding.EncodeToString(data)...)
	}
	ok(t, c.WriteMessage(kind, message), "send")
}

// next gives the next message; an error is the connection's end.
func (c *channels) next() (byte, []byte, error) {
	kind, message, err := c.ReadMessage()
	switch {
	case err != nil:
		return 0, nil, err
	case len(message) == 0:
		return 0, nil, fmt.Errorf("a message without a channel")
	case c.base64 && kind == websocket.TextMessage && message[0] >= '0' && message[0] <= '9':
		data, err := base64.StdEncoding.DecodeString(string(message[1:]))
		return message[0] - '0', data, err
	case !c.base64 && kind == websocket.BinaryMessage:
		return message[0], message[1:], nil
	default:
		return 0, nil, fmt.Errorf("message of kind %d: %q", kind, message)
	}
}

func (c *channels) receive(t *testing.T) (byte, []byte) {
	t.Helper()
	channel, data, err := c.next()
	ok(t, err, "receive")
	return channel, data
}

// rest reads to the connection's end.
func (c *channels) rest(t *testing.T) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for {
		channel, data, err := c.next()
		if err != nil {
			// A close frame, or at least a clean end.
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseNoStatusReceived) && err != io.EOF &&
				!websocket.IsUnexpectedCloseError(err) {
				t.Errorf("the end: %v", err)
			}
			return got
		}
		got[channel] += string(data)
	}
}

func TestExecOverOldWebSocketProtocols(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for _, protocol := range []string{"", v1, "base64." + v1, v4, "v4.base64.channel.k8s.io"} {
		t.Run("protocol "+protocol, func(t *testing.T) {
			known(t)
			k := k.in(t)
			open := func(s streams, script string) *channels {
				return dialChannels(t, must[string](t, "Exec")(execURL(ctx, k.id, s, "sh", "-c", script)), protocol)
			}
			c := open(allThree, `read line; printf '%s\000\377' "$line"; printf err >&2; exit 5`)
			c.send(t, stdinChannel, []byte("some\tth"))
			c.send(t, stdinChannel, nil)
			c.send(t, stdinChannel, []byte("ing\n"))
			got := c.rest(t)
			if got[stdoutChannel] != "some\tthing\x00\xff" || got[stderrChannel] != "err" {
				t.Errorf("stdout %q, stderr %q", got[stdoutChannel], got[stderrChannel])
			}
			if strings.HasPrefix(protocol, "v4.") {
				wantStatus(t, got[errorChannel], "5")
			} else if !strings.Contains(got[errorChannel], "5") {
				t.Errorf("error %q", got[errorChannel])
			}

			got = open(outputs, "echo fine").rest(t)
			if got[stdoutChannel] != "fine\n" {
				t.Errorf("stdout %q", got[stdoutChannel])
			}
			if strings.HasPrefix(protocol, "v4.") {
				wantStatus(t, got[errorChannel], "")
			} else if got[errorChannel] != "" {
				t.Errorf("error %q", got[errorChannel])
			}

			c = open(terminal, "until stty size | grep '50 132'; do sleep 0.05; done; exit 0")
			c.send(t, resizeChannel, []byte(`{"Width":132,"Height":50}`))
			if got = c.rest(t); !strings.Contains(got[stdoutChannel], "50 132\r\n") {
				t.Errorf("stdout %q", got[stdoutChannel])
			}
			k.well()
		})
	}
}

// A message may come in frames, with a ping between them.
func TestExecWebSocketMessageInFragments(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	c := dialChannelsWith(t, &websocket.Dialer{WriteBufferSize: 1024},
		must[string](t, "Exec")(execURL(ctx, k.id, allThree, "head", "-c", "100000")), v4)
	ponged := false
	c.SetPongHandler(func(text string) error {
		ponged = text == "between"
		return nil
	})
	want := strings.Repeat("hello", 20000)
	message := must[io.WriteCloser](t, "message")(c.NextWriter(websocket.BinaryMessage))
	message.Write([]byte{stdinChannel})
	for part := 0; part < len(want); part += 20000 {
		// More than the buffer holds goes out at once.
		must[int](t, "send")(message.Write([]byte(want[part : part+20000])))
		if part == 0 {
			c.WriteControl(websocket.PingMessage, []byte("between"), time.Now().Add(patience))
		}
	}
	ok(t, message.Close(), "send")
	got := c.rest(t)
	if got[stdoutChannel] != want {
		t.Errorf("%d bytes: %q", len(got[stdoutChannel]), shorten(got[stdoutChannel]))
	}
	if !ponged {
		t.Error("no pong")
	}
}

// wantStatus asks for a Status as version 4 has it: of success, or with this exit code.
func wantStatus(t *testing.T, text, code string) {
	t.Helper()
	var status meta.Status
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	if code == "" {
		if status.Status != meta.StatusSuccess {
			t.Errorf("status %s", text)
		}
		return
	}
	if status.Status != meta.StatusFailure || status.Reason != "NonZeroExitCode" || status.Details == nil ||
		len(status.Details.Causes) != 1 || status.Details.Causes[0].Type != "ExitCode" || status.Details.Causes[0].Message != code {
		t.Errorf("status %s", text)
	}
}

// Version 4 came with the exit code as a number; all before say it in words.
func TestExecOverOldSPDYProtocols(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for _, w := range []wire{
		spdyWire(v3), spdyWire(v2), spdyWire(v1), spdyWire("v9.channel.k8s.io", v3, v2),
		spdyWire("v5.channel.k8s.io", v4, v3, v2, v1),
	} {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			k := k.in(t)
			stdout, stderr, err := w.run(k, "echo out; printf err >&2")
			if err != nil || stdout != "out\n" || stderr != "err" {
				t.Errorf("%v, stdout %q, stderr %q", err, stdout, stderr)
			}
			// The client of version 1 may end before it has read the error.
			if !strings.Contains(w.name, v4) && w.name != "SPDY "+v1 {
				if _, _, err := w.run(k, "exit 5"); err == nil || codeOf(err) != -1 || !strings.Contains(err.Error(), "5") {
					t.Errorf("exit code 5: %v", err)
				}
			}
			// Version 1 has no end of stdin, and 3 was the first with a window size.
			s := w.exec(k, allThree, "sh", "-c", "read line; echo got $line")
			s.say("hello\n")
			s.exits(0)
			if s.stdout.String() != "got hello\n" {
				t.Errorf("stdout %q", s.stdout)
			}
			k.well()
		})
	}
}

func TestExecOverUnknownProtocols(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for _, w := range []wire{spdyWire("v9.channel.k8s.io"), webSocketWire("v9.channel.k8s.io")} {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			k := k.in(t)
			if err := w.exec(k, outputs, "true").end(); err == nil {
				t.Error("no error")
			}
			k.works()
		})
	}
}

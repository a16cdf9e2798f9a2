package conformance

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

func TestExecURLIsOnTheLoopback(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	seen := map[string]bool{}
	for range 10 {
		address := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "true"))
		u := must[*url.URL](t, "URL")(url.Parse(address))
		if !net.ParseIP(u.Hostname()).IsLoopback() || u.Port() == "" || u.Port() == "0" {
			t.Errorf("URL %s", address)
		}
		token, is := strings.CutPrefix(u.Path, "/exec/")
		if !is || len(token) < 8 || strings.Contains(token, "/") || u.RawQuery != "" {
			t.Errorf("URL %s", address)
		}
		if seen[token] {
			t.Errorf("token %s comes again", token)
		}
		seen[token] = true
	}
	for prefix, get := range map[string]func() (string, error){
		"/attach/":      func() (string, error) { return attachURL(ctx, k.id, outputs) },
		"/portforward/": func() (string, error) { return forwardURL(ctx, k.pod.id) },
	} {
		u := must[*url.URL](t, "URL")(url.Parse(must[string](t, prefix)(get())))
		if !strings.HasPrefix(u.Path, prefix) {
			t.Errorf("URL %s", u)
		}
	}
}

// upgrade asks for SPDY, and gives the status and what came with it.
func upgrade(t *testing.T, method, address string, change func(http.Header)) (status int, body string) {
	t.Helper()
	req := must[*http.Request](t, address)(http.NewRequest(method, address, nil))
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "SPDY/3.1")
	req.Header.Set("X-Stream-Protocol-Version", v4)
	if change != nil {
		change(req.Header)
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: rawTLS(t),
	}}
	answer := must[*http.Response](t, address)(client.Do(req))
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		data, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
		body = string(data)
	}
	return answer.StatusCode, body
}

func TestStreamTokenWorksOnce(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			w.known(t)
			k := k.in(t)
			address := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "echo", "once"))
			s := w.open(t, address, outputs)
			s.exits(0)
			if s.stdout.String() != "once\n" {
				t.Errorf("stdout %q", s.stdout)
			}
			if status, body := upgrade(t, http.MethodPost, address, nil); status != http.StatusNotFound {
				t.Errorf("the second time: %d %q", status, body)
			}
			if err := w.open(t, address, outputs).end(); err == nil {
				t.Error("the second time: no error")
			}
		})
	}
}

func TestStreamTokenIsForOneKindOfRequest(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	address := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "true"))
	for _, kind := range []string{"attach", "portforward"} {
		status, body := upgrade(t, http.MethodPost, strings.Replace(address, "/exec/", "/"+kind+"/", 1), nil)
		if status == http.StatusSwitchingProtocols {
			t.Errorf("%s: %d %q", kind, status, body)
		}
	}
}

func TestStreamUnknownTokensAndPaths(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	address := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "true"))
	u := must[*url.URL](t, "URL")(url.Parse(address))
	token := strings.TrimPrefix(u.Path, "/exec/")
	base := u.Scheme + "://" + u.Host
	for _, path := range []string{
		"/exec/" + strings.Repeat("A", len(token)), "/exec/" + token[1:], "/exec/" + token + "x", "/exec/..%2f" + token,
		"/exec/%00", "/exec/" + strings.Repeat("x", 2000), "/attach/nosuch", "/portforward/nosuch",
		"/exec/", "/exec", "/", "/nosuch/" + token, "/EXEC/" + token, "/exec/" + token + "/more",
	} {
		if status, body := upgrade(t, http.MethodPost, base+path, nil); status != http.StatusNotFound {
			t.Errorf("%.60s: %d %q", path, status, body)
		}
	}
	if status, body := upgrade(t, http.MethodDelete, address, nil); status < 400 || status > 499 {
		t.Errorf("DELETE: %d %q", status, body)
	}
}

// Whoever asks without an upgrade, or for one that nobody knows, gets a clean answer.
func TestStreamRequestsWithoutAnUpgrade(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run(idle)
	for name, change := range map[string]func(http.Header){
		"nothing": func(h http.Header) {
			h.Del("Connection")
			h.Del("Upgrade")
		},
		"no Upgrade":       func(h http.Header) { h.Del("Upgrade") },
		"unknown Upgrade":  func(h http.Header) { h.Set("Upgrade", "h2c") },
		"unknown protocol": func(h http.Header) { h.Set("X-Stream-Protocol-Version", "v9.channel.k8s.io") },
		"WebSocket without a key": func(h http.Header) {
			h.Set("Upgrade", "websocket")
			h.Set("Sec-WebSocket-Version", "13")
		},
		"WebSocket of another version": func(h http.Header) {
			h.Set("Upgrade", "websocket")
			h.Set("Sec-WebSocket-Version", "7")
			h.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			for kind, get := range map[string]func() (string, error){
				"exec":         func() (string, error) { return execURL(ctx, k.id, outputs, "true") },
				"attach":       func() (string, error) { return attachURL(ctx, k.id, outputs) },
				"port-forward": func() (string, error) { return forwardURL(ctx, p.id, 80) },
			} {
				for _, method := range []string{http.MethodGet, http.MethodPost} {
					address := must[string](t, kind)(get())
					if status, body := upgrade(t, method, address, change); status < 400 || status > 499 || body == "" {
						t.Errorf("%s %s: %d %q", method, kind, status, body)
					}
				}
			}
		})
	}
	k.well()
}

func TestExecBadRequests(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	for name, s := range map[string]streams{
		"no stream":            {},
		"terminal with stderr": {stdin: true, stdout: true, stderr: true, tty: true},
		"terminal alone":       {tty: true},
	} {
		_, err := execURL(ctx, k.id, s, "true")
		wantInvalid(t, err, "Exec with "+name)
		_, err = attachURL(ctx, k.id, s)
		wantInvalid(t, err, "Attach with "+name)
	}
	_, err := execURL(ctx, "", outputs, "true")
	wantInvalid(t, err, "Exec without a container")
	_, err = attachURL(ctx, "", outputs)
	wantInvalid(t, err, "Attach without a container")
	_, err = forwardURL(ctx, "")
	wantInvalid(t, err, "PortForward without a pod")
	_, err = execURL(ctx, noSuchID, outputs, "true")
	wantCode(t, err, "Exec in an unknown container", codes.NotFound)
	_, err = attachURL(ctx, noSuchID, outputs)
	wantCode(t, err, "Attach to an unknown container", codes.NotFound)
	_, err = forwardURL(ctx, noSuchID)
	wantCode(t, err, "PortForward to an unknown pod", codes.NotFound)
}

func TestExecWithoutACommand(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	_, err := execURL(ctx, k.id, outputs)
	wantInvalid(t, err, "no command")
}

func TestExecInAContainerThatDoesNotRun(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	exited, _ := p.finish("exit 0")
	created := p.create(image(t, "busybox:1"), []string{"echo", "first words"})
	calls := map[string]func() (string, error){
		"Exec in one that has exited":   func() (string, error) { return execURL(ctx, exited.id, outputs, "true") },
		"Exec in one that is created":   func() (string, error) { return execURL(ctx, created.id, outputs, "true") },
		"Attach to one that has exited": func() (string, error) { return attachURL(ctx, exited.id, outputs) },
	}
	for what, call := range calls {
		// If the call takes it, the session may not.
		address, err := call()
		if err == nil {
			err = wires[0].open(t, address, outputs).end()
		}
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	// Who may attach early misses nothing.
	address, err := attachURL(ctx, created.id, outputs)
	if err != nil {
		return
	}
	s := wires[0].open(t, address, outputs)
	time.Sleep(200 * time.Millisecond)
	created.start()
	s.end()
	if s.stdout.String() != "first words\n" {
		t.Errorf("attached early: %q", s.stdout)
	}
}

// A container that ends between the call and the connection.
func TestExecInAContainerThatHasJustEnded(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			known(t)
			w.known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			k := p.run(idle)
			execAddress := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "true"))
			attachAddress := must[string](t, "Attach")(attachURL(ctx, k.id, outputs))
			ok(t, runtime.StopContainer(ctx, k.id, 0), "StopContainer")
			if err := w.open(t, execAddress, outputs).end(); err == nil {
				t.Error("Exec: no error")
			}
			// There is nothing to say about an attach that has come too late, but it ends.
			w.open(t, attachAddress, outputs).end()
		})
	}
}

// streamHost is where the streaming server listens.
func streamHost(t *testing.T, k *container) string {
	t.Helper()
	address := must[string](t, "Exec")(execURL(k.ctx, k.id, outputs, "true"))
	return must[*url.URL](t, "URL")(url.Parse(address)).Host
}

// Requests that no HTTP library would send: a clean error, or at least a clean end.
func TestStreamOddRequests(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	host := streamHost(t, k)
	for name, text := range map[string]string{
		"no HTTP":                "hello\r\n\r\n",
		"TLS":                    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 500),
		"HTTP/2":                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"binary":                 "\x00\x01\x02\xff\xfe\r\n\r\n",
		"HTTP/1.1 without Host":  "GET /exec/x HTTP/1.1\r\n\r\n",
		"HTTP/0.9":               "GET /exec/x\r\n\r\n",
		"no version":             "GET /exec/x HTTP/\r\n\r\n",
		"header without a colon": "GET /exec/x HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
		"a long line":            "GET /exec/" + strings.Repeat("x", 4<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"a long header":          "GET /exec/x HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 4<<20) + "\r\n\r\n",
		"many headers":           "GET /exec/x HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 500000) + "\r\n",
		"two lengths":            "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"half a request":         "GET /exec/x HTTP/1.1\r\nHost",
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			conn := connectStream(t, host)
			// An answer may come, and the connection end, before all is sent.
			go func() {
				io.WriteString(conn, text)
				conn.CloseWrite()
			}()
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil && answer.StatusCode < 400 {
				t.Errorf("answer %s", answer.Status)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("no answer and no end")
			}
		})
	}
	k.works()
	k.well()
}

// A head that comes byte by byte is not waited for without end, and others are served meanwhile.
func TestStreamSlowRequest(t *testing.T) {
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	conn := connectStream(t, streamHost(t, k))
	begin := time.Now()
	conn.SetDeadline(begin.Add(2 * patience))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, conn)
	}()
	io.WriteString(conn, "GET /exec/x HTTP/1.1\r\nHost: ")
	for alive := true; alive; {
		select {
		case <-ended:
			alive = false
		case <-time.After(100 * time.Millisecond):
			io.WriteString(conn, "x")
		}
	}
	if took := time.Since(begin); took > 2*patience-time.Second {
		t.Errorf("it was waited for")
	} else {
		t.Logf("ended after %v", took)
	}
	k.works()
}

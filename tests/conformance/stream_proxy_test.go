package conformance

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/proxy"
)

// refusal keeps what the proxy says when it cannot reach the streaming server.
type refusal struct{ t *testing.T }

func (r refusal) Error(w http.ResponseWriter, _ *http.Request, err error) {
	r.t.Errorf("proxy: %v", err)
	http.Error(w, err.Error(), http.StatusBadGateway)
}

// kubelet stands between clients and the streaming server as the kubelet does: the same handler with
// the same options. It gives the address of a client for one of the streaming server's.
func kubelet(t *testing.T) func(address string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		location, err := url.Parse(r.URL.Query().Get("to"))
		if err != nil || location.Host == "" {
			http.Error(w, "no address", http.StatusBadRequest)
			return
		}
		proxy.NewUpgradeAwareHandler(location, nil, false, true, refusal{t}).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return func(address string) string {
		return server.URL + "/exec/namespace/pod/container?" + url.Values{"to": {address}}.Encode()
	}
}

// What kubectl exec, attach and port-forward come through.
func TestStreamsThroughTheKubeletsProxy(t *testing.T) {
	if streamTLS != "" {
		t.Skip("it checks certificates against the system's roots and shows none")
	}
	ctx := spec(t)
	through := kubelet(t)
	overWires(t, ctx, func(t *testing.T, w wire, k *container) {
		address := must[string](t, "Exec")(execURL(k.ctx, k.id, allThree, "sh", "-c", "cat; echo err >&2; exit 7"))
		s := w.open(t, through(address), allThree)
		if w.halfCloses {
			s.say("through the proxy")
			s.stdin.Close()
			s.exits(7)
			if s.stdout.String() != "through the proxy" || s.stderr.String() != "err\n" {
				t.Errorf("stdout %q, stderr %q", s.stdout, s.stderr)
			}
		} else {
			s.say("through the proxy")
			s.stdout.wait(t, "through the proxy")
			s.hangUp()
			s.end()
		}

		address = must[string](t, "Exec")(execURL(k.ctx, k.id, terminal, "sh"))
		s = w.open(t, through(address), terminal)
		s.say("echo $((6 * 7)); exit 5\n")
		s.exits(5)
		if err := s.stdout.saw("42", patience); err != nil {
			t.Error(err)
		}
	})

	p := runPod(t, ctx)
	_, ports := p.serve()
	for _, d := range dialers {
		t.Run("port-forward "+d.name, func(t *testing.T) {
			known(t)
			wire{name: "port-forward " + d.name}.known(t)
			address := must[string](t, "PortForward")(forwardURL(ctx, p.id))
			f := forwardOver(t, must[httpstream.Dialer](t, d.name)(d.dial(clientConfig, through(address))), ports["echo"])
			conn := connect(t, f.address)
			word := "through the proxy"
			io.WriteString(conn, word)
			got := make([]byte, len(word))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
				t.Errorf("%v, %q", err, got)
			}
			conn.Close()
			f.stop()
			if err := <-f.result; err != nil {
				t.Error(err)
			}
			f.result <- nil
		})
	}
}

package conformance

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// streamTLS is the folder with the keys of the streaming server and its clients, as cmd/certs makes
// it; empty without TLS.
var streamTLS = os.Getenv("CRI_STREAM_TLS")

func init() {
	if streamTLS != "" {
		clientConfig = tlsConfig(streamTLS)
	}
}

func tlsConfig(dir string) *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{
		CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client.key"),
	}}
}

// rawTLS is the same for clients that are made by hand; nil without TLS.
func rawTLS(t *testing.T) *tls.Config {
	t.Helper()
	return must[*tls.Config](t, "TLS")(rest.TLSConfigFor(clientConfig))
}

// duplex is a connection one of whose directions can be ended.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// connectStream opens a connection to the streaming server, with TLS where it has that.
func connectStream(t *testing.T, host string) duplex {
	t.Helper()
	conn := connect(t, host)
	config := rawTLS(t)
	if config == nil {
		return conn
	}
	config.ServerName, _, _ = net.SplitHostPort(host)
	return tls.Client(conn, config)
}

// certs makes another authority, with certificates for both sides.
func certs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("go", "run", "./cmd/certs", dir).CombinedOutput(); err != nil {
		t.Fatalf("certs: %v: %s", err, out)
	}
	return dir
}

func needTLS(t *testing.T) {
	t.Helper()
	if streamTLS == "" {
		t.Skip("streams are without TLS")
	}
}

func TestStreamTLSRefusesStrangers(t *testing.T) {
	needTLS(t)
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	other := certs(t)
	none := tlsConfig(streamTLS)
	none.CertFile, none.KeyFile = "", ""
	stranger := tlsConfig(streamTLS)
	stranger.CertFile, stranger.KeyFile = filepath.Join(other, "client.pem"), filepath.Join(other, "client.key")
	for name, config := range map[string]*rest.Config{"no certificate": none, "another authority's": stranger} {
		for _, w := range wires {
			address := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "true"))
			own := w
			own.executor = func(_ *rest.Config, address string) (remotecommand.Executor, error) {
				return w.executor(config, address)
			}
			if err := own.open(t, address, outputs).end(); err == nil {
				t.Errorf("%s, %s: no error", name, w.name)
			}
			// The token is still good.
			w.open(t, address, outputs).exits(0)
		}
	}
	// Without TLS there is nothing to be had.
	address := must[string](t, "Exec")(execURL(ctx, k.id, outputs, "true"))
	u := must[*url.URL](t, "URL")(url.Parse(address))
	if u.Scheme != "https" {
		t.Errorf("URL %s", address)
	}
	u.Scheme = "http"
	if answer, err := http.Get(u.String()); err == nil && answer.StatusCode < 400 {
		t.Errorf("without TLS: %s", answer.Status)
	}
}

func TestStreamTLSVersions(t *testing.T) {
	needTLS(t)
	ctx := spec(t)
	k := runPod(t, ctx).run(idle)
	host := streamHost(t, k)
	pair := must[tls.Certificate](t, "client")(tls.LoadX509KeyPair(filepath.Join(streamTLS, "client.pem"), filepath.Join(streamTLS, "client.key")))
	for version, good := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", host, &tls.Config{
			InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, Certificates: []tls.Certificate{pair},
		})
		if err == nil {
			conn.Close()
		}
		if (err == nil) != good {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

// Certificate, key and authority are read again when their files change.
func TestStreamTLSFollowsItsFiles(t *testing.T) {
	needTLS(t)
	// Not beside other specs: they would use the wrong keys.
	ctx := within(t, 2*patience)
	k := runPod(t, ctx).run(idle)
	k.works()
	before := wires[0].exec(k, allThree, "cat")
	before.say("before\n")
	before.stdout.wait(t, "before\n")
	if out, err := exec.Command("go", "run", "./cmd/certs", streamTLS).CombinedOutput(); err != nil {
		t.Fatalf("certs: %v: %s", err, out)
	}
	authority, _ := pem.Decode([]byte(readFile(t, filepath.Join(streamTLS, "ca.pem"))))
	roots := x509.NewCertPool()
	roots.AddCert(must[*x509.Certificate](t, "ca.pem")(x509.ParseCertificate(authority.Bytes)))
	pair := must[tls.Certificate](t, "client")(tls.LoadX509KeyPair(filepath.Join(streamTLS, "client.pem"), filepath.Join(streamTLS, "client.key")))
	host := streamHost(t, k)
	eventually(t, "the new certificate", func() bool {
		conn, err := tls.Dial("tcp", host, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}})
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	k.works()
	before.say("after\n")
	before.stdout.wait(t, "after\n")
	before.stdin.Close()
	before.exits(0)
}

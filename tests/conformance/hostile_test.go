package conformance

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stillWorks shows that what came before did no harm: a good image runs.
func stillWorks(t *testing.T, p *pod) {
	t.Helper()
	p = &pod{t: t, ctx: p.ctx, id: p.id, cfg: p.cfg}
	if k, s := p.finish("cat /etc/passwd > /dev/null && echo fine"); s.ExitCode != 0 || k.output() != "fine\n" {
		t.Errorf("exit code %d, output %q", s.ExitCode, k.output())
	}
}

func TestHostileImagesAreRefused(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for _, name := range []string{
		"digest", "config-digest", "missing", "dotdot", "hardlink", "hardlink-symlink", "diff-id", "count",
		"size", "truncated", "garbage", "config", "platform",
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			image := ref("hostile-" + name + ":1")
			for range 2 {
				_, err := images.PullImage(ctx, named(image), nil, nil)
				if err == nil {
					removeImageAfter(t, image)
				}
				wantPullError(t, image, err)
			}
			stillWorks(t, p)
		})
	}
	noEscape(t)
}

// noEscape looks for what the hostile layers would have written on the node.
func noEscape(t *testing.T) {
	t.Helper()
	found := must[[]string](t, "glob")(filepath.Glob("/tmp/criod-escape*"))
	for _, path := range found {
		if path != victim {
			t.Errorf("written outside of the root: %s", path)
			os.Remove(path)
		}
	}
}

// victim is a file of the node that a hostile whiteout would remove.
const victim = "/tmp/criod-escape-victim"

// What is refused is fine, and so is what stays inside the container's root.
func TestHostileImagesStayInside(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	writeFile(t, victim, "alive\n")
	t.Cleanup(func() { os.Remove(victim) })
	for _, name := range []string{"absolute", "symlink", "symlink-layers", "symlink-file", "whiteout", "whiteout-climb"} {
		t.Run(name, func(t *testing.T) {
			known(t)
			image := ref("hostile-" + name + ":1")
			_, err := images.PullImage(ctx, named(image), nil, nil)
			if err != nil {
				wantPullError(t, image, err)
			} else {
				removeImageAfter(t, image)
				cfg := p.config(image, []string{"true"})
				p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
				if k, err := p.tryCreate(cfg); err == nil {
					if err := runtime.StartContainer(ctx, k.id); err == nil {
						k.wait()
					}
					ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
				}
			}
			noEscape(t)
			if !exists(victim) {
				t.Error("a file of the node was removed")
			}
			stillWorks(t, p)
		})
	}
}

// Some MB that unpack to 10 GiB: refused before the disk is full of it, and nothing of it stays.
func TestHostileBombIsRefused(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	name := ref("hostile-bomb:1")
	_, err := images.PullImage(ctx, named(name), nil, nil)
	if err == nil {
		removeImageAfter(t, name)
	}
	wantPullError(t, name, err)
	stillWorks(t, p)
}

// odd serves the test registry with a change to what it answers.
func odd(t *testing.T, change func(http.Handler) http.HandlerFunc) string {
	t.Helper()
	target := &url.URL{Scheme: "http", Host: registry}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	server := httptest.NewServer(change(proxy))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

func TestPullImageFromOddRegistries(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for name, change := range map[string]func(http.Handler) http.HandlerFunc{
		"answers 500": func(http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }
		},
		"answers 403": func(http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 403) }
		},
		"answers nonsense": func(http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello</html>") }
		},
		"sends a manifest without end": func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				for n := 0; n < 4096; n++ {
					if _, err := fmt.Fprintf(w, "%65536s", " "); err != nil {
						return
					}
				}
			}
		},
		"always cuts blobs": func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if !isBlob(r) {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Length", "100000")
				fmt.Fprint(w, "only this")
				panic(http.ErrAbortHandler)
			}
		},
		"redirects in circles": func(next http.Handler) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, 307) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			known(t)
			image := odd(t, change) + "/test/single-10:1"
			_, err := images.PullImage(ctx, named(image), nil, nil)
			if err == nil {
				removeImageAfter(t, image)
			}
			wantPullError(t, image, err)
			stillWorks(t, p)
		})
	}
}

// A connection that is cut once costs a second try, not the pull.
func TestPullImageGoesOnAfterACut(t *testing.T) {
	ctx := spec(t)
	var cuts atomic.Int32
	address := odd(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if isBlob(r) && r.Method == http.MethodGet && cuts.Add(1) == 1 {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		}
	})
	name := address + "/test/single-14:1"
	_, err := images.PullImage(ctx, named(name), nil, nil)
	ok(t, err, "PullImage")
	ok(t, images.RemoveImage(ctx, named(name)), "RemoveImage")
}

func TestPullImageFollowsRedirectsOfBlobsWithoutTheCredentials(t *testing.T) {
	ctx := spec(t)
	var leaked atomic.Bool
	elsewhere := odd(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				leaked.Store(true)
			}
			next.ServeHTTP(w, r)
		}
	})
	address := odd(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "someone" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="odd"`)
				http.Error(w, "who?", 401)
			} else if isBlob(r) {
				// Another name for the loopback, so that it is another host.
				http.Redirect(w, r, "http://"+strings.Replace(elsewhere, "127.0.0.1", "localhost", 1)+r.URL.Path, 307)
			} else {
				r.Header.Del("Authorization")
				next.ServeHTTP(w, r)
			}
		}
	})
	name := address + "/test/single-11:1"
	_, err := images.PullImage(ctx, named(name), &cri.AuthConfig{Username: "someone", Password: "secret"}, nil)
	ok(t, err, "PullImage")
	ok(t, images.RemoveImage(ctx, named(name)), "RemoveImage")
	if leaked.Load() {
		t.Error("the credentials went to the host of the redirect")
	}
}

func TestPullImageWithABearerToken(t *testing.T) {
	ctx := spec(t)
	var address string
	var asked atomic.Int32
	address = odd(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				asked.Add(1)
				// By GET the user comes in a header, by POST (OAuth 2) in the form.
				user, password, _ := r.BasicAuth()
				if r.Method == http.MethodPost {
					user, password = r.PostFormValue("username"), r.PostFormValue("password")
				}
				scope := r.FormValue("scope")
				if user != "someone" || password != "secret" || r.FormValue("service") != "odd service" || !strings.Contains(scope, "repository:test/single-13:pull") {
					http.Error(w, "no", 401)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprint(w, `{"token": "the-token", "access_token": "the-token", "expires_in": 60}`)
				return
			}
			if r.Header.Get("Authorization") != "Bearer the-token" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="odd service",scope="repository:test/single-13:pull"`, r.Host))
				http.Error(w, "who?", 401)
				return
			}
			r.Header.Del("Authorization")
			next.ServeHTTP(w, r)
		}
	})
	name := address + "/test/single-13:1"
	for _, auth := range []*cri.AuthConfig{nil, {Username: "someone", Password: "wrong"}} {
		_, err := images.PullImage(ctx, named(name), auth, nil)
		wantPullError(t, name, err)
	}
	for _, auth := range []*cri.AuthConfig{
		{Username: "someone", Password: "secret"},
		{Auth: base64.StdEncoding.EncodeToString([]byte("someone:secret"))},
	} {
		_, err := images.PullImage(ctx, named(name), auth, nil)
		ok(t, err, "PullImage")
		ok(t, images.RemoveImage(ctx, named(name)), "RemoveImage")
	}
	if asked.Load() < 2 {
		t.Errorf("a token was asked for %d times", asked.Load())
	}
}

// A registry that falls silent costs its own pull, and nobody else's.
func TestPullImageFromAStalledRegistryHoldsUpNothingElse(t *testing.T) {
	ctx := spec(t)
	release, reached := make(chan struct{}), make(chan struct{}, 100)
	address := odd(t, func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if isBlob(r) {
				reached <- struct{}{}
				<-release
			}
			next.ServeHTTP(w, r)
		}
	})
	t.Cleanup(func() { close(release) })
	name := address + "/test/single-15:1"
	short, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := images.PullImage(short, named(name), nil, nil)
		done <- err
	}()
	select {
	case <-reached:
	case err := <-done:
		t.Fatalf("PullImage: %v", err)
	}
	if s := imageStatus(t, name); s != nil {
		t.Errorf("half an image: %v", s)
	}
	take(t, ref("single-16:1"))
	stillWorks(t, runPod(t, ctx))
	cancel()
	if err := <-done; err == nil {
		t.Error("it was pulled")
	}
	// A pull that is still under way inside, and succeeds later, is not left behind.
	removeImageAfter(t, name)
}

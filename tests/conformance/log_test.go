package conformance

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
)

const chunk = 16 << 10

func TestLogFormat(t *testing.T) {
	ctx := spec(t)
	begin := time.Now().Add(-time.Second)
	k, _ := runPod(t, ctx).finish("echo out; sleep 0.2; echo err >&2; sleep 0.2; echo; printf ' spaced  \\tä\\r\\n'; printf last")
	records := readLog(t, k.logPath())
	want := []record{{stream: "stdout", text: "out"}, {stream: "stderr", text: "err"}, {stream: "stdout", text: ""},
		{stream: "stdout", text: " spaced  \tä\r"}, {stream: "stdout", text: "last"}}
	if len(records) != len(want) {
		t.Fatalf("%d records: %v", len(records), records)
	}
	last := begin
	for n, r := range records {
		if r.stream != want[n].stream || r.text != want[n].text || r.tag != "F" {
			t.Errorf("record %d is %v, want %v", n, r, want[n])
		}
		if r.time.Before(last) {
			t.Errorf("record %d is older than the one before", n)
		}
		last = r.time
	}
	if last.After(time.Now()) {
		t.Errorf("the last record is from %v", last)
	}
}

// A partial record only where a line is longer than 16 KiB.
func TestLogOfLongLines(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	for _, size := range []int{16000, chunk - 1, 40000, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			known(t)
			p := &pod{t: t, ctx: ctx, id: p.id, cfg: p.cfg}
			k, _ := p.finish(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo after", size))
			records := readLog(t, k.logPath())
			if got, want := text(t, records, "stdout"), strings.Repeat("x", size)+"\nafter\n"; got != want {
				t.Errorf("%d bytes instead of %d", len(got), len(want))
			}
			for n, r := range records {
				if len(r.text) > chunk {
					t.Errorf("record %d has %d bytes", n, len(r.text))
				}
				if r.tag == "P" && size <= chunk {
					t.Errorf("record %d of %d bytes is partial", n, len(r.text))
				}
			}
			if whole := size/chunk + 2; size > chunk && len(records) > whole+1 {
				t.Errorf("%d records for %d bytes", len(records), size)
			}
		})
	}
}

func TestLogOfALineThatIsWrittenSlowlyIsOneRecord(t *testing.T) {
	ctx := spec(t)
	k, _ := runPod(t, ctx).finish("printf a; sleep 0.3; printf b; sleep 0.3; echo c")
	records := readLog(t, k.logPath())
	if len(records) != 1 || records[0].text != "abc" || records[0].tag != "F" {
		t.Errorf("records %v", records)
	}
}

func TestLogOfAllBytes(t *testing.T) {
	ctx := spec(t)
	script := `i=0; while [ $i -lt 256 ]; do [ $i -eq 10 ] || printf "\\$(printf %03o $i)"; i=$((i+1)); done; echo`
	k, _ := runPod(t, ctx).finish(script)
	var want []byte
	for i := range 256 {
		if i != '\n' {
			want = append(want, byte(i))
		}
	}
	if got := k.output(); got != string(want)+"\n" {
		t.Errorf("got %q", got)
	}
}

func checkNumbered(t *testing.T, got string, n int) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	if len(lines) != n {
		t.Errorf("%d lines instead of %d", len(lines), n)
	}
	for i, line := range lines {
		if want := fmt.Sprintf("line-%d", i+1); line != want {
			t.Fatalf("line %d is %q, want %q", i+1, shorten(line), want)
		}
	}
}

// Whoever sees EXITED may read the log once and be done.
func TestLogIsWholeBeforeExitedIsSeen(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	const n = 30_000
	for range 5 {
		k := p.run(seqScript(n))
		for k.status().State != cri.ContainerState_CONTAINER_EXITED {
			if ctx.Err() != nil {
				t.Fatal("no end")
			}
		}
		checkNumbered(t, k.output(), n)
	}
}

// seqScript writes numbered lines; busybox' seq has no format.
func seqScript(n int) string { return fmt.Sprintf("seq 1 %d | sed 's/^/line-/'", n) }

func TestLogIsWholeWhenAChildKeepsThePipeOpen(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, sharedPid)
	k, s := p.finish("sleep 100 & echo done; exit 6")
	if s.ExitCode != 6 || k.output() != "done\n" {
		t.Errorf("exit code %d, output %q", s.ExitCode, k.output())
	}
}

func TestLogPathIsMissingInTheConfig(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx, func(c *cri.PodSandboxConfig) { c.LogDirectory = "" })
	k := p.create(image(t, "busybox:1"), []string{"echo", "nobody reads this"}, func(c *cri.ContainerConfig) { c.LogPath = "" })
	k.start()
	if s := k.wait(); s.ExitCode != 0 {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

func TestLogReaderOfTheKubelet(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	const n = 2000
	k := p.run("sleep 0.5; " + seqScript(n) + "; sleep 0.5; echo error >&2; printf unfinished")
	var stdout, stderr bytes.Buffer
	opts := &logs.LogOptions{Follow: true}
	ok(t, logs.ReadLogs(ctx, k.logPath(), k.id, opts, runtime, &stdout, &stderr), "ReadLogs following")
	text, found := strings.CutSuffix(stdout.String(), "unfinished")
	if !found {
		text, found = strings.CutSuffix(stdout.String(), "unfinished\n")
	}
	if !found {
		t.Errorf("the end is %q", shorten(stdout.String()))
	}
	checkNumbered(t, text, n)
	if stderr.String() != "error\n" {
		t.Errorf("stderr %q", stderr.String())
	}
	tail := int64(3)
	stdout.Reset()
	opts = &logs.LogOptions{TailLines: &tail}
	ok(t, logs.ReadLogs(ctx, k.logPath(), k.id, opts, runtime, &stdout, io.Discard), "ReadLogs of the tail")
	if got := strings.TrimSuffix(stdout.String(), "\n"); got != fmt.Sprintf("line-%d\nunfinished", n) {
		t.Errorf("tail %q", got)
	}
}

func TestReopenContainerLogLosesNothing(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	const n = 60_000
	k := p.run("i=0; while [ $i -lt 60 ]; do seq $((i*1000+1)) $((i*1000+1000)) | sed 's/^/line-/'; i=$((i+1)); sleep 0.02; done")
	var files []string
	for turn := 0; k.status().State == cri.ContainerState_CONTAINER_RUNNING && turn < 40; turn++ {
		rotated := fmt.Sprintf("%s.%03d", k.logPath(), turn)
		ok(t, os.Rename(k.logPath(), rotated), "rename")
		files = append(files, rotated)
		if err := runtime.ReopenContainerLog(ctx, k.id); err != nil {
			// It may have ended between the two.
			if s := k.status(); s.State == cri.ContainerState_CONTAINER_RUNNING {
				t.Fatalf("ReopenContainerLog: %v", err)
			}
			break
		}
		if !exists(k.logPath()) {
			t.Fatal("the answer came before the new file")
		}
		time.Sleep(20 * time.Millisecond)
	}
	k.wait()
	if exists(k.logPath()) {
		files = append(files, k.logPath())
	}
	if len(files) < 4 {
		t.Fatalf("only %d files", len(files))
	}
	var all strings.Builder
	for _, file := range files {
		// Each file is made of whole records, and each record is a whole line.
		for _, r := range readLog(t, file) {
			if r.tag != "F" {
				t.Errorf("%s: a partial record %q", file, r.text)
			}
			all.WriteString(r.text + "\n")
		}
	}
	checkNumbered(t, all.String(), n)
}

func TestReopenContainerLogCanBeRepeated(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("echo first; trap 'exit 0' TERM; while [ ! -e /go ]; do sleep 0.05; done; echo second")
	eventually(t, "the first line", func() bool { return k.output() == "first\n" })
	for range 3 {
		ok(t, runtime.ReopenContainerLog(ctx, k.id), "ReopenContainerLog")
	}
	k.exec("touch /go")
	k.wait()
	if got := k.output(); got != "first\nsecond\n" {
		t.Errorf("got %q", got)
	}
}

// If the answer to a reopen was lost, the kubelet puts the old file back over the new one.
func TestReopenContainerLogWhoseFileWasPutBack(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k := p.run("echo first; trap 'exit 0' TERM; while [ ! -e /go ]; do sleep 0.05; done; echo second")
	eventually(t, "the first line", func() bool { return k.output() == "first\n" })
	ok(t, os.Rename(k.logPath(), k.logPath()+".old"), "rename")
	ok(t, runtime.ReopenContainerLog(ctx, k.id), "ReopenContainerLog")
	ok(t, os.Rename(k.logPath()+".old", k.logPath()), "rename back")
	k.exec("touch /go")
	k.wait()
	if got := k.output(); got != "first\nsecond\n" {
		t.Errorf("got %q", got)
	}
}

func TestReopenContainerLogErrors(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	wantCode(t, runtime.ReopenContainerLog(ctx, noSuchID), "unknown container", codes.NotFound)
	exited, _ := p.finish("exit 0")
	created := p.create(image(t, "busybox:1"), []string{"true"})
	for _, k := range []*container{exited, created} {
		if err := runtime.ReopenContainerLog(ctx, k.id); err == nil {
			t.Error("a container that does not run has no log to open")
		}
	}
}

// The kubelet gzips, counts and deletes what has such names.
func TestNothingElseIsWrittenBesideTheLog(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	k, _ := p.finish("echo x")
	ok(t, runtime.RemoveContainer(ctx, k.id), "RemoveContainer")
	for _, dir := range []string{p.cfg.LogDirectory, p.cfg.LogDirectory + "/" + k.cfg.Metadata.Name} {
		entries := must[[]os.DirEntry](t, "read")(os.ReadDir(dir))
		if len(entries) != 1 {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
}

func TestStartContainerAgainOnceItsLogCanBeOpened(t *testing.T) {
	ctx := spec(t)
	p := runPod(t, ctx)
	c := p.create(image(t, "busybox:1"), []string{"echo", "hello"})
	path := c.logPath()
	ok(t, os.Mkdir(path, 0o755), "mkdir")
	if err := runtime.StartContainer(ctx, c.id); err == nil || !strings.Contains(err.Error(), "log") {
		t.Errorf("started with a folder as its log: %v", err)
	}
	ok(t, os.Remove(path), "rmdir")
	c.start()
	c.wait()
	if got := strings.TrimSpace(c.output()); got != "hello" {
		t.Errorf("output %q", got)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is measured of streams, by the names of the table.
const (
	execSPDY      = "exec of true, SPDY"
	execWebSocket = "exec of true, WebSocket"
	connection    = "port-forward: connect, ask, answer"
	catSPDY       = "exec of cat, both ways, SPDY"
	catWebSocket  = "exec of cat, both ways, WebSocket"
	outSPDY       = "exec, out, SPDY"
	outWebSocket  = "exec, out, WebSocket"
	forwardOut    = "port-forward, out of the pod"
	forwardIn     = "port-forward, into the pod"
)

// streamLimit is what an idle criod-stream may have for itself, in kB.
const streamLimit = 2048

// streaming is what a runtime has up while its streams are measured.
type streaming struct {
	pod, container string
	ports          map[string]int
	stop           chan struct{}
	// Local addresses that lead to the pod's ports.
	forwards map[string]string
}

// streams measures exec and port-forward as kubectl has them, with client-go.
func streams(ctx context.Context, o options, targets []*target) error {
	all := map[*target]*streaming{}
	for _, t := range targets {
		s, err := t.serve(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		defer close(s.stop)
		all[t] = s
	}
	// The first of each kind is not counted.
	for n := -1; n < o.execs; n++ {
		progress("exec %d of %d", n+1, o.execs)
		for _, t := range order(targets, n+1) {
			s := all[t]
			for _, step := range []struct {
				what string
				do   func() error
			}{
				{execSPDY, func() error { return t.exec(ctx, s, false, nil, io.Discard, "true") }},
				{execWebSocket, func() error { return t.exec(ctx, s, true, nil, io.Discard, "true") }},
				{connection, func() error { return ping(s.forwards["echo"]) }},
			} {
				if err := t.measure(step.what, step.do); err != nil {
					return err
				}
				if n < 0 {
					delete(t.samples, step.what)
				}
			}
		}
	}
	size := int64(o.megabytes) << 20
	for n := range o.rounds {
		progress("transfer %d of %d", n+1, o.rounds)
		for _, t := range order(targets, n) {
			s := all[t]
			// Not by head: it takes a kilobyte at a time, and would be what is measured.
			out := []string{"dd", "if=/dev/zero", "bs=1M", "count=" + strconv.Itoa(o.megabytes)}
			for _, step := range []struct {
				what string
				do   func() error
			}{
				{catSPDY, func() error { return t.transfer(ctx, s, false, size, "cat") }},
				// Its version 4 has no end of stdin.
				{catWebSocket, func() error {
					return t.transfer(ctx, s, true, size, "dd", "bs=256k", "iflag=fullblock", "count="+strconv.Itoa(4*o.megabytes))
				}},
				{outSPDY, func() error { return t.receive(ctx, s, false, size, out...) }},
				{outWebSocket, func() error { return t.receive(ctx, s, true, size, out...) }},
				{forwardOut, func() error { return give(s.forwards["give"], size) }},
				{forwardIn, func() error { return take(s.forwards["take"], size) }},
			} {
				if err := t.measure(step.what, step.do); err != nil {
					return err
				}
			}
		}
	}
	progress("")
	showStreams(o, targets)
	if o.streamProgram == "" {
		return nil
	}
	return streamMemory(ctx, o, targets[0], all[targets[0]])
}

// serve runs a pod with podserver in it, and forwards its ports.
func (t *target) serve(ctx context.Context, o options) (*streaming, error) {
	config, err := t.podConfig(o)
	if err != nil {
		return nil, err
	}
	s := &streaming{ports: map[string]int{}, forwards: map[string]string{}, stop: make(chan struct{})}
	if s.pod, err = t.runtime.RunPodSandbox(ctx, config, ""); err != nil {
		return nil, err
	}
	container := containerConfig(o, config)
	container.Command = []string{"/podserver"}
	container.Mounts = []*cri.Mount{{HostPath: o.podServer, ContainerPath: "/podserver", Readonly: true}}
	if s.container, err = t.runtime.CreateContainer(ctx, s.pod, container, config); err != nil {
		return nil, err
	}
	if err = t.runtime.StartContainer(ctx, s.container); err != nil {
		return nil, err
	}
	log := filepath.Join(config.LogDirectory, container.LogPath)
	for late := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		data, _ := os.ReadFile(log)
		if bytes.HasSuffix(data, []byte(" ready\n")) {
			for line := range strings.Lines(string(data)) {
				if fields := strings.Fields(line); len(fields) == 5 {
					s.ports[fields[3]], _ = strconv.Atoi(fields[4])
				}
			}
			break
		}
		if time.Now().After(late) {
			return nil, errors.New("podserver does not say that it is ready")
		}
	}
	for _, name := range []string{"echo", "give", "take"} {
		if s.forwards[name], err = t.forward(ctx, s, s.ports[name]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// forward listens on the loopback for a port of the pod, as kubectl does.
func (t *target) forward(ctx context.Context, s *streaming, port int) (string, error) {
	answer, err := t.runtime.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: s.pod})
	if err != nil {
		return "", err
	}
	target, err := url.Parse(answer.Url)
	if err != nil {
		return "", err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return "", err
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(
		spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target),
		[]string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, s.stop, ready, nil, nil)
	if err != nil {
		return "", err
	}
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		return "", fmt.Errorf("port-forward: %w", err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), nil
}

// exec runs a command, from the call to the exit code.
func (t *target) exec(ctx context.Context, s *streaming, webSocket bool, stdin io.Reader, stdout io.Writer, command ...string) error {
	answer, err := t.runtime.Exec(ctx, &cri.ExecRequest{
		ContainerId: s.container, Cmd: command, Stdin: stdin != nil, Stdout: true, Stderr: true,
	})
	if err != nil {
		return err
	}
	var executor remotecommand.Executor
	if webSocket {
		executor, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, answer.Url, "v4.channel.k8s.io")
	} else {
		var target *url.URL
		if target, err = url.Parse(answer.Url); err == nil {
			executor, err = remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
		}
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout, Stderr: io.Discard})
}

func (t *target) transfer(ctx context.Context, s *streaming, webSocket bool, size int64, command ...string) error {
	return t.counted(ctx, s, webSocket, endless(size), size, command...)
}

func (t *target) receive(ctx context.Context, s *streaming, webSocket bool, size int64, command ...string) error {
	return t.counted(ctx, s, webSocket, nil, size, command...)
}

func (t *target) counted(ctx context.Context, s *streaming, webSocket bool, stdin io.Reader, size int64, command ...string) error {
	var got counter
	if err := t.exec(ctx, s, webSocket, stdin, &got, command...); err != nil {
		return err
	}
	return got.wants(size)
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func (c counter) wants(size int64) error {
	if int64(c) != size {
		return fmt.Errorf("%d of %d bytes came", c, size)
	}
	return nil
}

var block = func() []byte {
	out := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(out)
	return out
}()

type blocks struct{ at int }

func (b *blocks) Read(p []byte) (int, error) {
	n := copy(p, block[b.at:])
	b.at = (b.at + n) % len(block)
	return n, nil
}

// endless gives this many bytes, at no cost.
func endless(size int64) io.Reader { return io.LimitReader(&blocks{}, size) }

func dial(address string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn), nil
}

func ping(address string) error {
	conn, err := dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "ping"); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 4))
	return err
}

func give(address string, size int64) error {
	conn, err := dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(size))); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	return counter(n).wants(size)
}

// take does not ask for the server's count: a runtime may cut that off with the end of what is
// sent. It is the server's reading that ends the last write.
func take(address string, size int64) error {
	conn, err := dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.Copy(conn, endless(size)); err != nil {
		return err
	}
	conn.CloseWrite()
	_, err = io.Copy(io.Discard, conn)
	return err
}

func showStreams(o options, targets []*target) {
	first, last := targets[0], targets[len(targets)-1]
	head := []string{"milliseconds", "n"}
	for _, t := range targets {
		head = append(head, t.name+" p50", "p90")
	}
	rows := [][]string{append(head, "ratio p50", "p90")}
	for _, what := range []string{execSPDY, execWebSocket, connection} {
		row := []string{what, fmt.Sprint(len(first.samples[what]))}
		for _, t := range targets {
			row = append(row, millis(percentile(t.samples[what], 0.5)), millis(percentile(t.samples[what], 0.9)))
		}
		for _, part := range []float64{0.5, 0.9} {
			row = append(row, ratio(percentile(first.samples[what], part), percentile(last.samples[what], part)))
		}
		rows = append(rows, row)
	}
	align(os.Stdout, rows)
	fmt.Println()
	head = []string{fmt.Sprintf("MiB/s, of %d MiB", o.megabytes), "n"}
	for _, t := range targets {
		head = append(head, t.name+" p50")
	}
	rows = [][]string{append(head, "ratio")}
	for _, what := range []string{catSPDY, catWebSocket, outSPDY, outWebSocket, forwardOut, forwardIn} {
		rate := func(t *target) float64 {
			if ms := percentile(t.samples[what], 0.5); ms > 0 {
				return float64(o.megabytes) * 1000 / ms
			}
			return 0
		}
		row := []string{what, fmt.Sprint(len(first.samples[what]))}
		for _, t := range targets {
			row = append(row, fmt.Sprintf("%.0f", rate(t)))
		}
		rows = append(rows, append(row, ratio(rate(first), rate(last))))
	}
	align(os.Stdout, rows)
}

// streamMemory measures the processes that serve streams: those that wait for a connection, and one
// whose session does nothing.
func streamMemory(ctx context.Context, o options, t *target, s *streaming) error {
	program, mark, _ := strings.Cut(o.streamProgram, ":")
	stdin, typed := io.Pipe()
	defer typed.Close()
	var out counter
	begun := make(chan struct{}, 1)
	go t.exec(ctx, s, false, stdin, io.MultiWriter(&out, notice(begun)), "/podserver")
	select {
	case <-begun:
	case <-time.After(patience):
		return errors.New("the idle session does not begin")
	}
	time.Sleep(time.Second)
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	most, n := 0, 0
	for _, entry := range entries {
		exe, _ := os.Readlink(entry + "/exe")
		command, _ := os.ReadFile(entry + "/cmdline")
		if strings.TrimSuffix(filepath.Base(exe), " (deleted)") != program || !bytes.Contains(command, []byte(mark)) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(entry))
		n++
		most = max(most, ofProcess(pid).private)
	}
	fmt.Printf("\n%s, %d of them idle: at most %d kB private (limit %d)\n", program, n, most, streamLimit)
	if n == 0 || most > streamLimit {
		return fmt.Errorf("%s: %d kB private in one of %d processes", program, most, n)
	}
	return nil
}

// notice tells that something was written.
type notice chan struct{}

func (s notice) Write(p []byte) (int, error) {
	select {
	case s <- struct{}{}:
	default:
	}
	return len(p), nil
}

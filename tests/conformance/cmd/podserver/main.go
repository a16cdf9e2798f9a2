// podserver is what the specs of port-forward find in a pod: services on ports of the loopback that
// the kernel chooses. It prints "NAME PORT" for each, then "ready".
//
//	echo   gives back what it gets, and ends its side once the other has ended
//	six    the same on the IPv6 loopback only; port 0 where there is none
//	sum    reads to the end, then answers with "BYTES SHA256"
//	talk   says "hello", ends its side at once, reads on to the end, and prints "talked BYTES SHA256"
//	give   gives as many bytes as it is asked for: eight bytes, big-endian
//	take   reads to the end, then answers with "BYTES"
//	deaf   never reads, and never ends
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
)

var services = []struct {
	name, address string
	serve         func(*net.TCPConn)
}{
	{"echo", "127.0.0.1:0", echo},
	{"six", "[::1]:0", echo},
	{"sum", "127.0.0.1:0", func(c *net.TCPConn) { fmt.Fprintln(c, sum(c)) }},
	{"talk", "127.0.0.1:0", talk},
	{"give", "127.0.0.1:0", give},
	{"take", "127.0.0.1:0", func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprintln(c, n)
	}},
	{"deaf", "127.0.0.1:0", func(*net.TCPConn) { select {} }},
}

func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
}

func sum(c *net.TCPConn) string {
	hash := sha256.New()
	n, _ := io.Copy(hash, c)
	return fmt.Sprintf("%d %x", n, hash.Sum(nil))
}

func talk(c *net.TCPConn) {
	io.WriteString(c, "hello\n")
	c.CloseWrite()
	fmt.Println("talked", sum(c))
}

func give(c *net.TCPConn) {
	var want [8]byte
	if _, err := io.ReadFull(c, want[:]); err != nil {
		return
	}
	block := make([]byte, 256<<10)
	for left := binary.BigEndian.Uint64(want[:]); left > 0; {
		n, err := c.Write(block[:min(left, uint64(len(block)))])
		if err != nil {
			return
		}
		left -= uint64(n)
	}
}

func main() {
	for _, service := range services {
		listener, err := net.Listen("tcp", service.address)
		if err != nil {
			if service.name != "six" {
				fmt.Fprintln(os.Stderr, "podserver:", err)
				os.Exit(1)
			}
			fmt.Println("six 0")
			continue
		}
		fmt.Println(service.name, listener.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					fmt.Fprintln(os.Stderr, "podserver:", err)
					os.Exit(1)
				}
				go func() {
					defer conn.Close()
					service.serve(conn.(*net.TCPConn))
				}()
			}
		}()
	}
	fmt.Println("ready")
	select {}
}

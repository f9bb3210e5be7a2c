package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// copierArg makes the program a process that only copies bytes.
const copierArg = "copier"

// chainLength is how many processes stand between a client and its data source in Sluice:
// service, member, and the splicer of a private endpoint.
const chainLength = 3

// chain is as many processes as a query meets, one behind the other, that do nothing
// but copy: no TLS, no HTTP, no record. What it costs, no design with as many processes can save.
type chain struct {
	port  int
	procs []*exec.Cmd
}

func startChain(ctx context.Context, target int) (_ *chain, err error) {
	c := &chain{port: target}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(chainLength)
	if err != nil {
		return nil, err
	}
	for _, port := range ports {
		cmd := exec.CommandContext(ctx, self, copierArg, strconv.Itoa(port), strconv.Itoa(c.port))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		c.procs, c.port = append(c.procs, cmd), port
		if err := waitListening(ctx, port); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *chain) stop() {
	for _, cmd := range c.procs {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func waitListening(ctx context.Context, port int) error {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(end) {
			return fmt.Errorf("nothing listens on port %d: %w", port, err)
		}
	}
}

// runCopier copies between what connects to one port and another port, until it is killed.
func runCopier(args []string, errOut io.Writer) int {
	if len(args) != 2 {
		fmt.Fprintf(errOut, "usage: bench %s LISTEN TARGET\n", copierArg)
		return 2
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	if err != nil {
		fmt.Fprintln(errOut, "error:", err)
		return 1
	}
	for {
		from, err := l.Accept()
		if err != nil {
			fmt.Fprintln(errOut, "error:", err)
			return 1
		}
		to, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", args[1]))
		if err != nil {
			from.Close()
			continue
		}
		go copyBytes(to, from)
		go copyBytes(from, to)
	}
}

// copyBytes goes on until either end does. Reads and writes cost less for short messages than
// splicing would.
func copyBytes(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			_, failed := to.Write(buf[:n])
			err = errors.Join(err, failed)
		}
		if err != nil {
			return
		}
	}
}

package policy

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A lab is a set of network namespaces of the test's own, gone when the test ends.
type lab struct {
	t      *testing.T
	prefix string
}

var labs atomic.Int64

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "sysctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("needs %s: %v", tool, err)
		}
	}
	return &lab{t: t, prefix: fmt.Sprintf("slpol-%d-%d-", os.Getpid(), labs.Add(1))}
}

// namespace makes a namespace and sets it up with lines for `ip -batch`.
func (l *lab) namespace(name string) {
	l.t.Helper()
	l.run("", "ip", "netns", "add", l.prefix+name)
	l.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", l.prefix+name).CombinedOutput(); err != nil {
			l.t.Errorf("remove namespace %s: %v: %s", name, err, out)
		}
	})
	l.ip(name, "link set lo up")
}

func (l *lab) ip(ns string, lines ...string) {
	l.t.Helper()
	text := strings.ReplaceAll(strings.Join(lines, "\n"), "@", l.prefix)
	l.run(text+"\n", "ip", "-n", l.prefix+ns, "-batch", "-")
}

func (l *lab) sysctl(ns string, settings ...string) {
	l.t.Helper()
	l.run("", "ip", append([]string{"netns", "exec", l.prefix + ns, "sysctl", "-q", "-w"}, settings...)...)
}

func (l *lab) nft(ns, ruleset string) {
	l.t.Helper()
	l.run(ruleset, "ip", "netns", "exec", l.prefix+ns, "nft", "-f", "-")
}

func (l *lab) run(stdin, name string, args ...string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s %s: %v: %s\n%s", name, strings.Join(args, " "), err, errOut.String(), numbered(stdin))
	}
	return out.String()
}

func numbered(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = fmt.Sprintf("%4d %s", i+1, lines[i])
	}
	return strings.Join(lines[:min(len(lines), 400)], "\n")
}

// in runs f on a thread that is in the namespace and ends with it.
func (l *lab) in(ns string, f func() error) {
	l.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not used again
		h, err := netns.GetFromName(l.prefix + ns)
		if err == nil {
			err = netns.Set(h)
			_ = h.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		l.t.Fatalf("in namespace %s: %v", ns, err)
	}
}

// link joins two namespaces with a veth pair whose ends know each other's MAC.
type link struct{ ns, iface, mac string }

func (l *lab) link(a, b link) {
	l.t.Helper()
	l.ip(a.ns, fmt.Sprintf("link add %s address %s type veth peer name %s address %s netns @%s", a.iface, a.mac, b.iface, b.mac, b.ns),
		"link set "+a.iface+" up")
	l.ip(b.ns, "link set "+b.iface+" up")
}

func (l *lab) listen(ns, address string) net.Listener {
	l.t.Helper()
	var out net.Listener
	l.in(ns, func() (err error) {
		out, err = net.Listen("tcp4", address)
		return err
	})
	l.t.Cleanup(func() { _ = out.Close() })
	return out
}

// dial connects from a namespace; a connection attempt that is dropped ends in a time-out.
func (l *lab) dial(ns, from, to string) (net.Conn, error) {
	l.t.Helper()
	var conn net.Conn
	var failed error
	l.in(ns, func() error {
		d := net.Dialer{Timeout: 400 * time.Millisecond}
		d.SetMultipathTCP(false)
		if from != "" {
			local, err := net.ResolveTCPAddr("tcp4", from)
			if err != nil {
				return err
			}
			d.LocalAddr = local
		}
		conn, failed = d.Dial("tcp4", to)
		return nil
	})
	if failed == nil {
		l.t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, failed
}

// capture sees every IPv4 packet that arrives at an interface.
type capture struct{ fd int }

func (l *lab) capture(ns, iface string) *capture {
	l.t.Helper()
	c := &capture{}
	l.in(ns, func() error {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		const proto = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
	})
	l.t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// packets gives what arrived since the last call.
func (c *capture) packets() [][]byte {
	var out [][]byte
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		if err != nil {
			return out
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if n >= 20 {
			out = append(out, bytes.Clone(buf[:n]))
		}
	}
}

// rawSocket sends whole IP packets from a namespace.
func (l *lab) rawSocket(ns string) int {
	l.t.Helper()
	fd := -1
	l.in(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

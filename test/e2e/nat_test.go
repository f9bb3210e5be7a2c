package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sluice-gateway/sluice/internal/nettest"
)

// outside is a machine beyond the host: a namespace on a veth of the host's, with a
// server that splices to a database and remembers who called.
type outside struct {
	host, server string // addresses on the veth

	mu      sync.Mutex
	callers []string
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// outsides counts the machines that this process made.
var outsides atomic.Int64

// newOutside makes the machine. The host forwards what comes back from it, as a router
// with this interface would be set up to.
func newOutside(t *testing.T, port int, target string) *outside {
	t.Helper()
	pid, n := os.Getpid(), int(outsides.Add(1))
	id := fmt.Sprintf("%x-%x", pid&0xffff, n)
	ns, near, far := "e2e-out-"+id, "e2eo"+id+"a", "e2eo"+id+"b"
	o := &outside{}
	o.host, o.server = twoAddresses(n)
	ip(t, "netns", "add", ns)
	t.Cleanup(func() { ip(t, "netns", "del", ns) })
	ip(t, "link", "add", near, "type", "veth", "peer", "name", far, "netns", ns)
	forwards(t, near) // before a route leads there: other hosts of this machine would confine what they open
	ip(t, "addr", "add", o.host+"/30", "dev", near)
	ip(t, "link", "set", near, "up")
	ip(t, "-n", ns, "addr", "add", o.server+"/30", "dev", far)
	ip(t, "-n", ns, "link", "set", far, "up")
	l, err := listenOutside("/run/netns/"+ns, fmt.Sprintf("%s:%d", o.server, port))
	if err != nil {
		t.Fatal(err)
	}
	forward(t, &noted{Listener: l, note: o.note}, target)
	return o
}

// twoAddresses are those of the nth machine's /30: 16 for each process.
func twoAddresses(n int) (host, server string) {
	at := (os.Getpid()&0x7ff<<4 | n&0xf) * 4
	addr := func(end int) string { return fmt.Sprintf("198.%d.%d.%d", 18+at>>16, at>>8&0xff, at&0xff+end) }
	return addr(1), addr(2)
}

// forwards lets an interface of the host forward.
func forwards(t *testing.T, dev string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/forwarding", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}

func (o *outside) note(addr net.Addr) {
	host, _, _ := net.SplitHostPort(addr.String())
	o.mu.Lock()
	defer o.mu.Unlock()
	o.callers = append(o.callers, host)
}

// seen are the addresses of those who called so far.
func (o *outside) seen() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.callers)
}

// noted is a listener that notes who calls.
type noted struct {
	net.Listener
	note func(net.Addr)
}

// Accept implements net.Listener.
func (n *noted) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	if err == nil {
		n.note(conn.RemoteAddr())
	}
	return conn, err
}

// listenOutside listens in another network namespace.
func listenOutside(ns, address string) (l net.Listener, err error) {
	err = nettest.In(ns, func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	return l, err
}

// TestThroughTheNATGateway reaches a data source outside the network.
func TestThroughTheNATGateway(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	o := newOutside(t, c.PG.Port, fmt.Sprintf("127.0.0.1:%d", c.PG.Port))
	c.Apply(dataSource("outside", o.server, c.PG.Port, "orders", "report", password))

	r := c.Sluice("query", "-s", "outside", "-o", "csv", "select current_database() as db")
	if r.Exit != 0 || r.Out != "db\r\norders\r\n" {
		t.Fatalf("through the NAT gateway: %+v", r)
	}
	if len(o.seen()) == 0 {
		t.Fatal("nobody called the server outside")
	}
	for _, caller := range o.seen() {
		if caller != o.host {
			t.Errorf("the server saw %s, want the host's %s", caller, o.host)
		}
	}
	check := c.Must("check", "-g", gateway, "--to", fmt.Sprintf("%s:%d", o.server, c.PG.Port))
	for _, text := range []string{"rules: allowed", "AllowInternetOutBound", "NAT gateway egress", "probe: connected"} {
		if !strings.Contains(check, text) {
			t.Errorf("the check lacks %q:\n%s", text, check)
		}
	}

	c.rewrite("network.yaml", "    natGateway: egress\n", "")
	c.Must("apply", "-f", c.Example+"/network.yaml")
	c.Must("gateway", "restart", gateway) // its connections outlive the change
	before := len(o.seen())
	wantFailure(t, c.Sluice("query", "-s", "outside", "select 1"), 1, "connect", "no route to "+o.server, "hint: ", "NAT gateway")
	if len(o.seen()) != before {
		t.Error("without a NAT gateway, the server outside was reached")
	}
	wantFailure(t, c.Sluice("check", "-g", gateway, "--timeout", "2s", "--to", fmt.Sprintf("%s:%d", o.server, c.PG.Port)), 1)
}

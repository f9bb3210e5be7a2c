package linux

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// The world outside a lab's host: one server, on the host's default route.
const (
	labHostAddr  = "198.51.100.1"
	labWorldAddr = "198.51.100.2"
)

// lab is a host of its own for one test: a namespace that stands for the host's, and
// one for the world that it is connected to.
type lab struct {
	t           testing.TB
	instance    string
	state       string
	host, world string // paths
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	if err := prepareDir(); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, instance: random(4), state: t.TempDir()}
	l.host, l.world = l.space("h"), l.space("w")
	l.ip(l.host, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", filepath.Base(l.world))
	l.ip(l.host, "addr", "add", labHostAddr+"/24", "dev", "up0")
	l.ip(l.host, "link", "set", "up0", "up")
	l.ip(l.world, "addr", "add", labWorldAddr+"/24", "dev", "up0")
	l.ip(l.world, "link", "set", "up0", "up")
	l.ip(l.host, "route", "add", "default", "via", labWorldAddr)
	return l
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// space makes a namespace that the test owns and returns its path.
func (l *lab) space(kind string) string {
	l.t.Helper()
	name := "sluicetest-" + l.instance + "-" + kind
	s, _, err := ensureSpace(name, "a test's", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	s.close()
	l.t.Cleanup(func() {
		if err := dropName(name); err != nil {
			l.t.Error(err)
		}
	})
	return filepath.Join(netnsDir, name)
}

func (l *lab) ip(ns string, args ...string) string {
	l.t.Helper()
	cmd := exec.Command("ip", append([]string{"-n", filepath.Base(ns)}, args...)...)
	var warnings bytes.Buffer // such as that some other test's namespace is just going away
	cmd.Stderr = &warnings
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("ip %v: %v: %s%s", args, err, out, warnings.String())
	}
	return string(out)
}

func (l *lab) options() Options {
	o := Options{Instance: l.instance, StateDir: l.state, HostNS: l.host, DialTimeout: time.Second}
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(l.t.Output(), nil))
	}
	return o
}

// up starts a Network; CleanUp at the test's end removes what it made.
func (l *lab) up(change ...func(*Options)) *Network {
	l.t.Helper()
	o := l.options()
	for _, c := range change {
		c(&o)
	}
	n, err := New(o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := n.CleanUp(context.Background()); err != nil {
			l.t.Error(err)
		}
	})
	if err := n.Up(l.ctx()); err != nil {
		l.t.Fatal(err)
	}
	return n
}

func (l *lab) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	l.t.Cleanup(cancel)
	return ctx
}

// set calls Set and fails the test on any problem.
func (l *lab) set(n *Network, cfg hostnet.Config) hostnet.Status {
	l.t.Helper()
	s, err := n.Set(l.ctx(), cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range s.Problems {
		l.t.Errorf("problem: %s: %v", p.Object, p.Err)
	}
	if len(s.Ports) != len(cfg.Ports) {
		l.t.Fatalf("%d of %d ports are complete", len(s.Ports), len(cfg.Ports))
	}
	return s
}

// in runs fn in the namespace of a path.
func in(t testing.TB, path string, fn func() error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := inside(f, fn); err != nil {
		t.Fatal(err)
	}
}

// dialIn dials from a namespace.
func dialIn(t testing.TB, path, addr string, timeout time.Duration) (c net.Conn, err error) {
	t.Helper()
	in(t, path, func() error {
		c, err = (&net.Dialer{Timeout: timeout}).Dial("tcp4", addr)
		return nil
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// serveIn answers each connection in a namespace with one line, "greeting remote-address",
// and echoes each line from then on.
func serveIn(t testing.TB, path, addr, greeting string) *net.TCPListener {
	t.Helper()
	var l *net.TCPListener
	in(t, path, func() error {
		listener, err := net.Listen("tcp4", addr)
		if err == nil {
			l = listener.(*net.TCPListener)
		}
		return err
	})
	var work sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			work.Go(func() {
				fmt.Fprintf(c, "%s %s\n", greeting, c.RemoteAddr().(*net.TCPAddr).IP)
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return l
}

// greeting dials from a namespace and returns the server's line.
func greeting(t testing.TB, path, addr string) (string, error) {
	t.Helper()
	c, err := dialIn(t, path, addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	return line(c)
}

func line(c net.Conn) (string, error) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	s, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(s), err
}

// wantGreeting fails the test unless the server answers as expected.
func wantGreeting(t testing.TB, path, addr, want string) {
	t.Helper()
	var got string
	c, err := dialIn(t, path, addr, 30*time.Second)
	if err == nil {
		got, err = line(c)
	}
	if err != nil || got != want {
		t.Errorf("dialling %s: got %q, %v; want %q", addr, got, err, want)
	}
}

// wantSilence fails the test unless a dial ends in its time-out: a packet was dropped.
func wantSilence(t testing.TB, path, addr string) {
	t.Helper()
	c, err := dialIn(t, path, addr, 400*time.Millisecond)
	if err == nil {
		t.Errorf("%s was reached from %s", addr, c.LocalAddr())
	} else if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("dialling %s: %v; want a time-out", addr, err)
	}
}

// corp is the network of examples/corp.
func corp(uid string) core.GoalVNet {
	anyone := []string{"Any"}
	return core.GoalVNet{
		UID: uid, Tenant: core.DefaultTenant, Name: "corp",
		AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
		Subnets: []core.Subnet{
			{Name: "gateways", Prefix: netip.MustParsePrefix("10.20.0.0/24"), Delegation: core.DelegationGateways, NSG: "gateways", NATGateway: "egress"},
			{Name: "data", Prefix: netip.MustParsePrefix("10.20.1.0/24"), NSG: "data"},
		},
		NSGs: []core.NetworkSecurityGroup{
			{Name: "gateways", Rules: []core.SecurityRule{
				{Name: "allow-postgres", Priority: 100, Direction: core.Outbound, Access: core.Allow, Protocol: core.ProtocolTCP,
					Source: anyone, Destination: []string{"10.20.1.0/24"}, DestinationPorts: []string{"5432"}},
				{Name: "deny-rest-of-vnet", Priority: 4000, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny,
					Source: anyone, Destination: []string{"VirtualNetwork"}},
			}},
			{Name: "data", Rules: []core.SecurityRule{
				{Name: "only-gateways", Priority: 100, Direction: core.Inbound, Access: core.Allow, Protocol: core.ProtocolTCP,
					Source: []string{"10.20.0.0/24"}, Destination: anyone, DestinationPorts: []string{"5432"}},
				{Name: "deny-all", Priority: 4096, Direction: core.Inbound, Access: core.Deny, Protocol: core.ProtocolAny,
					Source: anyone, Destination: anyone},
			}},
		},
		NATGateways: []core.GoalNATGateway{{UID: uid + "-egress", NATGateway: core.NATGateway{
			Name: "egress", VNet: "corp", PublicAddresses: []string{"host"}, IdleTimeout: core.Duration(4 * time.Minute),
		}}},
		Zones: []core.GoalZone{{Name: "corp.internal", Records: []core.GoalRecord{
			{Name: "orders.corp.internal", Address: netip.MustParseAddr("10.20.1.4")},
		}}},
	}
}

func withEndpoint(g core.GoalVNet, name, addr string, port uint16, target string) core.GoalVNet {
	g.Endpoints = append(slices.Clone(g.Endpoints), core.GoalEndpoint{
		UID: g.UID + "-" + name, Name: name, Subnet: "data", Address: netip.MustParseAddr(addr), Port: port, Target: target,
	})
	return g
}

// member is the i-th port of a virtual network; tunnel addresses are unique per host.
func member(g core.GoalVNet, i, tunnel int) hostnet.Port {
	return hostnet.Port{
		Member: fmt.Sprintf("m-%s-%d", g.UID, i), Generation: 1, VNetUID: g.UID, Subnet: "gateways",
		Address:       nth(netip.MustParsePrefix("10.20.0.0/24"), uint32(3+i)),
		TunnelAddress: nth(linkLocal, uint32(16+tunnel)),
	}
}

func portOf(t testing.TB, s hostnet.Status, p hostnet.Port) string {
	t.Helper()
	path, ok := s.Ports[p.Key()]
	if !ok {
		t.Fatalf("port %v is not complete", p.Key())
	}
	return path
}

// echo fails the test unless a connection to serveIn carries a line there and back.
func echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := fmt.Fprintln(c, text); err != nil {
		t.Errorf("an established connection broke: %v", err)
		return
	}
	if got, err := line(c); err != nil || got != text {
		t.Errorf("an established connection answered %q, %v; want %q", got, err, text)
	}
}

func contains(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}

// counter sums the packet counters of the rules in a namespace whose comment begins so.
func counter(t testing.TB, path, comment string) (packets int) {
	t.Helper()
	for rule := range strings.SplitSeq(nft(t, path, "list", "ruleset"), "\n") {
		_, count, ok := strings.Cut(rule, "counter packets ")
		if ok && strings.Contains(rule, `comment "`+comment) {
			var n int
			fmt.Sscan(count, &n)
			packets += n
		}
	}
	return packets
}

func nft(t testing.TB, path string, args ...string) string {
	t.Helper()
	var out []byte
	in(t, path, func() (err error) {
		out, err = exec.Command("nft", args...).CombinedOutput()
		return err
	})
	return string(out)
}

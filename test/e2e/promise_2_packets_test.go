package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// twoNetworks adds, beside the example's: a second gateway in the same subnet, an endpoint
// that the rules deny, and a second network with the same prefixes, no security groups, a
// gateway, and an endpoint. Both endpoints stand for a server of the test.
const twoNetworks = `
kind: Gateway
name: corp-two
vnet: corp
subnet: gateways
---
kind: VirtualNetwork
name: twin
addressSpace: [10.20.0.0/16]
subnets:
  - {name: gateways, prefix: 10.20.0.0/24, delegation: sluice/gateways}
  - {name: data, prefix: 10.20.1.0/24}
---
kind: PrivateEndpoint
name: twin-echo
vnet: twin
subnet: data
address: 10.20.1.7
target: 127.0.0.1:%[1]d
---
kind: PrivateEndpoint
name: denied-echo
vnet: corp
subnet: data
address: 10.20.1.8
target: 127.0.0.1:%[1]d
---
kind: Gateway
name: twin-bi
vnet: twin
subnet: gateways
`

// battlefield is two networks with members in them, and a server on the host.
type battlefield struct {
	*corp
	attacker, neighbour, twin core.Member
	echo                      int    // a TCP and UDP port of the host, on every address
	heard                     *int64 // datagrams that arrived there
}

func newBattlefield(t *testing.T) *battlefield {
	t.Helper()
	c := newCorp(t)
	b := &battlefield{corp: c}
	b.echo, b.heard = hostServer(t)
	c.Apply(fmt.Sprintf(twoNetworks, b.echo))
	api := c.Client()
	b.attacker = c.memberOf(t, api, gateway)
	b.neighbour = c.memberOf(t, api, "corp-two")
	b.twin = c.memberOf(t, api, "twin-bi")
	return b
}

// hostServer answers on every address of the host, over TCP and UDP.
func hostServer(t *testing.T) (port int, heard *int64) {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveEcho(l)
	port = l.Addr().(*net.TCPAddr).Port
	u, err := net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	heard = new(int64)
	go func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := u.ReadFrom(buf); err != nil {
				return
			}
			atomic.AddInt64(heard, 1)
		}
	}()
	return port, heard
}

func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// dialFrom tries a TCP connection from a namespace, as root or as the user that members
// have inside their own.
func dialFrom(space, addr string, uid int, within time.Duration) error {
	return nettest.In(space, func() error {
		if uid != 0 {
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
		}
		d := net.Dialer{Timeout: within}
		d.SetMultipathTCP(false)
		c, err := d.Dial("tcp4", addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// TestPromise2HostIsOutOfReach tries, from a member's namespace, every address of the
// host, every port of the tunnel's far end but the relay's, and the other network.
func TestPromise2HostIsOutOfReach(t *testing.T) {
	busy.take(t)
	b := newBattlefield(t)
	from := b.memberSpace(b.attacker)
	if err := dialFrom(b.memberSpace(b.twin), fmt.Sprintf("10.20.1.7:%d", b.echo), 0, 30*time.Second); err != nil {
		t.Fatalf("the other network's own member can't reach its endpoint: %v", err)
	}
	if err := dialFrom(from, relayAddress, 65532, 30*time.Second); err != nil {
		t.Fatalf("the relay does not answer its member: %v", err)
	}
	var targets []string
	for _, a := range hostAddresses(t) {
		targets = append(targets, fmt.Sprintf("%s:%d", a, b.echo))
	}
	if len(targets) < 2 {
		t.Fatal("this machine has no addresses to try but loopback's")
	}
	relay, _, _ := net.SplitHostPort(relayAddress)
	for _, port := range []int{22, 53, 80, 8482, 8484, b.echo, portOf(b.HTTP), portOf(b.Flight), portOf(b.Hosts), b.PG.Port} {
		targets = append(targets, fmt.Sprintf("%s:%d", relay, port))
	}
	targets = append(targets, fmt.Sprintf("10.20.1.7:%d", b.echo), fmt.Sprintf("10.20.1.8:%d", b.echo), fmt.Sprintf("127.0.0.1:%d", b.echo), fmt.Sprintf("10.20.0.1:%d", b.echo),
		fmt.Sprintf("%s:%d", b.neighbour.TunnelAddress, b.echo))
	targets = append(targets, b.rogueListeners(t)...)
	var wg sync.WaitGroup
	for _, target := range targets {
		for _, uid := range []int{0, 65532} {
			wg.Go(func() {
				if dialFrom(from, target, uid, 1500*time.Millisecond) == nil {
					t.Errorf("a member (uid %d) reached %s", uid, target)
				}
			})
		}
		wg.Go(func() { sendUDP(t, from, target, "from a member") })
	}
	wg.Wait()
	time.Sleep(100 * time.Millisecond)
	if n := atomic.LoadInt64(b.heard); n != 0 {
		t.Errorf("%d datagrams of a member arrived at the host", n)
	}
	sendUDP(t, "/proc/self/ns/net", fmt.Sprintf("127.0.0.1:%d", b.echo), "control")
	eventually(t, 60*time.Second, "the host's server hears datagrams at all", func() bool { return atomic.LoadInt64(b.heard) == 1 })
}

// rogueListeners answer in the namespaces that members' packets come to, on every address
// and a port of their own, as a service that was started there by mistake would.
func (b *battlefield) rogueListeners(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, space := range append(b.spaces("n"), b.vnetSpace(b.attacker), b.tunnelSpace()) {
		_, port, _ := net.SplitHostPort(listenIn(t, space, "0.0.0.0:0"))
		text, err := commandIn(space, "ip", "-o", "-4", "addr")
		if err != nil {
			t.Fatalf("addresses in %s: %v\n%s", space, err, text)
		}
		found := 0
		for line := range strings.Lines(text) {
			w := strings.Fields(line)
			if addr, _, _ := strings.Cut(w[3], "/"); !strings.HasPrefix(addr, "127.") {
				out = append(out, addr+":"+port)
				found++
			}
		}
		if found == 0 {
			t.Errorf("no address in %s", space)
		}
	}
	return out
}

const relayAddress = "169.254.0.1:8483"

func portOf(addr string) int {
	return int(netip.MustParseAddrPort(addr).Port())
}

// hostAddresses lists the IPv4 addresses of the host, loopback's included, and of the
// interfaces that lead to NAT gateways.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			out = append(out, n.IP.String())
		}
	}
	return out
}

// sendUDP sends one datagram; that it can't be sent is fine.
func sendUDP(t *testing.T, space, addr, text string) {
	err := nettest.In(space, func() error {
		c, err := net.Dial("udp4", addr)
		if err != nil {
			return nil
		}
		defer c.Close()
		_, _ = c.Write([]byte(text))
		return nil
	})
	if err != nil {
		t.Errorf("send a datagram to %s: %v", addr, err)
	}
}

// TestPromise2DeniedPacketsStayInside listens everywhere outside the member's own pair of
// interfaces while, from inside, connections are tried that the rules deny and frames are
// sent that a member must not send.
func TestPromise2DeniedPacketsStayInside(t *testing.T) {
	busy.take(t)
	b := newBattlefield(t)
	outside := []*sniffer{
		sniff(t, "the virtual network, outgoing", b.vnetSpace(b.attacker), true, ""),
		sniff(t, "the neighbour's namespace", b.memberSpace(b.neighbour), false, ""),
		sniff(t, "the tunnels, outgoing", b.tunnelSpace(), true, ""),
		sniff(t, "the other network", b.vnetSpace(b.twin), false, ""),
		sniff(t, "the other network's member", b.memberSpace(b.twin), false, ""),
		sniff(t, "the host's links", "/proc/self/ns/net", false, "s"+b.Instance()+"-"),
	}
	for i, n := range b.spaces("n") {
		outside = append(outside, sniff(t, fmt.Sprintf("NAT gateway %d", i), n, false, ""))
	}
	from := b.memberSpace(b.attacker)
	host := defaultAddress(t)

	control := fmt.Sprint(markerEnd - 1) // the rules allow the Internet, and so the way to NAT
	_ = dialFrom(from, host+":"+control, 0, 500*time.Millisecond)
	eventually(t, 60*time.Second, "an allowed packet is seen on the way out", func() bool {
		return outside[0].count(control) > 0 && outside[len(outside)-1].count(control) > 0
	})

	attacks := b.deniedConnections(t, from)
	attacks = append(attacks, b.forgedFrames(t, from, host)...)
	time.Sleep(300 * time.Millisecond) // for the last frame to arrive where it must not
	for _, s := range outside {
		for _, a := range attacks {
			if n := s.count(a.marker); n > 0 {
				t.Errorf("%s: %d packets were seen in %s", a.what, n, s.where)
			}
		}
	}
	b.value("select 1") // the member itself still works
}

// defaultAddress is the host's address that faces the outside.
func defaultAddress(t *testing.T) string {
	t.Helper()
	for _, a := range hostAddresses(t) {
		if ip := netip.MustParseAddr(a); !ip.IsLoopback() && !netip.MustParsePrefix("10.20.0.0/16").Contains(ip) {
			return a
		}
	}
	t.Fatal("this machine has no address but loopback's")
	return ""
}

type attack struct{ what, marker string }

// deniedConnections tries what the security groups deny.
func (b *battlefield) deniedConnections(t *testing.T, from string) []attack {
	var out []attack
	var wg sync.WaitGroup
	next := markerBase
	for _, to := range []struct{ what, addr string }{
		{"the endpoint's other ports", "10.20.1.4"}, {"an address that nobody has", "10.20.1.99"},
		{"the neighbour", b.neighbour.Address.String()}, {"the gateway's address", "10.20.0.1"},
		{"the neighbour's tunnel", b.neighbour.TunnelAddress.String()}, {"the resolver's other ports", "10.20.0.2"},
	} {
		for _, uid := range []int{0, 65532} {
			a := attack{fmt.Sprintf("TCP to %s as uid %d", to.what, uid), fmt.Sprint(next)}
			target := to.addr + ":" + a.marker
			wg.Go(func() {
				if dialFrom(from, target, uid, 1200*time.Millisecond) == nil {
					t.Errorf("%s: connected", a.what)
				}
			})
			out = append(out, a)
			next++
		}
		a := attack{"UDP to " + to.what, fmt.Sprint(next)}
		sendUDP(t, from, to.addr+":"+a.marker, "x")
		out = append(out, a)
		next++
	}
	wg.Wait()
	return out
}

// TestPromise2RootInTheNamespaceStaysOutside gives the attacker more than any member has:
// root in its namespace, free to take addresses and routes as it likes.
func TestPromise2RootInTheNamespaceStaysOutside(t *testing.T) {
	busy.take(t)
	b := newBattlefield(t)
	listener := listenIn(t, b.memberSpace(b.neighbour), b.neighbour.Address.String()+":0")
	from := b.memberSpace(b.attacker)
	for _, args := range [][]string{
		{"addr", "add", b.neighbour.TunnelAddress.String() + "/32", "dev", "tun0"},
		{"addr", "add", "10.20.0.99/32", "dev", "eth0"},
		{"route", "add", b.neighbour.Address.String() + "/32", "via", "169.254.0.1", "dev", "tun0", "onlink"},
		{"route", "add", "198.51.100.0/24", "via", "169.254.0.1", "dev", "tun0", "onlink"},
		{"neigh", "replace", "169.254.0.2", "lladdr", "02:00:00:00:00:01", "dev", "tun0"},
	} {
		runIn(t, from, "ip", args...)
	}
	for _, try := range []struct{ source, target string }{
		{"", listener}, {b.attacker.TunnelAddress.String(), listener},
		{b.neighbour.TunnelAddress.String(), relayAddress}, {"10.20.0.99", fmt.Sprintf("10.20.1.4:%d", b.PG.Port)},
		{"10.20.0.99", listener},
	} {
		err := nettest.In(from, func() error {
			d := net.Dialer{Timeout: time.Second}
			if try.source != "" {
				d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(try.source)}
			}
			c, err := d.Dial("tcp4", try.target)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			t.Errorf("connected to %s from %q", try.target, try.source)
		} else if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EINVAL) {
			t.Errorf("the attack from %q could not be tried: %v", try.source, err)
		}
	}
}

// listenIn answers connections in a namespace, as a member that broke its promise to
// listen on nothing would.
func listenIn(t *testing.T, space, addr string) string {
	t.Helper()
	var l net.Listener
	err := nettest.In(space, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", space, err)
	}
	t.Cleanup(func() { l.Close() })
	go serveEcho(l)
	return l.Addr().String()
}

// runIn runs a command in a namespace.
func runIn(t testing.TB, space, name string, args ...string) {
	t.Helper()
	if out, err := commandIn(space, name, args...); err != nil {
		t.Fatalf("%s %v in %s: %v\n%s", name, args, space, err, out)
	}
}

package policy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"golang.org/x/sys/unix"
)

func denyAll(name string, d core.Direction) core.NetworkSecurityGroup {
	return core.NetworkSecurityGroup{Name: name, Rules: []core.SecurityRule{
		{Name: "deny-all", Priority: 100, Direction: d, Access: core.Deny, Protocol: core.ProtocolAny},
	}}
}

// accept takes connections of a listener one by one.
func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// pass sends a text from one end to the other.
func pass(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	_ = to.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q arrived as %q: %v", text, got, err)
	}
}

func TestKernelEstablishedFlowOutlivesARuleChange(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]struct{ ns, address, group string }{
		"to a member":           {"m2", "10.20.1.5:5432", "b"},
		"to a private endpoint": {"vnet", "10.20.2.9:80", "c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			n.apply(n.vnet())
			l := n.listen(to.ns, to.address)
			client, err := n.dial("m0", "", to.address)
			if err != nil {
				t.Fatal(err)
			}
			server := accept(t, l)
			pass(t, client, server, "before")

			n.apply(n.vnet(denyAll(to.group, core.Inbound), denyAll("a", core.Outbound)))
			pass(t, client, server, "after")
			pass(t, server, client, "and back")
			if _, err := n.dial("m0", "", to.address); err == nil {
				t.Error("a new connection got through the rules that deny it")
			}
		})
	}
}

func TestKernelCorp(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	v := corpVNet()
	v.Subnets = append(v.Subnets, core.Subnet{Name: "rest", Prefix: prefix("10.20.2.0/24")})
	v.Endpoints[0].Address = addr("10.20.1.9")
	in := n.input(v)
	for i, subnet := range []string{"gateways", "gateways", "data", "rest"} {
		in.Ports[i].Subnet = subnet
	}
	text, err := CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	n.nft("vnet", text)
	n.listen("vnet", "10.20.1.9:5432")
	n.listen("vnet", "10.20.1.9:5433")
	n.listen("m1", "10.20.0.5:5432")
	for _, c := range []struct {
		from, to string
		open     bool
	}{
		{"m0", "10.20.1.9:5432", true},  // the rule allow-postgres, then only-gateways
		{"m0", "10.20.1.9:5433", false}, // deny-rest-of-vnet
		{"m0", "10.20.0.5:5432", false}, // inside the subnet
		{"m3", "10.20.1.9:5432", false}, // deny-all of the data subnet
	} {
		_, err := n.dial(c.from, "", c.to)
		if open := err == nil; open != c.open {
			t.Errorf("%s to %s: open: %v (%v)", c.from, c.to, open, err)
		}
		if err != nil && !strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s to %s: not silently dropped: %v", c.from, c.to, err)
		}
	}
}

// TestKernelDropsSpoofedPackets sends frames that differ in one thing from a member's own.
func TestKernelDropsSpoofedPackets(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(n.vnet())
	own := Flow{Source: addr("10.20.0.4"), Destination: addr("10.20.1.5"), Protocol: core.ProtocolUDP, DestinationPort: 9, SourcePort: 9}
	other, outside := own, own
	other.Source, outside.Source = addr("10.20.0.5"), addr("198.51.100.7")
	for i, c := range []struct {
		name    string
		mac     string
		flow    Flow
		arrives bool
	}{
		{"its own", "02:00:00:00:00:00", own, true},
		{"another MAC", "02:00:00:00:00:77", own, false},
		{"another member's MAC", "02:00:00:00:00:01", own, false},
		{"another member's address", "02:00:00:00:00:00", other, false},
		{"another member's address and MAC", "02:00:00:00:00:01", other, false},
		{"a foreign address", "02:00:00:00:00:00", outside, false},
	} {
		id := uint16(100 + i)
		n.sendFrame("m0", c.mac, packet(c.flow, id))
		if got := n.arrives("m2", id, c.arrives); got != c.arrives {
			t.Errorf("%s: arrives: %v", c.name, got)
		}
	}
}

// TestKernelNATSideCannotPretend sends packets from the NAT gateway's side.
func TestKernelNATSideCannotPretend(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.listen("vnet", "10.20.1.9:5432")
	n.apply(n.vnet())
	for i, source := range []string{"10.20.0.5", "198.51.100.7"} {
		f := Flow{Source: addr(source), Destination: addr("10.20.1.5"), Protocol: core.ProtocolUDP, DestinationPort: 9, SourcePort: 9}
		send(t, n.raw["nat"], packet(f, uint16(i+1)))
		if n.arrives("m2", uint16(i+1), false) {
			t.Errorf("an unsolicited packet from %s came in through the NAT gateway", source)
		}
		f.Protocol, f.Destination, f.DestinationPort = core.ProtocolTCP, addr("10.20.1.9"), 5432
		send(t, n.raw["nat"], packet(f, uint16(i+10)))
		f.Destination, f.DestinationPort = addr("10.20.0.2"), dnsPort
		send(t, n.raw["nat"], packet(f, uint16(i+20)))
	}
	time.Sleep(50 * time.Millisecond)
	for ns, c := range n.captures {
		for _, b := range c.packets() {
			if packetProtocol(b) == unix.IPPROTO_TCP {
				t.Errorf("an endpoint or the resolver answered the NAT gateway's side, in namespace %s: %x", ns, b)
			}
		}
	}
}

// TestKernelNATSideCannotJoinAFlow forges, from the NAT gateway's side, an answer to a
// question that one member asked another.
func TestKernelNATSideCannotJoinAFlow(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.apply(n.vnet())
	f := Flow{Source: addr("10.20.0.4"), Destination: addr("10.20.1.5"), Protocol: core.ProtocolUDP, SourcePort: 7, DestinationPort: 9}
	send(t, n.raw["m0"], packet(f, 1))
	if !n.arrives("m2", 1, true) {
		t.Fatal("the question did not arrive")
	}
	f.Source, f.Destination, f.SourcePort, f.DestinationPort = f.Destination, f.Source, f.DestinationPort, f.SourcePort
	send(t, n.raw["nat"], packet(f, 2))
	if n.arrives("m0", 2, false) {
		t.Error("the forged answer arrived")
	}
	send(t, n.raw["m2"], packet(f, 3))
	if !n.arrives("m0", 3, true) {
		t.Error("the true answer did not arrive")
	}
}

// TestKernelCarriesNoIPv6 forwards between two members that set up IPv6 by themselves.
func TestKernelCarriesNoIPv6(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.sysctl("vnet", "net.ipv6.conf.all.forwarding=1")
	for i, ns := range []string{"m0", "m2"} {
		router, own := fmt.Sprintf("fd00:%d::1", i), fmt.Sprintf("fd00:%d::2", i)
		m := n.members[2*i]
		n.ip("vnet", "address add "+router+"/64 dev "+m.Interface+" nodad",
			"neighbor replace "+own+" lladdr "+m.MAC+" dev "+m.Interface+" nud permanent")
		n.ip(ns, "address add "+own+"/64 dev eth0 nodad", "route add default via "+router,
			"neighbor replace "+router+" lladdr "+routerMAC+" dev eth0 nud permanent")
	}
	n.listen6("m2", "[fd00:1::2]:80")
	if err := n.dial6("m0", "[fd00:1::2]:80"); err != nil {
		t.Fatalf("without the table nothing stands in the way: %v", err)
	}
	n.apply(n.vnet())
	if err := n.dial6("m0", "[fd00:1::2]:80"); err == nil {
		t.Error("IPv6 got through")
	}
}

func (n *network) listen6(ns, address string) {
	n.t.Helper()
	n.in(ns, func() error {
		l, err := net.Listen("tcp6", address)
		if err == nil {
			n.t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
}

func (n *network) dial6(ns, address string) (failed error) {
	n.t.Helper()
	n.in(ns, func() error {
		c, err := net.DialTimeout("tcp6", address, 1500*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		failed = err
		return nil
	})
	return failed
}

// arrives waits for a packet; one that should not arrive gets a shorter time.
func (n *network) arrives(ns string, id uint16, expected bool) bool {
	wait := 60 * time.Millisecond
	if expected {
		wait = 2 * time.Second
	}
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, b := range n.captures[ns].packets() {
			if packetID(b) == id {
				return true
			}
		}
	}
	return false
}

// sendFrame sends a packet from a member's eth0 with a source MAC of the test's choice.
func (n *network) sendFrame(ns, mac string, p []byte) {
	n.t.Helper()
	n.in(ns, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		from, _ := net.ParseMAC(mac)
		to, _ := net.ParseMAC(routerMAC)
		frame := append(append(append([]byte{}, to...), from...), 0x08, 0x00)
		return unix.Sendto(fd, append(frame, p...), 0, &unix.SockaddrLinklayer{Ifindex: i.Index})
	})
}

package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// natLab is a NAT gateway between an inside and an outside namespace.
type natLab struct {
	*lab
	captures map[string]*capture
	raw      map[string]int
}

func newNATLab(t *testing.T, public ...string) *natLab {
	t.Helper()
	n := &natLab{lab: newLab(t), captures: map[string]*capture{}, raw: map[string]int{}}
	for _, ns := range []string{"in", "nat", "out"} {
		n.namespace(ns)
	}
	n.sysctl("nat", "net.ipv4.ip_forward=1", "net.netfilter.nf_conntrack_tcp_loose=0", "net.netfilter.nf_conntrack_tcp_be_liberal=1")
	n.sysctl("in", "net.ipv4.ip_unprivileged_port_start=0")
	n.link(link{"nat", "in0", "02:cc:00:00:00:01"}, link{"in", "eth0", "02:cc:00:00:00:02"})
	n.link(link{"nat", "out0", "02:cc:00:00:00:03"}, link{"out", "eth0", "02:cc:00:00:00:04"})
	n.ip("nat", "address add 10.20.0.1/24 dev in0", "address add 192.0.2.1/24 dev out0",
		"neighbor replace 192.0.2.2 lladdr 02:cc:00:00:00:04 dev out0 nud permanent")
	for _, a := range public {
		n.ip("nat", "address add "+a+"/32 dev out0")
	}
	n.ip("out", "address add 192.0.2.2/24 dev eth0", "route add default via 192.0.2.1",
		"neighbor replace 192.0.2.1 lladdr 02:cc:00:00:00:03 dev eth0 nud permanent")
	for i := range 8 {
		n.ip("in", fmt.Sprintf("address add 10.20.0.%d/24 dev eth0", 4+i))
		n.ip("nat", fmt.Sprintf("neighbor replace 10.20.0.%d lladdr 02:cc:00:00:00:02 dev in0 nud permanent", 4+i))
	}
	n.ip("in", "route add default via 10.20.0.1", "neighbor replace 10.20.0.1 lladdr 02:cc:00:00:00:01 dev eth0 nud permanent")
	for _, ns := range []string{"in", "out"} {
		n.captures[ns] = n.capture(ns, "eth0")
		n.raw[ns] = n.rawSocket(ns)
	}
	n.apply(public...)
	return n
}

func (n *natLab) apply(public ...string) {
	n.t.Helper()
	var snat []netip.Addr
	for _, a := range public {
		snat = append(snat, addr(a))
	}
	text, err := CompileNAT(natInput(snat...))
	if err != nil {
		n.t.Fatal(err)
	}
	n.nft("nat", text)
}

// seen waits for a packet of a protocol to arrive in a namespace.
func (n *natLab) seen(ns string, wait time.Duration, match func([]byte) bool) bool {
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if slices.ContainsFunc(n.captures[ns].packets(), match) {
			return true
		}
	}
	return false
}

func TestKernelNATTranslatesAndCarriesReplies(t *testing.T) {
	t.Parallel()
	for name, public := range map[string][]string{"masquerade": nil, "an address": {"198.51.100.7"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNATLab(t, public...)
			want := append(public, "192.0.2.1")[0]
			l := n.listen("out", "192.0.2.2:443")
			client, err := n.dial("in", "10.20.0.4:900", "192.0.2.2:443")
			if err != nil {
				t.Fatal(err)
			}
			server := accept(t, l)
			pass(t, client, server, "question")
			pass(t, server, client, "answer")
			from := server.RemoteAddr().(*net.TCPAddr)
			if from.IP.String() != want || from.Port < 1024 {
				t.Errorf("the server sees %s, not a port from 1024 of %s", from, want)
			}
			n.apply(public...)
			pass(t, client, server, "after a replacement of the table")
		})
	}
}

func TestKernelNATPassesOnlyWhatItShould(t *testing.T) {
	t.Parallel()
	n := newNATLab(t)
	out := Flow{Source: addr("10.20.0.4"), Destination: addr("192.0.2.2"), SourcePort: 5000, DestinationPort: 5000}
	for i, c := range []struct {
		protocol core.Protocol
		passes   bool
	}{{core.ProtocolTCP, true}, {core.ProtocolUDP, true}, {core.ProtocolICMP, true}, {core.ProtocolESP, false}, {core.ProtocolAH, false}} {
		f := out
		f.Protocol = c.protocol
		id := uint16(500 + i)
		send(t, n.raw["in"], packet(f, id))
		wait := 60 * time.Millisecond
		if c.passes {
			wait = 2 * time.Second
		}
		if got := n.seen("out", wait, func(b []byte) bool { return packetID(b) == id }); got != c.passes {
			t.Errorf("%s from inside passes: %v", c.protocol, got)
		}
	}
	spoofed := out
	spoofed.Source, spoofed.Protocol = addr("10.99.0.1"), core.ProtocolUDP
	send(t, n.raw["in"], packet(spoofed, 600))
	if n.seen("out", 60*time.Millisecond, func(b []byte) bool { return packetID(b) == 600 }) {
		t.Error("a source that is not inside was translated")
	}
}

// TestKernelNATAnswersNothingUnsolicited tries the gateway's own address, and what is
// behind it, from outside.
func TestKernelNATAnswersNothingUnsolicited(t *testing.T) {
	t.Parallel()
	n := newNATLab(t)
	n.ip("nat", "route add 203.0.113.0/24 via 192.0.2.2")
	for _, to := range []string{"192.0.2.1", "10.20.0.4", "10.20.0.1", "203.0.113.9"} {
		for _, p := range []core.Protocol{core.ProtocolTCP, core.ProtocolUDP, core.ProtocolICMP} {
			send(t, n.raw["out"], packet(Flow{Source: addr("192.0.2.2"), Destination: addr(to), Protocol: p, SourcePort: 7, DestinationPort: 2000}, 9))
		}
	}
	if n.seen("in", 80*time.Millisecond, func([]byte) bool { return true }) {
		t.Error("something unsolicited came in")
	}
	if n.seen("out", time.Millisecond, func([]byte) bool { return true }) {
		t.Error("something unsolicited was answered")
	}
}

// TestKernelNATResetsFlowsThatAreOver forgets a flow, as a time-out does, and lets either
// side go on.
func TestKernelNATResetsFlowsThatAreOver(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"inside", "outside"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			n := newNATLab(t)
			l := n.listen("out", "192.0.2.2:443")
			client, err := n.dial("in", "10.20.0.4:0", "192.0.2.2:443")
			if err != nil {
				t.Fatal(err)
			}
			server := accept(t, l)
			pass(t, client, server, "before")
			n.in("nat", func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
			one := map[string]net.Conn{"inside": client, "outside": server}[side]
			_ = one.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err := one.Write([]byte("after")); err != nil {
				t.Fatal(err)
			}
			if _, err := one.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("the %s got %v, not a reset", side, err)
			}
		})
	}
}

func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), unix.ECONNRESET.Error())
}

// TestKernelNATSpreadsFlowsOverItsAddresses: one source uses every address, and its flows
// keep theirs when the table is replaced.
func TestKernelNATSpreadsFlowsOverItsAddresses(t *testing.T) {
	t.Parallel()
	var public []string
	for i := range 16 {
		public = append(public, fmt.Sprintf("198.51.100.%d", 16+i))
	}
	n := newNATLab(t, public...)
	l := n.listen("out", "192.0.2.2:443")
	used := map[string]bool{}
	var clients, servers []net.Conn
	for i := 0; len(used) < len(public) && i < 1000; i++ {
		client, err := n.dial("in", "10.20.0.4:0", "192.0.2.2:443")
		if err != nil {
			t.Fatal(err)
		}
		server := accept(t, l)
		used[server.RemoteAddr().(*net.TCPAddr).IP.String()] = true
		clients, servers = append(clients, client), append(servers, server)
	}
	if len(used) != len(public) {
		t.Errorf("%d flows of one source use %d of %d addresses", len(clients), len(used), len(public))
	}
	n.apply(public...)
	for i := range clients {
		pass(t, clients[i], servers[i], "after a replacement of the table")
	}
}

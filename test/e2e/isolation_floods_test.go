package e2e

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// arpTricks claims addresses of others, asks for them, and looks at what the far ends of
// its interfaces believe.
func (f *field) arpTricks(t *testing.T) {
	others := []string{f.neighbour.Address.String(), f.attacker.Address.String(), "10.20.0.1", "10.20.0.2", "10.20.1.4", f.neighbour.TunnelAddress.String(), f.attacker.TunnelAddress.String(), "169.254.0.1"}
	for link, where := range map[string]struct{ space, own, taught string }{
		"eth0": {f.vnetSpace(f.attacker), f.attacker.Address.String(), "10.20.0.200"},
		"tun0": {f.tunnelSpace(), f.attacker.TunnelAddress.String(), "169.254.200.200"},
	} {
		w := f.tapOf(t, f.attacker, link)
		far := neighbours(t, where.space, where.own)
		device := strings.Fields(far)[2]
		before := neighbours(t, where.space, "")
		// The control: an entry that is not the host's permanent one is moved by the same frame.
		runIn(t, where.space, "ip", "neigh", "replace", where.taught, "lladdr", "02:00:00:00:00:77", "dev", device, "nud", "stale")
		forged := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
		eventually(t, 60*time.Second, "a forged ARP reply on "+link+" changes an entry that it may change", func() bool {
			for _, a := range append(others, where.taught) {
				for _, op := range []byte{1, 2} {
					if err := w.Send(nettest.Frame{Kind: unix.ETH_P_ARP, From: forged, Text: nettest.ARP(op, forged, a, w.Next, where.own)}); err != nil {
						t.Fatal(err)
					}
					if err := w.Send(nettest.Frame{Kind: unix.ETH_P_ARP, From: forged, Text: nettest.ARP(op, forged, a, w.Next, a)}); err != nil { // gratuitous
						t.Fatal(err)
					}
				}
			}
			return strings.Contains(neighbours(t, where.space, where.taught), forged.String())
		})
		runIn(t, where.space, "ip", "neigh", "del", where.taught, "dev", device)
		if after := neighbours(t, where.space, ""); after != before {
			t.Errorf("forged ARP on %s changed the neighbours:\n%s\nwas\n%s", link, after, before)
		}
	}
	f.neighbourWorks(t, "after forged ARP")
}

// neighbours lists what a namespace knows by heart of addresses, or of one: permanent entries
// only, unless it is asked for one.
func neighbours(t *testing.T, space, addr string) string {
	t.Helper()
	args := []string{"-o", "-4", "neigh", "show"}
	if addr != "" {
		args = append(args, addr)
	} else {
		args = append(args, "nud", "permanent")
	}
	out, err := commandIn(space, "ip", args...)
	if err != nil || addr == "" && out == "" {
		t.Fatalf("neighbours in %s: %v\n%s", space, err, out)
	}
	return out
}

// more than a member may have open: see policy.MaxMemberFlows, written again here.
const (
	mostFlows  = 4096
	floodFlows = 6000
)

// mute keeps the kernel of a member's namespace from ending connections that it does not
// know, as whoever floods would.
func (f *field) mute(t *testing.T, m core.Member) {
	t.Helper()
	space := f.memberSpace(m)
	runIn(t, space, "nft", "add table ip e2e-mute; add chain ip e2e-mute out { type filter hook output priority 0; }; add rule ip e2e-mute out tcp flags & rst == rst drop")
	t.Cleanup(func() { runIn(t, space, "nft", "delete table ip e2e-mute") })
}

// flood sends frames of distinct flows and calls look now and then.
func (w *tap) flood(t *testing.T, r nettest.Frame, look func()) {
	t.Helper()
	for i := range floodFlows {
		r.SourcePort = uint16(2000 + i)
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
		if i%250 == 249 {
			look()
		}
	}
}

// relayHalfOpen begins connections to the relay and never goes on.
func (f *field) relayHalfOpen(t *testing.T) {
	f.mute(t, f.attacker)
	w := f.tapOf(t, f.attacker, "tun0")
	most := 0
	w.flood(t, f.toRelay(), func() { most = max(most, halfOpen(t, f.tunnelSpace())) })
	if most < 100 {
		t.Fatalf("at most %d connections were half open: the flood did not arrive", most)
	}
	if most > mostFlows+slack { // net.core.somaxconn; past it come cookies, which cost nothing
		t.Errorf("%d connections are half open", most)
	}
	for who, m := range map[string]core.Member{"the neighbour": f.neighbour, "the attacker itself": f.attacker} {
		if err := f.greets(m); err != nil {
			t.Errorf("the handshake of %s with the service: %v", who, err)
		}
	}
	f.neighbourWorks(t, "with half-open connections at the relay")
}

// halfOpen counts the connections whose last step a namespace waits for.
func halfOpen(t *testing.T, space string) (n int) {
	for line := range strings.Lines(readIn(t, space, "/proc/thread-self/net/tcp")) {
		if w := strings.Fields(line); len(w) > 3 && w[3] == "03" {
			n++
		}
	}
	return n
}

// endpointHalfOpen is the same at a private endpoint, where connections are tracked.
func (f *field) endpointHalfOpen(t *testing.T) {
	f.mute(t, f.twin)
	endpoint := fmt.Sprintf("10.20.1.7:%d", f.echo)
	r := nettest.Frame{Src: f.twin.Address.String(), Dst: "10.20.1.7", Protocol: unix.IPPROTO_TCP, Port: uint16(f.echo)}
	f.floodBounded(t, flooding{attacker: f.twin, frame: r, chain: "input"}, func() {
		if err := echoes(f.memberSpace(f.twinTwo), endpoint); err != nil {
			t.Errorf("the neighbour, meanwhile: %v", err)
		}
	})
	eventually(t, 60*time.Second, "the attacker itself is served again", func() bool { return echoes(f.memberSpace(f.twin), endpoint) == nil })
}

// udpBetweenMembers begins UDP flows where no rules are and nobody answers.
func (f *field) udpBetweenMembers(t *testing.T) {
	to := f.twinTwo.Address.String()
	target := listenIn(t, f.memberSpace(f.twinTwo), to+":0")
	back := listenIn(t, f.memberSpace(f.twin), f.twin.Address.String()+":0")
	r := nettest.Frame{Src: f.twin.Address.String(), Dst: to}
	f.floodBounded(t, flooding{attacker: f.twin, frame: r, chain: "forward"}, func() {
		if err := echoes(f.memberSpace(f.twinTwo), back); err != nil {
			t.Errorf("the neighbour's new connection, meanwhile: %v", err)
		}
	})
	eventually(t, 60*time.Second, "the attacker's new connections pass again", func() bool { return echoes(f.memberSpace(f.twin), target) == nil })
}

// udpThroughNAT begins UDP flows to the outside, which the NAT gateway and the host have
// to remember as well.
func (f *field) udpThroughNAT(t *testing.T) {
	nats := f.spaces("n")
	before := tracked(t, nats[0])
	f.floodBounded(t, flooding{attacker: f.attacker, frame: f.lawful(), chain: "forward"}, func() {
		if n := tracked(t, nats[0]) - before; n > mostFlows+slack || n < floodFlows/6 {
			t.Errorf("the NAT gateway tracks %d flows more, want up to %d", n, mostFlows)
		}
		out := sniff(t, "the NAT gateway", nats[0], false, "")
		sendUDP(t, f.memberSpace(f.neighbour), fmt.Sprintf("%s:%d", f.host(), markerBase), "the neighbour's")
		eventually(t, 60*time.Second, "the neighbour's datagram leaves", func() bool { return out.count(fmt.Sprint(markerBase)) > 0 })
		f.neighbourWorks(t, "with a flood of UDP flows")
	})
	db := fmt.Sprintf("10.20.1.4:%d", f.PG.Port)
	eventually(t, 60*time.Second, "the attacker's new connections pass again", func() bool {
		return dialFrom(f.memberSpace(f.attacker), db, 0, 5*time.Second) == nil
	})
}

// questionsToTheResolver asks for a name from one port after the other.
func (f *field) questionsToTheResolver(t *testing.T) {
	query := new(dns.Msg).SetQuestion("nobody.corp.internal.", dns.TypeA)
	text, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := f.lawful()
	r.Dst, r.Port, r.Text = "10.20.0.2", 53, string(text)
	f.floodBounded(t, flooding{attacker: f.attacker, frame: r, chain: "input"}, func() {
		eventually(t, 60*time.Second, "the neighbour's question is answered", func() bool {
			return asks(f.memberSpace(f.neighbour), "orders.corp.internal.") == nil
		})
	})
	eventually(t, 60*time.Second, "the attacker's own question is answered", func() bool {
		return asks(f.memberSpace(f.attacker), "orders.corp.internal.") == nil
	})
}

// asks wants an address of a name from the network's resolver.
func asks(space, name string) error {
	return nettest.In(space, func() error {
		c, err := net.DialTimeout("udp4", "10.20.0.2:53", 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
			return err
		}
		answer, err := conn.ReadMsg()
		if err == nil && len(answer.Answer) == 0 {
			err = fmt.Errorf("no address of %s: %v", name, answer)
		}
		return err
	})
}

// slack is for flows of others, which begin and end meanwhile.
const slack = 200

type flooding struct {
	attacker core.Member
	frame    nettest.Frame
	chain    string // where the limit acts
}

// floodBounded floods, checks that the network tracks no more flows of a member than it
// may have, and that meanwhile holds; then it ends the flows, as their time-outs would.
func (f *field) floodBounded(t *testing.T, a flooding, meanwhile func()) {
	t.Helper()
	space := f.vnetSpace(a.attacker)
	w := f.tapOf(t, a.attacker, "eth0")
	before, dropped := tracked(t, space), overLimit(t, space, a.chain)
	most := 0
	w.flood(t, a.frame, func() { most = max(most, tracked(t, space)-before) })
	if most < floodFlows/6 {
		t.Fatalf("at most %d flows more were tracked: the flood did not arrive", most)
	}
	if most > mostFlows+slack {
		t.Errorf("%d flows more were tracked, the limit is %d", most, mostFlows)
	}
	if n := overLimit(t, space, a.chain) - dropped; n == 0 {
		t.Errorf("the limit of %d flows dropped nothing of %d", mostFlows, floodFlows)
	}
	meanwhile()
	endFlows(t, space, a.attacker.Address, cmp.Or(a.frame.Protocol, unix.IPPROTO_UDP))
}

func tracked(t *testing.T, space string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(readIn(t, space, "/proc/sys/net/netfilter/nf_conntrack_count")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var overLimitForm = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop comment "more flows than a member may have open"`)

// overLimit is how many packets the limit of flows dropped.
func overLimit(t *testing.T, space, chain string) int {
	t.Helper()
	out, err := commandIn(space, "nft", "list", "chain", "inet", "sluice", chain)
	m := overLimitForm.FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("no limit of flows in %s (%v):\n%s", chain, err, out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func endFlows(t *testing.T, space string, from netip.Addr, proto uint8) {
	t.Helper()
	filter := &netlink.ConntrackFilter{}
	err := filter.AddIP(netlink.ConntrackOrigSrcIP, from.AsSlice())
	if err == nil {
		err = filter.AddProtocol(proto)
	}
	if err == nil {
		err = nettest.In(space, func() error {
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
			return err
		})
	}
	if err != nil {
		t.Fatalf("end the flows of %s: %v", from, err)
	}
}

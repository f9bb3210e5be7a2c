package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestKernelAgreesWithEvaluate sends the first packets of random flows through random
// rule sets, and compares what arrives, and which rule of the kernel's counted it, with
// what Evaluate says.
func TestKernelAgreesWithEvaluate(t *testing.T) {
	t.Parallel()
	const sets, flowsPerSet = 96, 32
	n := newNetwork(t)
	k := &conformance{network: n, random: rand.New(rand.NewPCG(20, 26)), dns: n.dnsSockets(), nextID: 1,
		portless: map[string]bool{}, denied: map[core.Direction]int{}}
	for i := range sets {
		k.round(fmt.Sprintf("set %d", i), flowsPerSet)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d rule sets: %d flows passed, %d denied outbound, %d denied inbound, %d without a route",
		sets, k.passed, k.denied[core.Outbound], k.denied[core.Inbound], k.unrouted)
	if min(k.passed, k.denied[core.Outbound], k.denied[core.Inbound], k.unrouted) < 50 {
		t.Error("the random flows don't reach every outcome often enough to mean anything")
	}
}

type conformance struct {
	*network
	random   *rand.Rand
	dns      []int
	nextID   uint16
	portless map[string]bool // ESP and AH flows of the round
	passed   int
	unrouted int
	denied   map[core.Direction]int
}

// probe is one flow with the packet's number and what is expected of it.
type probe struct {
	Flow
	id      uint16
	verdict Verdict
}

func (k *conformance) round(name string, flows int) {
	k.t.Helper()
	v := k.vnet(k.groups()...)
	k.apply(v)
	k.flush()
	clear(k.portless)
	var probes []probe
	for range flows {
		p := k.probe(v)
		probes = append(probes, p)
		source, _ := k.member(p.Source)
		send(k.t, k.raw[source.ns], packet(p.Flow, p.id))
	}
	arrived := k.observe(probes)
	for _, p := range probes {
		if want := k.arrives(p); arrived[p.id] != want {
			rules, _ := json.Marshal(v.NSGs)
			k.t.Errorf("%s: %+v: arrived: %v, Evaluate says %+v\nrules: %s", name, p.Flow, arrived[p.id], p.verdict, rules)
		}
	}
	if diff := cmp.Diff(expectedCounts(probes), k.counts()); diff != "" {
		rules, _ := json.Marshal(v.NSGs)
		k.t.Errorf("%s: packets per deciding rule (- Evaluate, + kernel):\n%s\nrules: %s", name, diff, rules)
	}
}

// flush forgets the flows of the round before.
func (k *conformance) flush() {
	k.in("vnet", func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

func (k *conformance) probe(v core.GoalVNet) probe {
	p := probe{Flow: k.flow(), id: k.nextID}
	p.SourcePort = 20000 + k.nextID
	k.nextID++
	p.verdict = Evaluate(v, k.resolvers, p.Flow)
	d, denied := p.verdict.Denial()
	switch {
	case denied:
		k.denied[d.Direction]++
	case !p.verdict.Allowed:
		k.unrouted++
	default:
		k.passed++
	}
	return p
}

// arrives says whether the packet must be seen: Evaluate does not know that nobody holds
// an address.
func (k *conformance) arrives(p probe) bool {
	if !p.verdict.Allowed || p.verdict.Route != "VnetLocal" {
		return p.verdict.Allowed
	}
	_, member := k.member(p.Destination)
	return member || k.isLocal(p.Destination)
}

// isLocal reports whether the network's own namespace holds the address.
func (k *conformance) isLocal(a netip.Addr) bool {
	for _, e := range k.endpoints {
		if e.Address == a {
			return true
		}
	}
	return a == k.resolvers[0] || a == k.resolvers[1] || a == addr("10.20.0.1")
}

// observe collects until everything that is expected arrived, and a while longer.
func (k *conformance) observe(probes []probe) map[uint16]bool {
	arrived := map[uint16]bool{}
	expected := 0
	for _, p := range probes {
		if k.arrives(p) {
			expected++
		}
	}
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		k.collect(probes, arrived)
		if len(arrived) >= expected {
			break
		}
	}
	time.Sleep(8 * time.Millisecond)
	k.collect(probes, arrived)
	return arrived
}

// collect notes whose packets, or answers from the network's own namespace, are there.
func (k *conformance) collect(probes []probe, arrived map[uint16]bool) {
	for ns, c := range k.captures {
		for _, b := range c.packets() {
			for _, p := range probes {
				if k.landed(ns, b, p) || k.answered(ns, b, p) {
					arrived[p.id] = true
				}
			}
		}
	}
	buf := make([]byte, 64)
	for _, fd := range k.dns {
		for {
			_, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				break
			}
			arrived[uint16(from.(*unix.SockaddrInet4).Port)-20000] = true
		}
	}
}

// landed reports whether b is the probe's own packet, in whatever namespace.
func (k *conformance) landed(ns string, b []byte, p probe) bool {
	if packetID(b) != p.id || packetSource(b) != p.Source || packetDestination(b) != p.Destination || packetProtocol(b) != protocolNumbers[p.Protocol] {
		return false
	}
	where := "nat"
	if m, ok := k.member(p.Destination); ok {
		where = m.ns
	}
	if ns != where {
		k.t.Errorf("%+v arrived in namespace %s", p.Flow, ns)
	}
	return true
}

// answered reports whether b is an answer to the probe from the network's namespace.
func (k *conformance) answered(ns string, b []byte, p probe) bool {
	source, _ := k.member(p.Source)
	if ns != source.ns || packetSource(b) != p.Destination || !k.isLocal(p.Destination) {
		return false
	}
	if packetProtocol(b) == unix.IPPROTO_ICMP {
		k.t.Errorf("%s answered with ICMP: %x", p.Destination, b)
		return false
	}
	_, to := packetPorts(b)
	return to == p.SourcePort
}

// dnsSockets listens where the resolver would; TCP is answered with a reset.
func (n *network) dnsSockets() []int {
	var out []int
	for _, a := range n.resolvers {
		n.in("vnet", func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			out = append(out, fd)
			n.t.Cleanup(func() { _ = unix.Close(fd) })
			return unix.Bind(fd, &unix.SockaddrInet4{Port: 53, Addr: a.As4()})
		})
	}
	return out
}

func expectedCounts(probes []probe) map[string]int {
	out := map[string]int{}
	for _, p := range probes {
		for _, d := range p.verdict.Decisions {
			out[fmt.Sprintf("%s/%s (%d) %s", d.NSG, d.Rule, d.Priority, strings.ToLower(string(d.Direction)))]++
		}
	}
	return out
}

// counts reads how many packets each security rule decided.
func (k *conformance) counts() map[string]int {
	k.t.Helper()
	text := k.run("", "ip", "netns", "exec", k.prefix+"vnet", "nft", "-j", "list", "table", "inet", "sluice")
	var list struct {
		Nftables []struct {
			Rule struct {
				Chain   string
				Comment string
				Expr    []struct{ Counter *struct{ Packets int } }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		k.t.Fatal(err)
	}
	out := map[string]int{}
	for _, o := range list.Nftables {
		for _, e := range o.Rule.Expr {
			if e.Counter != nil && strings.HasPrefix(o.Rule.Chain, "nsg_") {
				out[o.Rule.Comment] += e.Counter.Packets
			}
		}
	}
	maps.DeleteFunc(out, func(_ string, packets int) bool { return packets == 0 })
	return out
}

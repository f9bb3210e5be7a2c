package policy

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// KernelFabric is the test network as policytest's Fabric: real packets through real
// namespaces.
type KernelFabric struct {
	*network
	dns    []int
	nextID uint16
	sent   []sentPacket
}

type sentPacket struct {
	Flow
	id      uint16
	arrived bool
}

// NewKernelFabric makes the network; change adapts what is compiled.
func NewKernelFabric(t *testing.T, change func(*VNetInput)) *KernelFabric {
	t.Helper()
	n := newNetwork(t)
	n.change = change
	return &KernelFabric{network: n, dns: n.dnsSockets()}
}

// Apply puts rules in force.
func (k *KernelFabric) Apply(v core.GoalVNet) {
	k.t.Helper()
	k.apply(v)
	k.in("vnet", func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// Carry sends the flows' first packets and waits until the kernel has decided about each,
// by its own counts, and delivered what it let pass.
func (k *KernelFabric) Carry(flows []Flow) []bool {
	k.t.Helper()
	k.sent = nil
	for _, f := range flows {
		k.nextID++
		k.sent = append(k.sent, sentPacket{Flow: f, id: k.nextID})
		source, _ := k.member(f.Source)
		send(k.t, k.raw[source.ns], packet(f, k.nextID))
	}
	quiet := 0
	for deadline := time.Now().Add(20 * time.Second); quiet < 2; time.Sleep(time.Millisecond) {
		entered, left, passed := k.progress()
		if arrived := k.collect(); entered >= len(flows) && entered == left && arrived >= passed {
			quiet++
		} else if quiet = 0; time.Now().After(deadline) {
			k.t.Fatalf("%d packets sent: the kernel took %d, decided about %d, let %d pass, %d arrived", len(flows), entered, left, passed, arrived)
		}
	}
	out := make([]bool, len(flows))
	for i, p := range k.sent {
		out[i] = p.arrived
	}
	return out
}

// collect notes whose packets, or answers from the network's own namespace, are there,
// and counts those that arrived.
func (k *KernelFabric) collect() int {
	for ns, c := range k.captures {
		for _, b := range c.packets() {
			for i := range k.sent {
				if p := &k.sent[i]; k.landed(ns, b, *p) || k.answered(ns, b, *p) {
					p.arrived = true
				}
			}
		}
	}
	k.questions()
	n := 0
	for _, p := range k.sent {
		if p.arrived {
			n++
		}
	}
	return n
}

// questions takes what the resolver was asked.
func (k *KernelFabric) questions() {
	buf := make([]byte, 64)
	for _, fd := range k.dns {
		for {
			_, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				break
			}
			for i := range k.sent {
				if p := &k.sent[i]; int(p.SourcePort) == from.(*unix.SockaddrInet4).Port && p.Protocol == core.ProtocolUDP {
					p.arrived = true
				}
			}
		}
	}
}

// landed reports whether b is the flow's own packet, in whatever namespace.
func (k *KernelFabric) landed(ns string, b []byte, p sentPacket) bool {
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

// answered reports whether b is an answer to the flow from the network's namespace.
func (k *KernelFabric) answered(ns string, b []byte, p sentPacket) bool {
	source, _ := k.member(p.Source)
	if _, isMember := k.member(p.Destination); isMember || ns != source.ns || packetSource(b) != p.Destination || packetProtocol(b) != protocolNumbers[p.Protocol] {
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

// kernelRule is a rule of the kernel's with its count.
type kernelRule struct {
	chain, comment string
	packets        int
}

// counters reads every counter of the table.
func (k *KernelFabric) counters() []kernelRule {
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
	var out []kernelRule
	for _, o := range list.Nftables {
		for _, e := range o.Rule.Expr {
			if e.Counter != nil {
				out = append(out, kernelRule{o.Rule.Chain, o.Rule.Comment, e.Counter.Packets})
			}
		}
	}
	return out
}

// progress counts the packets that came in, those whose fate is decided, and those that
// passed as first ones of a flow.
func (k *KernelFabric) progress() (entered, left, passed int) {
	for _, r := range k.counters() {
		switch {
		case r.chain == "prerouting" && strings.HasPrefix(r.comment, "a member"):
			entered += r.packets
		case strings.HasPrefix(r.chain, "nsg_"):
			if k.drops[r.comment] {
				left += r.packets
			}
		case r.chain == "forward", r.chain == "input", r.chain == "platform_dns":
			left += r.packets
			for _, what := range []string{"to the member", "out through", "private endpoint", "question to"} {
				if strings.HasPrefix(r.comment, what) {
					passed += r.packets
				}
			}
		}
	}
	return entered, left, passed
}

// Decided counts the packets that each security rule decided about.
func (k *KernelFabric) Decided() map[string]int {
	k.t.Helper()
	out := map[string]int{}
	for _, r := range k.counters() {
		if strings.HasPrefix(r.chain, "nsg_") {
			out[r.comment] += r.packets
		}
	}
	maps.DeleteFunc(out, func(_ string, packets int) bool { return packets == 0 })
	return out
}

package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The attributes of chains that are read here.
const (
	attrChainHook, attrChainPolicy = 4, 5
	attrHookNumber                 = 1
	hookForward                    = 2
	policyDrop                     = 0
)

// The counters of the host's table, one of each for every NAT gateway's interface: what came
// to be forwarded, and what was left of it behind every other firewall.
const (
	countOut, countOutEnd = "out-", "out-end-"
	countIn, countInEnd   = "in-", "in-end-"
)

// hostFirewall notices other firewalls of the host that drop what NAT gateways forward.
// Each packet has to be accepted by every chain of the forward hook, so nothing that this
// program puts into its own table lets one pass. What is lost is seen in our own counters,
// whoever dropped it; the chains tell who may have.
type hostFirewall struct {
	mu     sync.Mutex
	names  names
	at     *space
	socket *nl.SocketHandle
	seen   map[string]*passage // by the NAT gateway's interface
}

// passage is what was seen of one NAT gateway's packets the last time.
type passage struct {
	lost, passed uint64
	blocked      bool
}

// firewall opens the host's firewall for reading, once.
func (h *hostSide) firewall(n names) (*hostFirewall, error) {
	if h.watch != nil {
		return h.watch, nil
	}
	s, err := netfilterSocket(h.at)
	if err != nil {
		return nil, err
	}
	h.watch = &hostFirewall{names: n, at: h.at, socket: s, seen: map[string]*passage{}}
	return h.watch, nil
}

func (f *hostFirewall) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.socket != nil {
		f.socket.Close()
		f.socket = nil
	}
}

// look says, by interface, which NAT gateways' packets are dropped, and by whom.
func (f *hostFirewall) look(views []*natView) (map[string]*core.NATCondition, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.socket == nil {
		return nil, errMeterClosed
	}
	before, err := namedCounters(f.socket, f.names.hostTable())
	if err != nil {
		return nil, err
	}
	after, err := namedCounters(f.socket, f.names.hostTable())
	if err != nil {
		return nil, err
	}
	chains, err := f.chains()
	if err != nil {
		return nil, err
	}
	out := map[string]*core.NATCondition{}
	maps.DeleteFunc(f.seen, func(link string, _ *passage) bool {
		return !slices.ContainsFunc(views, func(v *natView) bool { return v.link == link })
	})
	for _, v := range views {
		if v.link != "" && v.ready {
			out[v.link] = f.judge(v.link, before, after, chains)
		}
	}
	return out, nil
}

// judge compares what came and what was left. Before the first packet it goes by the
// policies of the chains alone.
func (f *hostFirewall) judge(link string, before, after map[string]policy.NATCount, chains []foreignChain) *core.NATCondition {
	came := before[countOut+link].Packets + before[countIn+link].Packets
	passed := after[countOutEnd+link].Packets + after[countInEnd+link].Packets
	lost := came - min(came, passed)
	p := f.seen[link]
	if p == nil || lost < p.lost || passed < p.passed { // the table is new
		p = &passage{}
		f.seen[link] = p
	}
	switch {
	case lost > p.lost:
		p.blocked = true
	case passed > p.passed:
		p.blocked = false
	}
	p.lost, p.passed = lost, passed
	if p.blocked {
		return blockedBy(f.names, chains, fmt.Sprintf("%d of %d packets were dropped", lost, came))
	}
	if came == 0 {
		closed := slices.DeleteFunc(slices.Clone(chains), func(c foreignChain) bool { return !c.drops || c.opened })
		if len(closed) > 0 {
			return blockedBy(f.names, closed, "its packets will be dropped")
		}
	}
	return nil
}

// blockedBy words the condition: what happens, who does it, and what opens just what is
// needed.
func blockedBy(n names, chains []foreignChain, what string) *core.NATCondition {
	c := &core.NATCondition{Type: core.NATForwardingBlocked}
	slices.SortStableFunc(chains, func(a, b foreignChain) int { return rankChain(a) - rankChain(b) })
	if len(chains) == 0 {
		c.Message = fmt.Sprintf("the host does not forward for it: %s, and no chain of nf_tables on the host says by whom", what)
		c.Hint = openIPTables("FORWARD", n.hostLinks())
		return c
	}
	first := chains[0]
	c.Message = fmt.Sprintf("the host does not forward for it: %s by its firewall, %s", what, first)
	c.Hint = first.open(n.hostLinks())
	return c
}

func rankChain(c foreignChain) int {
	if c.drops && !c.opened {
		return 0
	}
	return 1
}

// foreignChain is a chain of the forward hook that is not ours.
type foreignChain struct {
	family, table, name string
	drops               bool // its policy is drop
	opened              bool // a rule of its table names our interfaces
	docker              bool // its table has the chain that Docker leaves to administrators
	legacy              bool // of iptables without nf_tables
}

// String names the chain as the tool does that shows it.
func (c foreignChain) String() string {
	how := ""
	if c.drops {
		how = ", which drops what it does not accept"
	}
	if c.docker {
		how += " (Docker sets that)"
	}
	if c.legacy {
		return "chain FORWARD of table filter (iptables-legacy)" + how
	}
	return fmt.Sprintf("chain %s of table %s %s%s", c.name, c.family, c.table, how)
}

// open gives the commands that let packets of NAT gateways pass, and answers to them.
func (c foreignChain) open(links string) string {
	switch {
	case c.docker:
		return openIPTables("DOCKER-USER", links)
	case c.legacy, c.family == "ip" && c.table == "filter" && c.name == "FORWARD":
		return openIPTables("FORWARD", links)
	}
	at := fmt.Sprintf("nft insert rule %s %s %s", c.family, c.table, c.name)
	return fmt.Sprintf(`%s iifname '"%s*"' accept; %s oifname '"%s*"' ct state established,related accept`, at, links, at, links)
}

func openIPTables(chain, links string) string {
	return fmt.Sprintf("iptables -I %[1]s -i '%[2]s+' -j ACCEPT; iptables -I %[1]s -o '%[2]s+' -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", chain, links)
}

// chains lists the foreign chains of the forward hook.
func (f *hostFirewall) chains() ([]foreignChain, error) {
	msgs, err := dump(f.socket, nftMsgGetChain)
	if err != nil {
		return nil, fmt.Errorf("listing the host's chains: %w", err)
	}
	var out []foreignChain
	docker := map[string]bool{}
	for _, m := range msgs {
		c, ok := readChain(m)
		if c.name == "DOCKER-USER" {
			docker[c.family+" "+c.table] = true
		}
		if ok && !strings.HasPrefix(c.table, "sluice-") {
			out = append(out, c)
		}
	}
	for i, c := range out {
		out[i].docker = docker[c.family+" "+c.table] && c.name == "FORWARD"
		if c.drops && !out[i].opened {
			if out[i].opened, err = f.named(c); err != nil {
				return nil, err
			}
		}
	}
	return append(out, f.legacy()...), nil
}

// readChain reads a chain; ok says that it is one of the forward hook.
func readChain(m []byte) (c foreignChain, ok bool) {
	switch m[0] {
	case familyIP:
		c.family = "ip"
	case familyInet:
		c.family = "inet"
	default:
		return c, false
	}
	c.table, c.name = textAttribute(m, attrChainTable), textAttribute(m, attrChainName)
	hook, isBase := attribute(m, attrChainHook)
	walk(hook, func(kind uint16, v []byte) {
		ok = ok || isBase && kind == attrHookNumber && len(v) == 4 && binary.BigEndian.Uint32(v) == hookForward
	})
	if v, has := attribute(m, attrChainPolicy); has && len(v) == 4 {
		c.drops = binary.BigEndian.Uint32(v) == policyDrop
	}
	return c, ok
}

// named says that a rule of the chain's table names our interfaces: somebody opened it.
func (f *hostFirewall) named(c foreignChain) (bool, error) {
	msgs, err := dump(f.socket, nftMsgGetRule, nl.NewRtAttr(attrRuleTable, nl.ZeroTerminated(c.table)))
	return slices.ContainsFunc(msgs, func(m []byte) bool {
		return familyOf(c.family) == m[0] && textAttribute(m, attrRuleTable) == c.table && bytes.Contains(m, []byte(f.names.hostLinks()))
	}), err
}

// legacy says that the older iptables, whose rules nf_tables does not show, has some.
func (f *hostFirewall) legacy() (out []foreignChain) {
	_ = f.at.do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
		if err == nil && slices.Contains(strings.Fields(string(b)), "filter") {
			out = append(out, foreignChain{legacy: true})
		}
		return nil // without that file there is no such iptables
	})
	return out
}

func dump(s *nl.SocketHandle, msg int, attrs ...*nl.RtAttr) ([][]byte, error) {
	return retryDump(func() ([][]byte, error) {
		req := request(s, unix.NFNL_SUBSYS_NFTABLES<<8|msg, unix.AF_UNSPEC)
		for _, a := range attrs {
			req.AddData(a)
		}
		return req.Execute(unix.NETLINK_NETFILTER, 0)
	})
}

// netfilterSocket opens a netlink socket of netfilter in a namespace.
func netfilterSocket(at *space) (*nl.SocketHandle, error) {
	var out *nl.SocketHandle
	err := at.do(func() error {
		s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		tv := unix.NsecToTimeval(int64(netlinkTimeout))
		if err := errors.Join(s.SetSendTimeout(&tv), s.SetReceiveTimeout(&tv)); err != nil {
			s.Close()
			return err
		}
		out = &nl.SocketHandle{Socket: s}
		return nil
	})
	return out, err
}

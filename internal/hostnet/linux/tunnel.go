package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/policy"
	"golang.org/x/sys/unix"
)

// tunnel is the namespace T in which all members' tunnels end. It forwards nothing
// and holds one socket, so by its construction a member reaches nothing else.
type tunnel struct {
	at       *space
	rules    *ruleset
	listener *net.TCPListener
	text     string
	checked  time.Time
}

// tunnelRules lets a member's own address in to the relay's port. Whether a source is
// the interface's own is asked of the routes: each tunnel has one, to its member. The
// rules of virtual networks do not apply here, but for those that name PlatformTunnel:
// denied members open no connection, those that are cut have none.
func tunnelRules(port uint16, denied, cut []netip.Addr) string {
	return fmt.Sprintf(`table inet sluice {}
delete table inet sluice
table inet sluice {
	set denied {
		type ipv4_addr%s
	}
	set cut {
		type ipv4_addr%s
	}
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		meta nfproto ipv6 counter drop comment "IPv6 is not carried"
		fib saddr . iif oif missing counter drop comment "spoofed"
	}
	chain input {
		type filter hook input priority filter; policy drop;
		ip saddr @cut counter drop comment "denied by a rule that names PlatformTunnel, of an NSG with revoke"
		ip saddr @denied tcp flags & (fin | syn | rst | ack) == syn counter drop comment "denied by a rule that names PlatformTunnel"
		iifname "t*" ip daddr %s tcp dport %d counter accept comment "to the relay"
		counter drop comment "nothing else answers"
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		counter drop comment "members never meet"
	}
}
`, elementLines(denied), elementLines(cut), relayAddress, port)
}

// elementLines writes a set's elements one per line, in order.
func elementLines(list []netip.Addr) string {
	slices.SortFunc(list, netip.Addr.Compare)
	lines := make([]string, len(list))
	for i, a := range list {
		lines[i] = a.String()
	}
	return elementText(lines)
}

// elementText writes elements in the form that parseText reads.
func elementText(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return "\n\t\telements = {\n\t\t\t" + strings.Join(list, ",\n\t\t\t") + "\n\t\t}"
}

// restrict puts in force what rules that name PlatformTunnel say about the wanted ports.
func (n *Network) restrict(ctx context.Context, r *round) error {
	var denied, cut []netip.Addr
	for uid, goal := range r.goals {
		if !namesTunnel(goal) {
			continue
		}
		e := policy.NewEvaluator(goal, nil)
		for _, p := range r.ports[uid] {
			d, is := e.Evaluate(policy.Flow{
				Source: p.Address, Destination: relayAddress, Protocol: core.ProtocolTCP, DestinationPort: n.opts.TunnelPort,
			}).Denial()
			if !is {
				continue
			}
			denied = append(denied, p.TunnelAddress)
			if slices.ContainsFunc(goal.NSGs, func(g core.NetworkSecurityGroup) bool { return g.Name == d.NSG && g.Revoke }) {
				cut = append(cut, p.TunnelAddress)
			}
		}
	}
	text := tunnelRules(n.opts.TunnelPort, denied, cut)
	if text == n.tunnel.text {
		return nil
	}
	n.tunnel.text = text // asserted again, should this fail
	return n.tunnel.rules.apply(ctx, text)
}

func namesTunnel(g core.GoalVNet) bool {
	return slices.ContainsFunc(g.NSGs, func(n core.NetworkSecurityGroup) bool {
		return slices.ContainsFunc(n.Rules, func(r core.SecurityRule) bool {
			return r.Direction == core.Outbound && slices.Contains(r.Destination, policy.TagPlatformTunnel)
		})
	})
}

// releaseTime is how long the listener of a process that was killed may still be held, by
// a program that it was just starting.
const releaseTime = 3 * time.Second

func (n *Network) listenForTunnels(ctx context.Context, at *space) (*net.TCPListener, error) {
	for deadline := time.Now().Add(releaseTime); ; {
		l, err := at.listenTCP(n.ctx, netip.AddrPortFrom(relayAddress, n.opts.TunnelPort).String())
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (n *Network) openTunnel(ctx context.Context) (*tunnel, error) {
	at, _, err := ensureSpace(n.names.tunnel(), "tunnels of all members", quiet("0"))
	if err != nil {
		return nil, err
	}
	t := &tunnel{at: at, text: tunnelRules(n.opts.TunnelPort, nil, nil)}
	if t.rules, err = newRuleset(at); err == nil {
		err = t.assert(ctx)
	}
	if err == nil {
		t.listener, err = n.listenForTunnels(ctx, at)
	}
	if err != nil {
		_ = t.close()
		return nil, err
	}
	return t, nil
}

// assert makes what does not depend on members true again.
func (t *tunnel) assert(ctx context.Context) error {
	if err := t.at.keepName(); err != nil {
		return err
	}
	if !t.rules.holds(t.text) {
		if err := t.rules.apply(ctx, t.text); err != nil {
			return err
		}
	}
	l, err := t.at.links()
	if err != nil {
		return err
	}
	return t.at.assert(l, tunnelBase())
}

func tunnelBase() state {
	return state{addrs: []address{{"lo", relayAddress}}}
}

// prune removes what belongs to no wanted port, keep naming the interfaces that stay.
func (t *tunnel) prune(want []hostnet.Port, n *Network) error {
	base, keep := tunnelBase(), map[string]bool{"lo": true}
	for _, p := range want {
		base.add(n.portInTunnel(p))
		keep[tunnelLink(p.Key())] = true
	}
	l, err := t.at.dropLinks(func(name string) bool {
		return !strings.HasPrefix(name, "t") || keep[name] || n.reaper.busy(portJob(strings.TrimPrefix(name, "t")))
	})
	if err != nil {
		return err
	}
	return t.at.prune(l, base, func(string) bool { return true })
}

func (n *Network) portInTunnel(p hostnet.Port) state {
	name, macs := tunnelLink(p.Key()), n.names.portMACs(p)
	return state{
		neighs: []neighbour{{name, p.TunnelAddress, macs.tun.String()}},
		routes: []route{{table: unix.RT_TABLE_MAIN, dst: single(p.TunnelAddress), link: name, src: relayAddress}},
	}
}

func (t *tunnel) close() error {
	var err error
	if t.listener != nil {
		if err = t.listener.Close(); errors.Is(err, net.ErrClosed) {
			err = nil
		}
	}
	if t.rules != nil {
		t.rules.close()
	}
	t.at.close()
	return err
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/hostnet"
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
// the interface's own is asked of the routes: each tunnel has one, to its member.
func tunnelRules(port uint16) string {
	return fmt.Sprintf(`table inet sluice {}
delete table inet sluice
table inet sluice {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		meta nfproto ipv6 counter drop comment "IPv6 is not carried"
		fib saddr . iif oif missing counter drop comment "spoofed"
	}
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "t*" ip daddr %s tcp dport %d counter accept comment "to the relay"
		counter drop comment "nothing else answers"
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		counter drop comment "members never meet"
	}
}
`, relayAddress, port)
}

func (n *Network) openTunnel(ctx context.Context) (*tunnel, error) {
	at, _, err := ensureSpace(n.names.tunnel(), "tunnels of all members", quiet("0"))
	if err != nil {
		return nil, err
	}
	t := &tunnel{at: at, text: tunnelRules(n.opts.TunnelPort)}
	if t.rules, err = newRuleset(at); err == nil {
		err = t.assert(ctx)
	}
	if err == nil {
		t.listener, err = at.listenTCP(n.ctx, netip.AddrPortFrom(relayAddress, n.opts.TunnelPort).String())
	}
	if err != nil {
		t.close()
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

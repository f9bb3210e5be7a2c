package linux

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"golang.org/x/sys/unix"
)

// port is a member's namespace M with its two interfaces.
type port struct {
	spec     hostnet.Port
	prepared string // the namespace to take, if it has none
	at       *space
	ready    bool // complete when it was last looked at
	bound    bool // the rules in force know it
	err      error
	checked  time.Time
}

// portJob names the removal of a port for the reaper.
func portJob(digest string) string { return "port " + digest }

func portWhy(k hostnet.PortKey) string {
	return fmt.Sprintf("member %s generation %d", shorten(k.Member, 160), k.Generation)
}

func shorten(s string, n int) string { return s[:min(n, len(s))] }

// ensurePort makes a port complete, whatever of it exists already. The namespace is
// never made anew while it can be found: a process may be in it.
func (n *Network) ensurePort(ctx context.Context, v *vnet, p *port) error {
	subnet, ok := subnetOf(v.goal, p.spec.Subnet)
	if !ok {
		return errs.New(errs.NotFound, "the virtual network %s has no subnet %q", v.goal.Name, p.spec.Subnet)
	}
	key := p.spec.Key()
	n.reaper.settle(portJob(portDigest(key)))
	if err := n.openPort(p); err != nil {
		return err
	}
	macs, why := n.names.portMACs(p.spec), portWhy(key)
	ends, err := ensurePairs(ctx,
		pair{end{v.at, portLink(key), macs.ethOut, why}, end{p.at, ethName, macs.eth, ""}},
		pair{end{n.tunnel.at, tunnelLink(key), macs.tunOut, why}, end{p.at, tunName, macs.tun, ""}})
	if err != nil {
		return err
	}
	if err := v.at.assert(newLinks(ends[0]), n.portInVNet(p.spec)); err != nil {
		return err
	}
	if err := n.tunnel.at.assert(newLinks(ends[2]), n.portInTunnel(p.spec)); err != nil {
		return err
	}
	// Last, because from here on the member can send.
	return p.at.assert(newLinks(ends[1], ends[3]), n.portInMember(p.spec, subnet))
}

func (n *Network) openPort(p *port) (err error) {
	if p.at != nil {
		return p.at.keepName()
	}
	if p.at, err = n.takePrepared(p); p.at != nil || err != nil {
		return err
	}
	p.at, _, err = ensureSpace(n.names.member(p.spec.Key()), portWhy(p.spec.Key()), memberValues())
	return err
}

// portInVNet is what V holds for a port: the way to its address, through it alone.
func (n *Network) portInVNet(p hostnet.Port) state {
	name, macs := portLink(p.Key()), n.names.portMACs(p)
	return state{
		neighs: []neighbour{{name, p.Address, macs.eth.String()}},
		routes: []route{{table: unix.RT_TABLE_MAIN, dst: single(p.Address), link: name}},
	}
}

// portInMember is what M holds. The gateway's address answers no ARP and nobody has
// it: it is the key under which the other end's MAC is found.
func (n *Network) portInMember(p hostnet.Port, s core.Subnet) state {
	macs, gateway := n.names.portMACs(p), nth(s.Prefix, 1)
	return state{
		addrs: []address{{ethName, p.Address}, {tunName, p.TunnelAddress}},
		neighs: []neighbour{
			{ethName, gateway, macs.ethOut.String()},
			{tunName, relayAddress, macs.tunOut.String()},
		},
		routes: []route{
			{table: unix.RT_TABLE_MAIN, dst: single(relayAddress), link: tunName, src: p.TunnelAddress},
			{table: unix.RT_TABLE_MAIN, dst: everywhere, link: ethName, via: gateway, src: p.Address},
		},
	}
}

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// dropPort takes a port's addresses away at once, so that another may have them, and
// its interfaces and its namespace's name in the background.
func (n *Network) dropPort(v *vnet, p *port) {
	key := p.spec.Key()
	inVNet, inTunnel := n.portInVNet(p.spec), n.portInTunnel(p.spec)
	for _, side := range []struct {
		at   *space
		name string
		s    state
	}{{v.at, portLink(key), inVNet}, {n.tunnel.at, tunnelLink(key), inTunnel}} {
		if side.at == nil {
			continue
		}
		if link, err := side.at.nl.LinkByName(side.name); err == nil {
			for _, r := range side.s.routes {
				n.warn("removing a route", side.at.nl.RouteDel(r.kernel(newLinks(link))))
			}
		}
	}
	inV, tunnelAt := v.at, n.tunnel.at // the next Set may make another one
	n.reaper.later(portJob(portDigest(key)), func() {
		if inV != nil {
			n.warn("removing a port", inV.removeLink(portLink(key)))
		}
		n.warn("removing a port", tunnelAt.removeLink(tunnelLink(key)))
		n.warn("removing a port", dropName(n.names.member(key)))
		if p.at != nil {
			p.at.close()
		}
	})
}

// warn logs an error of something that is tried again by a later sweep.
func (n *Network) warn(doing string, err error) {
	if err != nil && !gone(err) {
		n.log.Warn(doing, "error", err)
	}
}

package linux

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/resolver"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

const dnsPort = 53

// resolverAddresses are the two of a subnet that its members send questions to.
func resolverAddresses(subnet netip.Prefix) []netip.Addr {
	return []netip.Addr{nth(subnet, 2), nth(subnet, 3)}
}

// dnsWay is how a DNS server is reached: from the host's namespace, as the target of a
// private endpoint, or through V from one of the resolver's addresses.
type dnsWay struct {
	host   bool
	target string
	source netip.Addr
}

// resolverConfig says what the resolver of a virtual network answers and whom it asks.
func (n *Network) resolverConfig(g core.GoalVNet) resolver.Config {
	c := resolver.Config{Zones: g.Zones, Timeout: time.Duration(g.DNS.Timeout)}
	named := g.DNS.Servers
	if len(named) == 0 {
		named = []string{core.DNSServerHost}
	}
	for _, s := range named {
		if s != core.DNSServerHost {
			c.Servers = append(c.Servers, serverInVNet(g, s))
			continue
		}
		for _, a := range n.opts.Upstreams {
			c.Servers = append(c.Servers, upstream.Server{Address: a, Via: dnsWay{host: true}})
		}
	}
	return c
}

// serverInVNet finds the way to a server that the virtual network reaches. A private
// endpoint carries TCP only.
func serverInVNet(g core.GoalVNet, address string) upstream.Server {
	for _, e := range g.Endpoints {
		if netip.AddrPortFrom(e.Address, e.Port).String() == address {
			return upstream.Server{Address: address, TCPOnly: true, Via: dnsWay{target: e.Target}}
		}
	}
	return upstream.Server{Address: address, Via: dnsWay{source: questionSource(g)}}
}

// questionSource is the address from which the resolver asks through V: in a subnet with a
// NAT gateway if there is one, so that servers on the Internet are in reach.
func questionSource(g core.GoalVNet) netip.Addr {
	for _, s := range g.Subnets {
		if s.NATGateway != "" {
			return resolverAddresses(s.Prefix)[0]
		}
	}
	if len(g.Subnets) == 0 {
		return netip.Addr{}
	}
	return resolverAddresses(g.Subnets[0].Prefix)[0]
}

// dialDNS connects to a DNS server in the way that resolverConfig chose.
func (v *vnet) dialDNS(at *space) func(context.Context, string, upstream.Server) (net.Conn, error) {
	return func(ctx context.Context, network string, s upstream.Server) (net.Conn, error) {
		way, _ := s.Via.(dnsWay)
		switch {
		case way.host:
			return v.n.dial(ctx, network, s.Address)
		case way.target != "":
			return v.n.dialHost(ctx, way.target)
		}
		return at.dialFrom(ctx, network, way.source, s.Address)
	}
}

// dialFrom connects from an address of the namespace.
func (s *space) dialFrom(ctx context.Context, network string, from netip.Addr, to string) (c net.Conn, err error) {
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: from.AsSlice()}
	} else {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	err = s.do(func() (err error) {
		c, err = d.DialContext(ctx, network+"4", to)
		return err
	})
	return c, err
}

// dnsServer answers on one resolver address of V, over UDP and TCP.
type dnsServer struct {
	cancel context.CancelFunc
	work   sync.WaitGroup
	ended  atomic.Bool
}

func (n *Network) openDNS(at *space, addr netip.Addr, r *resolver.Resolver) (*dnsServer, error) {
	where := netip.AddrPortFrom(addr, dnsPort).String()
	pc, err := at.listenUDP(n.ctx, where)
	if err != nil {
		return nil, err
	}
	l, err := at.listenTCP(n.ctx, where)
	if err != nil {
		pc.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(n.ctx)
	d := &dnsServer{cancel: cancel}
	d.work.Go(func() {
		defer d.ended.Store(true)
		if err := r.Serve(ctx, pc, l); err != nil {
			n.log.Warn("a resolver ended", "address", where, "error", err)
		}
	})
	return d, nil
}

func (d *dnsServer) shut() {
	d.cancel()
	d.work.Wait()
}

package linux

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/sluice-gateway/sluice/internal/resolver"
)

const dnsPort = 53

// resolverAddresses are the two of a subnet that its members send questions to.
func resolverAddresses(subnet netip.Prefix) []netip.Addr {
	return []netip.Addr{nth(subnet, 2), nth(subnet, 3)}
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

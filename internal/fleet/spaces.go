package fleet

import (
	"context"
	"net/netip"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/store"
)

// spaces is an index of the addresses that the store knows to be taken, so that placing a
// member does not read them all. It is read from the store once and changes with the
// store; where the two might differ, it is thrown away. The store's constraints have the
// last word.
type spaces struct {
	subnets map[subnetKey]*space
	tunnels map[string]*placement.Pool // by host
	changed bool                       // in the Write under way
}

type subnetKey struct {
	vnetUID string
	prefix  netip.Prefix
}

// space is the addresses of one subnet.
type space struct {
	pool *placement.Pool
	last netip.Addr // the last one handed out
}

// change runs a Write in which members take or give back addresses.
func (f *Fleet) change(ctx context.Context, fn func(tx store.Tx, s *spaces) error) error {
	f.placing.Lock()
	defer f.placing.Unlock()
	err := f.opts.Store.Write(ctx, func(tx store.Tx) error {
		if f.spaces == nil {
			s, err := readSpaces(tx)
			if err != nil {
				return err
			}
			f.spaces = s
		}
		f.spaces.changed = false
		return fn(tx, f.spaces)
	})
	if err != nil && f.spaces != nil && (f.spaces.changed || errs.ClassOf(err) == errs.Conflict) {
		f.spaces = nil
	}
	return err
}

func readSpaces(tx store.Tx) (*spaces, error) {
	members, err := tx.ListMembers("", false)
	if err != nil {
		return nil, err
	}
	s := &spaces{subnets: map[subnetKey]*space{}, tunnels: map[string]*placement.Pool{}}
	for _, m := range members {
		s.tunnel(m.Host).Take(m.TunnelAddress)
	}
	return s, nil
}

func (s *spaces) tunnel(host string) *placement.Pool {
	if s.tunnels[host] == nil {
		s.tunnels[host] = placement.TunnelPool()
	}
	return s.tunnels[host]
}

// subnet returns the addresses of a subnet, read from the transaction the first time. An
// address rests for no longer than most from now: if it seems to, the clock was set back since.
func (s *spaces) subnet(tx store.Tx, vnet core.Stored, prefix netip.Prefix, most time.Time) (*space, error) {
	key := subnetKey{vnet.UID, prefix}
	if s.subnets[key] != nil {
		return s.subnets[key], nil
	}
	leases, err := tx.ListLeases(vnet.Tenant)
	if err != nil {
		return nil, err
	}
	sp := &space{pool: placement.SubnetPool(prefix)}
	var newest time.Time
	for _, l := range leases {
		if l.VNetUID != vnet.UID || !sp.pool.Take(l.Address) {
			continue
		}
		if l.Ended() && l.ReusableAt.After(most) {
			l.ReusableAt = most
			if err := tx.QuarantineLease(l, most, l.Reason); err != nil {
				return nil, err
			}
		}
		if l.Ended() {
			sp.pool.Rest(l.Address, l.ReusableAt)
		}
		if l.AcquiredAt.After(newest) {
			newest, sp.last = l.AcquiredAt, l.Address
		}
	}
	s.subnets[key] = sp
	return sp, nil
}

// take notes what a new member holds.
func (s *spaces) take(m core.Member, of *space) {
	s.changed = true
	s.tunnel(m.Host).Take(m.TunnelAddress)
	if m.Address.IsValid() {
		of.pool.Take(m.Address)
		of.last = m.Address
	}
}

// ended gives back what a member had: its tunnel address at once, the leased one later.
func (s *spaces) ended(m core.Member, reusableAt time.Time) {
	s.changed = true
	s.tunnel(m.Host).Release(m.TunnelAddress)
	for key, sp := range s.subnets {
		if key.vnetUID == m.VNetUID && m.Address.IsValid() {
			sp.pool.Rest(m.Address, reusableAt)
		}
	}
}

// chooseHost chooses a host for a new member, and its end of the tunnel there.
func (f *Fleet) chooseHost(s *spaces, gw GatewayRef, vnet *core.VirtualNetwork, subnet string) (string, netip.Addr, error) {
	hosts, err := placement.UplinkHosts(vnet, subnet, f.Hosts())
	if err != nil {
		return "", netip.Addr{}, err
	}
	host, err := placement.ChooseHost(hosts, func(name string) placement.Occupancy { return f.occupancy(s, name, gw.UID) })
	if err != nil {
		return "", netip.Addr{}, err
	}
	tunnel, err := placement.ChooseTunnelAddress(s.tunnel(host))
	return host, tunnel, err
}

// occupancy is what members have of a host already.
func (f *Fleet) occupancy(s *spaces, host, gatewayUID string) placement.Occupancy {
	out := placement.Occupancy{Members: s.tunnel(host).Held()}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members[gatewayUID] {
		if m.Host == host && !m.leaves() {
			out.OfGateway++
		}
	}
	for m := range f.unsettled {
		if m.Host == host && !m.leaves() && m.State != core.MemberReady {
			out.Starting++
		}
	}
	return out
}

// chooseAddress chooses an address for a new member of a gateway: none where hosts lease
// them by DHCP.
func (f *Fleet) chooseAddress(tx store.Tx, s *spaces, vnet core.Stored, gw *core.Gateway) (netip.Addr, *space, error) {
	if vnet.Spec.(*core.VirtualNetwork).LeasedElsewhere(gw.Subnet) {
		return netip.Addr{}, nil, nil
	}
	for _, sub := range vnet.Spec.(*core.VirtualNetwork).Subnets {
		if sub.Name != gw.Subnet {
			continue
		}
		now := f.opts.Now()
		sp, err := s.subnet(tx, vnet, sub.Prefix, now.Add(f.opts.Quarantine))
		if err != nil {
			return netip.Addr{}, nil, err
		}
		a, err := placement.ChooseAddress(sub, sp.pool, sp.last, now)
		return a, sp, err
	}
	return netip.Addr{}, nil, errs.New(errs.NotFound, "VirtualNetwork/%s has no subnet %s", vnet.Spec.ResourceName(), gw.Subnet)
}

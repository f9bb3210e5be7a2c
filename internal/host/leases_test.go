package host

import (
	"net/netip"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// wantAt sends a goal state with member 1 at an address.
func (r *rig) wantAt(a netip.Addr) {
	r.t.Helper()
	r.want()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version++
	r.goal.Version, r.goal.Members = r.version, []core.GoalMember{{
		ID: "m-1", Generation: 1, Gateway: "g", VNetUID: "v1", Subnet: "s", Address: a, TunnelAddress: netip.MustParseAddr("169.254.1.1"),
	}}
	_ = wire.Write(r.conn, hostapi.ToHost{Goal: &r.goal})
}

// TestAddressByDHCP: a member starts once the goal state has the address that the host
// obtained, ends when that is lost, and is not gone while it is leased.
func TestAddressByDHCP(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	key := hostnet.PortKey{Member: "m-1", Generation: 1}
	address := netip.MustParseAddr("10.0.0.77")
	observed := func(what string, ok func(core.ObservedMember) bool) {
		t.Helper()
		r.eventually(what, func() bool {
			m, found := r.observed("m-1")
			return found && ok(m)
		})
	}
	r.start()
	r.eventually("the host is there", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.conn != nil })
	r.wantAt(netip.Addr{})
	r.net.Lease(key, &hostnet.Leased{})
	observed("it waits, present", func(m core.ObservedMember) bool { return m.Present && !m.Address.IsValid() })
	r.net.Lease(key, &hostnet.Leased{Address: address})
	observed("it is told of", func(m core.ObservedMember) bool { return m.Address == address && m.Present && !m.Running })
	if ids := r.boxes.IDs(); len(ids) != 0 {
		t.Errorf("sandboxes %v run before the service has leased the address", ids)
	}
	r.wantAt(address)
	observed("it runs", func(m core.ObservedMember) bool { return m.Running })
	r.net.Lease(key, &hostnet.Leased{Lost: "the DHCP server refused it"})
	observed("it has lost its address", func(m core.ObservedMember) bool {
		return m.Exit == "the DHCP server refused it" && !m.Running
	})
	r.eventually("it is stopped", func() bool { return r.exists() })
	r.want()
	observed("it counts until its lease is released", func(m core.ObservedMember) bool { return m.Present && r.lastReport().Version == r.version })
	r.net.Lease(key, nil)
	r.eventually("it is gone", func() bool { _, found := r.observed("m-1"); return !found })
}

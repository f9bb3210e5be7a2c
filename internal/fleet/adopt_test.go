package fleet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/store"
)

// byDHCP makes the rig's host lease the subnet's addresses.
func (r *rig) byDHCP() {
	r.t.Helper()
	r.write(func(tx store.Tx) error {
		v, err := tx.GetResource(tenant, core.KindVirtualNetwork, "corp")
		if err != nil {
			return err
		}
		spec := *v.Spec.(*core.VirtualNetwork)
		spec.Uplinks = []core.Uplink{{Name: "lan", Host: "h", Bridge: "br0", Addressing: core.UplinkAddressing{
			Mode: core.AddressingDHCP, Subnet: "gateways", Network: netip.MustParsePrefix("10.20.0.0/24")}}}
		v.Spec = &spec
		v.Version++
		return tx.PutResource(v)
	})
}

// TestAddressByDHCP: the member has no lease until its host has obtained an address, and
// then one, in the goal state, until the teardown is confirmed.
func TestAddressByDHCP(t *testing.T) {
	t.Parallel()
	r := calm(t)
	r.byDHCP()
	address := netip.MustParseAddr("10.20.0.5")
	var before []core.Lease
	h := r.host("h", func(h *scripted) {
		h.dhcp = func(core.GoalMember) netip.Addr { before = r.leases(); return address }
	})
	g := r.acquire()
	g.Release()
	h.mu.Lock()
	if len(before) != 0 || g.Member.Address != address || h.present[g.Member.ID].Address != address {
		t.Errorf("leased before: %v; the member has %v, its host was told %+v", before, g.Member.Address, h.present)
	}
	h.mu.Unlock()
	if l := r.leases(); len(l) != 1 || l[0].Address != address || l[0].Member != g.Member.ID || l[0].State != core.LeaseHeld {
		t.Errorf("leases %+v; want that of the member", l)
	}
	r.pause("test")
	// What need not rest may be cleared away already.
	if l := r.leases(); len(l) > 1 || len(l) == 1 && l[0].State != core.LeaseQuarantined {
		t.Errorf("leases %+v; want none that is held", l)
	}
	// The server gives the address again at once.
	again := r.acquire()
	again.Release()
	if l := r.leases(); len(l) != 1 || l[0].Address != address || l[0].Member != again.Member.ID || again.Member.ID == g.Member.ID || l[0].State != core.LeaseHeld {
		t.Errorf("leases %+v; want that of the next member, %s", l, again.Member.ID)
	}
}

// TestAddressByDHCPIsHeld: an address that a server gives again has one owner until the
// host of that one has confirmed its teardown, and no report is needed after that.
func TestAddressByDHCPIsHeld(t *testing.T) {
	t.Parallel()
	r := tunedRig(t, func(o *Options) { o.WakeTimeout = time.Minute }) // the query waits for a teardown that the test puts off
	r.byDHCP()
	address := netip.MustParseAddr("10.20.0.5")
	h := r.host("h", func(h *scripted) {
		h.keep, h.dhcp = true, func(core.GoalMember) netip.Addr { return address }
	})
	first := r.acquire()
	first.Release()
	r.eventually("the wake is over", func() bool { // else it ends as one whose member did not come up
		r.fleet.mu.Lock()
		defer r.fleet.mu.Unlock()
		return r.fleet.wakes["g1"] == nil
	})
	h.mu.Lock()
	last := h.goals[len(h.goals)-1]
	h.exit = "killed"
	h.mu.Unlock()
	h.obey(last)
	r.eventually("the first member leaves", func() bool {
		return slices.ContainsFunc(r.fleet.Members(tenant), func(m core.Member) bool { return m.State == core.MemberLeaving })
	})
	h.mu.Lock()
	h.exit = ""
	h.mu.Unlock()
	next := make(chan string, 1)
	go func() {
		g, err := r.fleet.Acquire(within(t, time.Minute), corpBI)
		if err != nil {
			next <- err.Error()
			return
		}
		defer g.Release()
		next <- g.Member.ID
	}()
	r.eventually("the next member is told whose the address is", func() bool {
		return slices.ContainsFunc(r.fleet.Members(tenant), func(m core.Member) bool {
			return m.ID != first.Member.ID && strings.Contains(m.Reason, "10.20.0.5 of VirtualNetwork/corp: it is held by member "+first.Member.ID)
		})
	})
	if l := r.leases(); len(l) != 1 || l[0].Member != first.Member.ID {
		t.Errorf("leases %+v; want that of the first member, whose teardown nobody has confirmed", l)
	}
	h.mu.Lock()
	h.keep = false
	last = h.goals[len(h.goals)-1]
	h.mu.Unlock()
	h.obey(last)
	if got := <-next; got == first.Member.ID || len(r.leases()) != 1 || r.leases()[0].Member != got {
		t.Errorf("the next member: %s", got)
	}
	if l := r.leases(); len(l) != 1 || l[0].Member == first.Member.ID || l[0].State != core.LeaseHeld {
		t.Errorf("leases %+v; want that of the next member alone", l)
	}
}

// TestAddressByDHCPThatNobodyCanHave: what a host obtained is not taken on trust.
func TestAddressByDHCPThatNobodyCanHave(t *testing.T) {
	t.Parallel()
	for _, a := range []string{"10.20.0.1", "10.20.0.7", "10.20.0.9", "192.168.7.7"} {
		t.Run(a, func(t *testing.T) {
			t.Parallel()
			r := calm(t)
			r.byDHCP()
			r.host("h", func(h *scripted) { h.dhcp = func(core.GoalMember) netip.Addr { return netip.MustParseAddr(a) } })
			_, err := r.fleet.Acquire(within(t, 10*time.Second), corpBI)
			if want := "host h has leased " + a + " by DHCP, which is no address for members of subnet gateways (10.20.0.0/29)"; err == nil || !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%v; want %q in it", err, want)
			}
			if l := r.leases(); len(l) != 0 {
				t.Errorf("leases %+v; want none", l)
			}
		})
	}
}

// TestAddressByDHCPSurvivesTheService: a member that waits is given its address by the next
// process.
func TestAddressByDHCPSurvivesTheService(t *testing.T) {
	t.Parallel()
	r := calm(t)
	r.byDHCP()
	h := r.host("h", nil) // obtains nothing
	go func() { _, _ = r.fleet.Acquire(within(t, 10*time.Second), corpBI) }()
	r.eventually("a member waits", func() bool { return len(r.fleet.Members(tenant)) == 1 })
	id := r.fleet.Members(tenant)[0].ID
	h.conn.Close()
	r.close()
	r.open()
	r.host("h", func(h *scripted) {
		h.dhcp = func(core.GoalMember) netip.Addr { return netip.MustParseAddr("10.20.0.6") }
	})
	g := r.acquire()
	defer g.Release()
	if g.Member.ID != id || g.Member.Address != netip.MustParseAddr("10.20.0.6") {
		t.Errorf("member %s at %s; want %s at 10.20.0.6", g.Member.ID, g.Member.Address, id)
	}
}

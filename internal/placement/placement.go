// Package placement decides where members go: which host, which address of the
// subnet, which end of the tunnel, and what follows for a host's goal state.
//
// It is pure: resources and rows in, decisions out. The fleet stores and sends what
// it decides; nothing else calls it.
package placement

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// reservedLow counts the addresses at the start of each subnet that no one may hold:
// network, gateway, and two for DNS. The last address, broadcast, is reserved too.
const reservedLow = 4

// ChooseAddress returns the first free address of a subnet after the one given (the
// last one handed out, so that a freed address rests as long as possible), round to
// the start again.
func ChooseAddress(subnet core.Subnet, pool *Pool, after netip.Addr, now time.Time) (netip.Addr, error) {
	if a, ok := pool.Next(after, now); ok {
		return a, nil
	}
	message := fmt.Sprintf("subnet %s (%s) has no free address: %d are leased", subnet.Name, subnet.Prefix, pool.Held())
	hint := "pause a gateway in it, or give the subnet a shorter prefix"
	if n, first := pool.Awaited(); n > 0 {
		message += fmt.Sprintf(", %d rest until they may be used again", n)
		hint = fmt.Sprintf("the first is free again at %s; or %s", first.UTC().Format(time.RFC3339), hint)
	}
	return netip.Addr{}, errs.New(errs.Exhausted, "%s", message).WithHint("%s", hint)
}

// Usable says that a member can have an address of a subnet.
func Usable(subnet netip.Prefix, a netip.Addr) bool {
	first, last := usable(subnet)
	return !a.Less(first) && !last.Less(a)
}

// FirstAddress returns the first address of a subnet that can be leased.
func FirstAddress(subnet netip.Prefix) netip.Addr {
	first, _ := usable(subnet)
	return first
}

// usable returns the first and the last address of a subnet that can be leased.
func usable(subnet netip.Prefix) (first, last netip.Addr) {
	first = subnet.Masked().Addr()
	for range reservedLow {
		first = first.Next()
	}
	return first, broadcast(subnet).Prev()
}

// broadcast returns the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8) //nolint:gosec // i is less than 32
	}
	return netip.AddrFrom4(a)
}

// TunnelPool makes a pool of the addresses that members' ends of tunnels have on one
// host. 169.254.0.0/24 is left to hosts, 169.254.255.0/24 is reserved by RFC 3927.
func TunnelPool() *Pool {
	return NewPool(netip.AddrFrom4([4]byte{169, 254, 1, 0}), netip.AddrFrom4([4]byte{169, 254, 254, 255}))
}

// ChooseTunnelAddress returns the lowest link-local address that no member of a host holds.
func ChooseTunnelAddress(pool *Pool) (netip.Addr, error) {
	if a, ok := pool.Next(netip.Addr{}, time.Time{}); ok {
		return a, nil
	}
	return netip.Addr{}, errs.New(errs.Exhausted, "the host has no free tunnel address")
}

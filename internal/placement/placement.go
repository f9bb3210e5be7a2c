// Package placement decides where members go: which host, which address of the
// subnet, which end of the tunnel, and what follows for a host's goal state.
//
// It is pure: resources and rows in, decisions out. The fleet stores and sends what
// it decides; nothing else calls it.
package placement

import (
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// reservedLow counts the addresses at the start of each subnet that no one may hold:
// network, gateway, and two for DNS. The last address, broadcast, is reserved too.
const reservedLow = 4

// ChooseAddress returns the first free address of a subnet after the one given (the
// last one handed out, so that a freed address rests as long as possible), round to
// the start again.
func ChooseAddress(subnet netip.Prefix, after netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	first, last := usable(subnet)
	start := first
	if after.IsValid() && subnet.Contains(after) && !after.Less(first) && after.Less(last) {
		start = after.Next()
	}
	for a := start; ; {
		if !taken(a) {
			return a, nil
		}
		if a == last {
			a = first
		} else {
			a = a.Next()
		}
		if a == start {
			return netip.Addr{}, errs.New(errs.Exhausted, "subnet %s has no free address", subnet).
				WithHint("pause a gateway in it, or give the subnet a shorter prefix")
		}
	}
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
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a)
}

// tunnelRange is where members' ends of tunnels come from. 169.254.0.0/24 is left to
// hosts, 169.254.255.0/24 is reserved by RFC 3927.
var tunnelRange = [2]netip.Addr{netip.AddrFrom4([4]byte{169, 254, 1, 0}), netip.AddrFrom4([4]byte{169, 254, 254, 255})}

// ChooseTunnelAddress returns the lowest link-local address that no member of a host holds.
func ChooseTunnelAddress(taken func(netip.Addr) bool) (netip.Addr, error) {
	for a := tunnelRange[0]; !tunnelRange[1].Less(a); a = a.Next() {
		if !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, errs.New(errs.Exhausted, "the host has no free tunnel address")
}

// ChooseHost returns the connected host with the fewest members; by name where equal.
func ChooseHost(hosts []core.Host, members []core.Member) (string, error) {
	count := map[string]int{}
	for _, m := range members {
		if m.State != core.MemberGone {
			count[m.Host]++
		}
	}
	best := ""
	for _, h := range hosts {
		if !h.Connected {
			continue
		}
		if best == "" || count[h.Name] < count[best] || count[h.Name] == count[best] && h.Name < best {
			best = h.Name
		}
	}
	if best == "" {
		return "", errs.New(errs.Unavailable, "no host is connected to the service").
			WithHint("start one with \"sluice host\", or look at \"sluice get hosts\"")
	}
	return best, nil
}

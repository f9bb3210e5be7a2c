package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// arpAnswer is that the host answers ARP for an address of a NAT gateway on one of its own
// networks, where the neighbours believe that address to be near.
type arpAnswer struct {
	link string
	ip   netip.Addr
}

// hostRoutes is what the host's main table says about who answers for what.
type hostRoutes struct {
	near []nearby                // the networks of its interfaces
	to   map[netip.Addr][]string // the interfaces of NAT gateways, of whatever installation, by address
}

type nearby struct {
	link string
	net  netip.Prefix
}

func (n *Network) readHostRoutes(host *space) (hostRoutes, links, error) {
	out := hostRoutes{to: map[netip.Addr][]string{}}
	list, err := host.mainRoutes()
	if err != nil {
		return out, links{}, err
	}
	devices, err := retryDump(host.nl.LinkList)
	if err != nil {
		return out, links{}, err
	}
	arp := map[int]bool{}
	for _, d := range devices {
		arp[d.Attrs().Index] = d.Attrs().RawFlags&(unix.IFF_NOARP|unix.IFF_LOOPBACK) == 0
	}
	l := newLinks(devices...)
	for _, r := range list {
		name, p := l.name[r.LinkIndex], toPrefix(r.Dst)
		switch {
		case name == "" || r.Type != unix.RTN_UNICAST || r.Gw != nil:
		case n.isInstallation(name):
			if r.Protocol == protocol && p.IsSingleIP() {
				out.to[p.Addr()] = append(out.to[p.Addr()], name)
			}
		case arp[r.LinkIndex] && r.Scope == netlink.SCOPE_LINK && p.Bits() > 0 && !p.IsSingleIP():
			out.near = append(out.near, nearby{name, p})
		}
	}
	return out, l, nil
}

// answers lists where the host has to answer for these addresses.
func (r hostRoutes) answers(public []netip.Addr) (out []arpAnswer) {
	for _, at := range r.near {
		for _, a := range public {
			if at.net.Contains(a) {
				out = append(out, arpAnswer{at.link, a})
			}
		}
	}
	slices.SortFunc(out, func(a, b arpAnswer) int {
		return slices.Compare([]string{a.link, a.ip.StringExpanded()}, []string{b.link, b.ip.StringExpanded()})
	})
	return slices.Compact(out)
}

// foreign says that only another installation's NAT gateway has the address.
func (n *Network) foreign(r hostRoutes, a netip.Addr) bool {
	return len(r.to[a]) > 0 && !slices.ContainsFunc(r.to[a], n.isHostLink)
}

// answerPublic makes the host answer ARP for the public addresses of NAT gateways that lie
// on a network of its own, and for no others that an installation ever answered for; again
// says to look even if the addresses are the same.
func (n *Network) answerPublic(again bool) error {
	var public []netip.Addr
	for _, uid := range sortedKeys(n.vnets) {
		for _, nat := range sortedKeys(n.vnets[uid].nats) {
			if g := n.vnets[uid].nats[nat]; g.ready {
				public = append(public, g.public...)
			}
		}
	}
	h := n.hostSide
	key := fmt.Sprint(public)
	if !again && h.answered == key {
		return nil
	}
	if err := n.settleAnswers(h.at, public); err != nil {
		return err
	}
	h.answered = key
	return nil
}

// settleAnswers leaves the administrator's own answers alone: who made one stands in the
// kernel.
func (n *Network) settleAnswers(host *space, public []netip.Addr) error {
	ours, others, routes, l, err := n.readAnswers(host)
	if err != nil {
		return err
	}
	want := routes.answers(public)
	return host.do(func() error {
		var failed []error
		for _, a := range beyond(ours, want) {
			if err := askAnswer(unix.RTM_DELNEIGH, 0, l.index[a.link], a.ip); err != nil && !gone(err) {
				failed = append(failed, fmt.Errorf("no longer answering ARP for %s on %s: %w", a.ip, a.link, err))
			}
		}
		for _, a := range beyond(want, slices.Concat(ours, others)) {
			if err := askAnswer(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, l.index[a.link], a.ip); err != nil {
				failed = append(failed, fmt.Errorf("answering ARP for %s on %s: %w", a.ip, a.link, err))
			}
		}
		return errors.Join(failed...)
	})
}

// readAnswers tells what this installation has the host answer for, and what others have.
// An answer that no NAT gateway stands behind any more is taken as ours.
func (n *Network) readAnswers(host *space) (ours, others []arpAnswer, r hostRoutes, l links, err error) {
	var have []kernelAnswer
	if err = host.do(func() (err error) { have, err = listAnswers(); return err }); err != nil {
		return nil, nil, r, l, err
	}
	if r, l, err = n.readHostRoutes(host); err != nil { // after the answers, which never come before the route
		return nil, nil, r, l, err
	}
	for _, k := range have {
		a := arpAnswer{l.name[k.index], k.ip}
		if k.sluice && !n.foreign(r, a.ip) {
			ours = append(ours, a)
		} else {
			others = append(others, a)
		}
	}
	return ours, others, r, l, nil
}

// kernelAnswer is an ARP answer as the kernel has it.
type kernelAnswer struct {
	index  int
	ip     netip.Addr
	sluice bool // an installation made it
}

// listAnswers runs in a thread of the host's namespace. The netlink library leaves out who
// made an entry.
func listAnswers() ([]kernelAnswer, error) {
	return retryDump(func() ([]kernelAnswer, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(&netlink.Ndmsg{Family: unix.AF_INET, Flags: netlink.NTF_PROXY})
		list, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		if err != nil {
			return nil, err
		}
		var out []kernelAnswer
		for _, m := range list {
			entry, err := netlink.NeighDeserialize(m)
			if err != nil {
				return nil, err
			}
			if entry.Flags&netlink.NTF_PROXY == 0 {
				continue
			}
			attrs, err := nl.ParseRouteAttr(m[(&netlink.Ndmsg{}).Len():])
			if err != nil {
				return nil, err
			}
			out = append(out, kernelAnswer{entry.LinkIndex, toAddr(entry.IP), slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
				return a.Attr.Type == netlink.NDA_PROTOCOL && len(a.Value) == 1 && a.Value[0] == protocol
			})})
		}
		return out, nil
	})
}

// askAnswer makes or removes an answer that outlives the interface's carrier.
func askAnswer(kind, flags, index int, a netip.Addr) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_PROXY})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
	req.AddData(nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{protocol}))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// proxyDelayKey is how long the kernel waits, at random, before it answers for another.
func proxyDelayKey(link string) string { return filepath.Join("ipv4/neigh", link, "proxy_delay") }

// inventoryAnswers lists what the host answers for because of this installation.
func (n *Network) inventoryAnswers(host *space) (items []hostnet.Item, err error) {
	ours, _, _, _, err := n.readAnswers(host)
	for _, a := range ours {
		items = append(items, hostnet.Item{Type: "ARP answer", Name: a.link + " " + a.ip.String(), Why: "a public address of a NAT gateway, on a network of the host's own"})
	}
	return items, err
}

package linux

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// uplink is a device in V that leads to a network which exists. V routes between it and
// the members; it is never bridged to anything, so no loop can come of it.
type uplink struct {
	goal    core.Uplink
	proxies []netip.Addr // leases that it answers ARP for
	own     netip.Addr   // what V asks and answers ARP as
	ready   bool
	checked time.Time
	leasing *leasing    // with AddressingDHCP
	leased  core.Uplink // what leasing was made for
	claims  *claims     // nil: not yet
}

// uplinkLink names an uplink's interface in V, within the kernel's 15 characters.
func (n names) uplinkLink(uid, name string) string { return "u" + digest(12, n.instance, uid, name) }

// isUplinkLink says that an interface of V is an uplink's. It may be the host's own
// device, so it never goes but by its record.
func isUplinkLink(name string) bool { return len(name) == 13 && name[0] == 'u' }

// bridgePort names the end of an uplink's veth that is a port of the host's bridge.
func (n names) bridgePort(uid, name string) string {
	sum := sha256.Sum256([]byte("uplink\x00" + uid + "\x00" + name))
	return n.hostLinks() + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:13-len(n.instance)])
}

func (n *Network) recordOf(v core.GoalVNet, u core.Uplink) uplinkRecord {
	return uplinkRecord{VNetUID: v.UID, VNet: v.Name, Uplink: u.Name, Source: u.Source(), Link: n.names.uplinkLink(v.UID, u.Name), Network: u.Addressing.Network}
}

func (r uplinkRecord) why() string {
	return fmt.Sprintf("uplink %s of VirtualNetwork %s: %s", r.Uplink, shorten(r.VNet, 80), r.Source)
}

// uplinkInterfaces names the interfaces that the rules know, before any of them is
// there: nothing that comes by one is ever without its rules.
func (v *vnet) uplinkInterfaces() map[string]string {
	out := map[string]string{}
	for _, u := range v.goal.Uplinks {
		if u.Here {
			out[u.Name] = v.n.names.uplinkLink(v.goal.UID, u.Name)
		}
	}
	return out
}

// setUplinks makes the uplinks of this host. The rules must be in force.
func (v *vnet) setUplinks(ctx context.Context) {
	wanted := map[string]bool{}
	for _, g := range v.goal.Uplinks {
		if !g.Here {
			continue
		}
		wanted[g.Name] = true
		u := v.uplinks[g.Name]
		if u == nil {
			u = &uplink{}
			v.uplinks[g.Name] = u
		}
		proxies := v.leasesOn(g.Uplink)
		own, _ := u.ownLease()
		if u.ready && !v.n.due(u.checked) && sameUplink(u.goal, g.Uplink) && slices.Equal(u.proxies, proxies) && (u.leasing == nil || own == u.own) {
			v.askLeases(u)
			continue
		}
		u.goal = g.Uplink
		err := v.n.ensureUplink(ctx, v, u)
		u.ready, u.checked = err == nil, time.Now()
		if err != nil {
			v.ready = false
			v.problem(v.object(), uplinkError(g.Uplink, err))
		}
	}
	for name, u := range v.uplinks {
		if !wanted[name] {
			u.end()
			delete(v.uplinks, name) // returnUplinks has given it back
		}
	}
}

// end releases what the uplink has leased, and hears no more of its network.
func (u *uplink) end() {
	u.unlease()
	u.claims.close()
	u.claims = nil
}

func sameUplink(a, b core.Uplink) bool {
	return a.Source() == b.Source() && a.Addressing == b.Addressing && slices.Equal(a.Prefixes, b.Prefixes) && a.Force == b.Force
}

// uplinkError names the uplink and its device in whatever went wrong.
func uplinkError(u core.Uplink, err error) error {
	if e := new(errs.Error); errors.As(err, &e) {
		return errs.New(e.Class, "uplink %s (%s): %w", u.Name, u.Source(), err).WithHint("%s", e.Hint)
	}
	return machineError(fmt.Sprintf("uplink %s (%s)", u.Name, u.Source()), err)
}

// leasesOn lists the leased addresses that are a part of the uplink's network.
func (v *vnet) leasesOn(u core.Uplink) []netip.Addr {
	var out []netip.Addr
	leased := v.uplinks[u.Name].heldLeases()
	for _, p := range v.ports {
		if p.spec.Subnet != u.Addressing.Subnet || !p.bound {
			continue
		}
		if u.Addressing.Mode == core.AddressingRange || u.Addressing.Mode == core.AddressingDHCP && leased[p.spec.Address] {
			out = append(out, p.spec.Address)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// ensureUplink makes an uplink complete, whatever of it exists already.
func (n *Network) ensureUplink(ctx context.Context, v *vnet, u *uplink) error {
	rec := n.recordOf(v.goal, u.goal)
	link, err := n.uplinkDevice(ctx, v.at, u.goal, rec)
	if err != nil {
		return err
	}
	if err := v.at.do(func() error { return writeAll(uplinkValues(rec.Link)) }); err != nil {
		return err
	}
	if err := v.at.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing it up: %w", err)
	}
	if err := v.lease(u, link, rec); err != nil {
		return err
	}
	u.proxies = v.leasesOn(u.goal) // again: an earlier process may have leased some of them
	var why string
	if u.own = v.uplinkAddress(u.goal); u.leasing != nil {
		u.own, why = u.ownLease()
	}
	if err := v.at.assert(newLinks(link), v.uplinkState(u)); err != nil {
		return err
	}
	if err := v.watchClaims(u, link); err != nil {
		return err
	}
	begun, err := v.at.answerFor(link, u.proxies)
	n.announce(v.at, link, begun)
	if err != nil || u.leasing == nil || u.own.IsValid() {
		return err
	}
	return noOwnLease(u.goal, why)
}

// uplinkDevice finds the uplink's interface in V, or makes or takes it.
func (n *Network) uplinkDevice(ctx context.Context, at *space, u core.Uplink, rec uplinkRecord) (netlink.Link, error) {
	if u.Bridge != "" {
		return n.joinBridge(ctx, at, u, rec)
	}
	link, err := at.nl.LinkByName(rec.Link)
	if err == nil || !gone(err) {
		return link, err
	}
	if u.VLAN.ID != 0 {
		return n.addVLAN(at, u, rec)
	}
	return n.borrow(at, u, rec)
}

// uplinkValues let the interface answer ARP for its own address and for those that it is
// told, and for no other address that V holds; at once, not after the usual delay.
func uplinkValues(link string) []sysctl {
	conf, neigh := "ipv4/conf/"+link+"/", "ipv4/neigh/"+link+"/"
	return []sysctl{
		{key: "ipv6/conf/" + link + "/disable_ipv6", value: "1", optional: true},
		{key: conf + "forwarding", value: "1"},
		{key: conf + "rp_filter", value: "1"},
		{key: conf + "src_valid_mark", value: "1"}, // replies by way of an appliance
		{key: conf + "arp_ignore", value: "1"},
		{key: conf + "arp_announce", value: "2"},
		{key: conf + "arp_accept", value: "0"},
		{key: conf + "proxy_arp", value: "0"},
		{key: conf + "accept_redirects", value: "0"},
		{key: conf + "send_redirects", value: "0"},
		{key: conf + "accept_source_route", value: "0"},
		{key: neigh + "proxy_delay", value: "0"},
	}
}

// uplinkState is what V holds for an uplink: its own address, and the routes.
func (v *vnet) uplinkState(of *uplink) state {
	u := of.goal
	link := v.n.names.uplinkLink(v.goal.UID, u.Name)
	var s state
	if of.own.IsValid() {
		s.addrs = append(s.addrs, address{link, of.own})
	}
	for _, p := range u.Reaches() {
		r := route{table: unix.RT_TABLE_MAIN, dst: p.Masked(), link: link}
		if !u.OnLink(p) {
			r.via = u.Addressing.Gateway
		}
		s.routes = append(s.routes, r)
	}
	return s
}

// uplinkAddress is what V asks and answers ARP as, where that is not leased.
func (v *vnet) uplinkAddress(u core.Uplink) netip.Addr {
	if s, ok := subnetOf(v.goal, u.Addressing.Subnet); ok && u.Addressing.Mode == core.AddressingRange {
		return nth(s.Prefix, 1)
	}
	return u.Addressing.Address
}

// answerFor makes the interface answer ARP for exactly these addresses, and returns those
// that it did not answer for before.
func (s *space) answerFor(l netlink.Link, list []netip.Addr) (begun []netip.Addr, err error) {
	index := l.Attrs().Index
	have, err := retryDump(func() ([]netlink.Neigh, error) { return s.nl.NeighProxyList(index, unix.AF_INET) })
	if err != nil {
		return nil, err
	}
	held := map[netip.Addr]bool{}
	for _, p := range have {
		a := toAddr(p.IP)
		held[a] = true
		if p.LinkIndex != index || slices.Contains(list, a) {
			continue
		}
		if err := s.nl.NeighDel(proxy(index, a)); err != nil && !gone(err) {
			return begun, fmt.Errorf("no longer answering ARP for %s: %w", a, err)
		}
	}
	for _, a := range list {
		if held[a] {
			continue
		}
		if err := s.nl.NeighSet(proxy(index, a)); err != nil {
			return begun, fmt.Errorf("answering ARP for %s: %w", a, err)
		}
		begun = append(begun, a)
	}
	return begun, nil
}

// proxy is permanent: the kernel forgets others when the interface loses its carrier.
func proxy(index int, a netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_PROXY, IP: a.AsSlice()}
}

// returnUplinks gives back, and removes, what no goal of this host wants as it is. It
// comes before namespaces go: the kernel would end a lent device with its namespace.
func (n *Network) returnUplinks(ctx context.Context, goals map[string]core.GoalVNet) []hostnet.Problem {
	records := n.uplinkRecords()
	list, err := records.load()
	if err != nil {
		return []hostnet.Problem{{Object: "host", Err: fmt.Errorf("reading what uplinks were made: %w", err)}}
	}
	var problems []hostnet.Problem
	for _, r := range list {
		if wants(goals[r.VNetUID], r) {
			continue
		}
		if v := n.vnets[r.VNetUID]; v != nil && v.uplinks[r.Uplink] != nil {
			v.uplinks[r.Uplink].end()
		}
		err := n.returnUplink(ctx, r)
		if err == nil {
			err = records.drop(r)
		}
		if err != nil {
			problems = append(problems, hostnet.Problem{
				Object: string(core.KindVirtualNetwork) + "/" + r.VNet,
				Err:    errs.New(errs.Internal, "uplink %s: giving back %s: %w", r.Uplink, r.Source, err),
			})
			continue
		}
		n.log.Info("an uplink is gone", "vnet", r.VNet, "uplink", r.Uplink, "source", r.Source)
		if v := n.vnets[r.VNetUID]; v != nil {
			delete(v.uplinks, r.Uplink)
		}
	}
	return problems
}

func wants(g core.GoalVNet, r uplinkRecord) bool {
	return slices.ContainsFunc(g.Uplinks, func(u core.GoalUplink) bool {
		return u.Here && u.Name == r.Uplink && u.Source() == r.Source
	})
}

// returnUplink undoes one uplink, whichever process made it and however far it came.
func (n *Network) returnUplink(ctx context.Context, r uplinkRecord) error {
	host, err := openHost(n.opts.HostNS)
	if err != nil {
		return err
	}
	defer host.close()
	at, err := openSpace(n.names.vnet(r.VNetUID))
	if err != nil && !isNotExist(err) {
		return err
	}
	if err == nil {
		defer at.close()
	}
	n.endResumed(r.key())
	n.releaseLeases(at, r)
	if r.Lent != nil {
		return n.giveBack(host, at, r)
	}
	failed := []error{host.removeLink(n.names.bridgePort(r.VNetUID, r.Uplink))}
	if at != nil {
		failed = append(failed, at.removeLink(r.Link))
	}
	return errors.Join(append(failed, n.guardBridges(ctx, host, r))...)
}

// giveBack moves a device of the host home and makes it what it was.
func (n *Network) giveBack(host, at *space, r uplinkRecord) error {
	if at != nil {
		link, err := at.nl.LinkByName(r.Link)
		if err == nil {
			err = errors.Join(at.nl.LinkSetDown(link), at.nl.LinkSetNsFd(link, int(host.file.Fd())))
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("moving %s back to the host: %w", r.Lent.Name, err)
		}
	}
	for _, name := range []string{r.Link, r.Lent.Name} {
		link, err := host.nl.LinkByName(name)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if link.Attrs().HardwareAddr.String() == r.Lent.MAC {
			return host.restore(link, r.Lent)
		}
	}
	n.log.Warn("a device that was lent to an uplink is gone", "device", r.Lent.Name, "mac", r.Lent.MAC)
	return nil
}

func isUp(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 }

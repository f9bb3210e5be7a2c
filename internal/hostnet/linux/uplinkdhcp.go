package linux

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/arp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/dhcp"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/vishvananda/netlink"
)

// leasing is what an uplink leases by DHCP on its network: an address of its own, which
// the namespace asks and answers ARP as, and one for each member of its subnet.
type leasing struct {
	pool *dhcp.Pool
	link int    // the interface that it speaks through
	own  string // the uplink's own client
}

const ownClientPrefix = "sluice-"

// memberClient identifies a port to DHCP servers.
func memberClient(k hostnet.PortKey) string {
	return k.Member + "-" + strconv.FormatInt(k.Generation, 10)
}

// clientPort is the port that memberClient was of.
func clientPort(id string) (k hostnet.PortKey, ok bool) {
	i := strings.LastIndexByte(id, '-')
	if i < 0 || strings.HasPrefix(id, ownClientPrefix) {
		return k, false
	}
	generation, err := strconv.ParseInt(id[i+1:], 10, 64)
	return hostnet.PortKey{Member: id[:i], Generation: generation}, err == nil
}

// dhcpUplink finds this host's uplink that leases the addresses of a subnet.
func dhcpUplink(g core.GoalVNet, subnet string) (core.Uplink, bool) {
	for _, u := range g.Uplinks {
		if u.Here && u.LeasesFor(subnet) {
			return u.Uplink, true
		}
	}
	return core.Uplink{}, false
}

// lease keeps the uplink's leases; the interface must be up. The uplink's own address is
// an error until there is one.
func (v *vnet) lease(u *uplink, link netlink.Link, rec uplinkRecord) error {
	if u.goal.Addressing.Mode != core.AddressingDHCP {
		u.unlease()
		v.n.endResumed(rec.key())
		v.n.releaseLeases(v.at, rec) // an earlier process's
		return nil
	}
	if u.leasing != nil && (u.leasing.link != link.Attrs().Index || !sameUplink(u.leased, u.goal)) {
		u.leasing.pool.Close() // the next one takes the leases over
		u.leasing = nil
	}
	if u.leasing == nil {
		var err error
		if u.leasing, err = v.openLeasing(u.goal, link); err != nil {
			return err
		}
		u.leased = u.goal
	}
	v.askLeases(u)
	return nil
}

func (v *vnet) openLeasing(u core.Uplink, link netlink.Link) (*leasing, error) {
	records, uid := v.n.dhcpRecords(), v.goal.UID
	lost := v.n.endResumed(uplinkKey{uid, u.Name})
	leases, err := records.load(uid, u.Name)
	if err != nil {
		return nil, err
	}
	subnet, ok := subnetOf(v.goal, u.Addressing.Subnet)
	if !ok {
		return nil, errs.New(errs.NotFound, "the virtual network %s has no subnet %q", v.goal.Name, u.Addressing.Subnet)
	}
	own := ownClientPrefix + digest(12, v.n.names.instance, uid, u.Name)
	usable := usable{own, u.Addressing, subnet, v.resolvers(), v.n.hostAddresses}
	pool := dhcp.NewPool(dhcp.Options{
		Exchange: dhcpClient(v.at, link, u.Addressing.Network), Leases: leases, Lost: lost, Fits: usable.fits, Hint: usable.hint, GiveUp: v.n.opts.DHCPGiveUp, Logger: v.n.log,
		Save:    func(l []dhcp.Lease) error { return records.save(uid, u.Name, l) },
		Changed: v.n.poke,
	})
	return &leasing{pool: pool, link: link.Attrs().Index, own: own}, nil
}

func dhcpClient(at *space, link netlink.Link, network netip.Prefix) *dhcp.Client {
	return &dhcp.Client{
		MAC: link.Attrs().HardwareAddr, Network: network,
		Open: func(from netip.Addr, to net.HardwareAddr) (c net.PacketConn, err error) {
			err = at.do(func() error {
				c, err = dhcp.Listen(link.Attrs().Index, from, to)
				return err
			})
			return c, err
		},
		Owner: func(ctx context.Context, a netip.Addr) (net.HardwareAddr, error) {
			c, err := at.listenARP(link)
			if err != nil {
				return nil, err
			}
			defer c.Close() //nolint:errcheck // a socket of one question
			return c.Owner(ctx, a)
		},
	}
}

func (s *space) listenARP(link netlink.Link) (c *arp.Conn, err error) {
	err = s.do(func() error {
		c, err = arp.Listen(link.Attrs().Index, link.Attrs().HardwareAddr)
		return err
	})
	return c, err
}

// announce tells the network that addresses are here now: another host, or another
// machine, may have had them until a moment ago.
func (n *Network) announce(at *space, link netlink.Link, list []netip.Addr) {
	if len(list) == 0 {
		return
	}
	c, err := at.listenARP(link)
	if err == nil {
		for _, a := range list {
			err = errors.Join(err, c.Announce(a))
		}
		err = errors.Join(err, c.Close())
	}
	n.warn("announcing addresses on the network of an uplink", err)
}

// usable says which addresses of a network its clients can have.
type usable struct {
	own       string
	network   core.UplinkAddressing
	subnet    core.Subnet
	resolvers []netip.Addr
	host      func() ([]netip.Addr, error) // the host's own addresses
}

func (p usable) fits(client string, a netip.Addr) error {
	switch {
	case !p.network.Network.Contains(a):
		return fmt.Errorf("the DHCP server gives %s, which is not on the network %s", a, p.network.Network)
	case a == p.network.Gateway, slices.Contains(p.resolvers, a):
		return fmt.Errorf("the DHCP server gives %s, which is the gateway's or a resolver's", a)
	case a == p.network.Network.Masked().Addr(), !p.network.Network.Contains(a.Next()):
		return fmt.Errorf("the DHCP server gives %s, which is no machine's on %s", a, p.network.Network)
	}
	host, err := p.host()
	if err != nil {
		return fmt.Errorf("reading the host's own addresses: %w", err)
	}
	switch {
	case slices.Contains(host, a): // it answers no ARP on a bridge, where it is out of reach
		return fmt.Errorf("the DHCP server gives %s, which is the host's own", a)
	case client == p.own:
		return nil
	case !p.subnet.Prefix.Contains(a):
		return fmt.Errorf("the DHCP server gives %s, which is outside of subnet %s (%s)", a, p.subnet.Name, p.subnet.Prefix)
	case a.Less(nth(p.subnet.Prefix, 4)), !p.subnet.Prefix.Contains(a.Next()):
		return fmt.Errorf("the DHCP server gives %s, which is reserved in subnet %s (%s)", a, p.subnet.Name, p.subnet.Prefix)
	}
	return nil
}

// hint is any address of the subnet, a new one at each question: a server whose pool is
// wider than the subnet gives the one that it is asked for, if that is free.
// The uplink itself needs none of the subnet, but may have to take one.
func (p usable) hint(client string, again bool) netip.Addr {
	if client == p.own && !again {
		return netip.Addr{}
	}
	size := uint32(1) << (32 - p.subnet.Prefix.Bits())
	return nth(p.subnet.Prefix, 4+rand.Uint32N(size-5))
}

// askLeases tells the uplink's pool who needs an address.
func (v *vnet) askLeases(u *uplink) {
	if u.leasing == nil {
		return
	}
	wanted := []dhcp.Wanted{{ID: u.leasing.own, Keen: true}}
	for k := range v.requests {
		if v.requests[k].Subnet == u.goal.Addressing.Subnet {
			wanted = append(wanted, dhcp.Wanted{ID: memberClient(k)})
		}
	}
	for k, p := range v.ports {
		if p.spec.Subnet == u.goal.Addressing.Subnet {
			wanted = append(wanted, dhcp.Wanted{ID: memberClient(k), Address: p.spec.Address})
		}
	}
	u.leasing.pool.Set(wanted)
}

// unlease releases all that the uplink has leased.
func (u *uplink) unlease() {
	if u.leasing == nil {
		return
	}
	u.leasing.pool.Set(nil)
	u.leasing.pool.Close()
	u.leasing = nil
}

// ownLease is the uplink's own address, and why there is none.
func (u *uplink) ownLease() (netip.Addr, string) {
	if u.leasing == nil {
		return netip.Addr{}, ""
	}
	s := u.leasing.pool.States()[u.leasing.own]
	return s.Address, cmp.Or(s.Problem, "its server was just asked")
}

func noOwnLease(u core.Uplink, why string) error {
	return errs.New(errs.Unavailable, "it has no address of its own on %s by DHCP yet: %s", u.Addressing.Network, why).
		WithHint("check that a DHCP server answers on that network, and has addresses that nobody holds")
}

// heldLeases lists those of the members' addresses that are leased.
func (u *uplink) heldLeases() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	if u.leasing != nil {
		for _, s := range u.leasing.pool.States() {
			out[s.Address] = true
		}
	}
	return out
}

// leases tells what members' requests for addresses came to.
func (v *vnet) leases(s *hostnet.Status) {
	for _, name := range sortedKeys(v.uplinks) {
		u := v.uplinks[name]
		if u.leasing == nil {
			continue
		}
		states := u.leasing.pool.States()
		for _, id := range sortedKeys(states) {
			k, ok := clientPort(id)
			if !ok {
				continue
			}
			st := states[id]
			l := hostnet.Leased{Address: st.Address}
			if st.Lost != "" {
				l.Lost = fmt.Sprintf("uplink %s (%s), subnet %s: %s", name, u.goal.Source(), u.goal.Addressing.Subnet, st.Lost)
			}
			s.Leased[k] = l
			if st.Problem != "" {
				s.Problems = append(s.Problems, hostnet.Problem{Object: "member " + k.Member, Err: errs.New(errs.Unavailable,
					"it waits for an address of subnet %s by uplink %s (%s): %s", u.goal.Addressing.Subnet, name, u.goal.Source(), st.Problem)})
			}
		}
	}
}

// dhcpRecord is what one uplink has leased. It is on disk before an address is used.
type dhcpRecord struct {
	VNetUID string       `json:"vnetUid"`
	Uplink  string       `json:"uplink"`
	Leases  []dhcp.Lease `json:"leases"`
}

// dhcpRecords is the file of them.
type dhcpRecords struct {
	n    *Network
	file string
}

func (n *Network) dhcpRecords() dhcpRecords {
	return dhcpRecords{n, filepath.Join(n.opts.StateDir, "dhcp-"+n.names.instance+".json")}
}

func (d dhcpRecords) all() ([]dhcpRecord, error) {
	b, err := os.ReadFile(d.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []dhcpRecord
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the DHCP leases in %s: %w", d.file, err)
	}
	return out, nil
}

func (d dhcpRecords) load(uid, uplink string) ([]dhcp.Lease, error) {
	d.n.leaseFile.Lock()
	defer d.n.leaseFile.Unlock()
	list, err := d.all()
	i := slices.IndexFunc(list, func(r dhcpRecord) bool { return r.VNetUID == uid && r.Uplink == uplink })
	if err != nil || i < 0 {
		return nil, err
	}
	return list[i].Leases, nil
}

// save replaces an uplink's leases.
func (d dhcpRecords) save(uid, uplink string, leases []dhcp.Lease) error {
	d.n.leaseFile.Lock()
	defer d.n.leaseFile.Unlock()
	list, err := d.all()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(r dhcpRecord) bool { return r.VNetUID == uid && r.Uplink == uplink })
	if len(leases) > 0 {
		list = append(list, dhcpRecord{uid, uplink, leases})
	}
	if len(list) == 0 {
		if err := os.Remove(d.file); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(d.file), 0o700), replaceFile(d.file, b))
}

// releaseLeases gives back what another process leased through an uplink that goes.
func (n *Network) releaseLeases(at *space, r uplinkRecord) {
	leases, err := n.dhcpRecords().load(r.VNetUID, r.Uplink)
	if err == nil && len(leases) == 0 {
		return
	}
	if err == nil && at != nil {
		var link netlink.Link
		if link, err = at.nl.LinkByName(r.Link); err == nil {
			client := dhcpClient(at, link, r.Network)
			for _, l := range leases {
				err = errors.Join(err, client.Release(l))
			}
		}
	}
	n.warn("releasing DHCP leases, which expire by themselves", errors.Join(err, n.dhcpRecords().save(r.VNetUID, r.Uplink, nil)))
}

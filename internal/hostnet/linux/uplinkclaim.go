package linux

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/arp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/dhcp"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// defendEvery is how often, at most, an address is defended (RFC 5227, DEFEND_INTERVAL).
	defendEvery = 10 * time.Second
	// hearsDefence is how soon after a defence a claim may still be of before it.
	hearsDefence = time.Second
	// claimShown is for how long after it was last heard a claim is a problem.
	claimShown = time.Minute
)

// claims hears who else on an uplink's network says that it has an address of the uplink's
// (RFC 5227, 2.4). Each is defended and is a problem for as long as it is heard. One by
// DHCP is given up if that does not help: its server has others.
type claims struct {
	n    *Network
	conn *arp.Conn
	link int
	done chan struct{}

	mu    sync.Mutex
	held  []netip.Addr
	pool  *dhcp.Pool // with AddressingDHCP
	heard map[netip.Addr]claim
}

// claim is what was heard of one address.
type claim struct {
	mac      net.HardwareAddr
	last     time.Time
	defended time.Time
}

// watchClaims listens on the uplink's interface, if nobody does already; a VPN's device
// has no ARP.
func (v *vnet) watchClaims(u *uplink, link netlink.Link) error {
	if link.Attrs().RawFlags&unix.IFF_NOARP != 0 || len(link.Attrs().HardwareAddr) != 6 {
		return nil
	}
	if u.claims != nil && u.claims.link != link.Attrs().Index {
		u.claims.close()
		u.claims = nil
	}
	if u.claims == nil {
		conn, err := v.at.listenARP(link)
		if err != nil {
			return err
		}
		u.claims = &claims{n: v.n, conn: conn, link: link.Attrs().Index, done: make(chan struct{}), heard: map[netip.Addr]claim{}}
		go u.claims.listen()
	}
	held := slices.Clone(u.proxies)
	if u.own.IsValid() {
		held = append(held, u.own)
	}
	var pool *dhcp.Pool
	if u.leasing != nil {
		pool = u.leasing.pool
	}
	u.claims.set(held, pool)
	return nil
}

func (c *claims) listen() {
	defer close(c.done)
	c.n.warn("who else has the addresses of an uplink is not heard any more", c.conn.Listen(c.hear))
}

// close ends the listening, if there is any.
func (c *claims) close() {
	if c == nil {
		return
	}
	_ = c.conn.Close()
	<-c.done
}

// set says which addresses are the uplink's, and which pool leased them.
func (c *claims) set(held []netip.Addr, pool *dhcp.Pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held, c.pool = held, pool
	for a := range c.heard {
		if !slices.Contains(held, a) {
			delete(c.heard, a)
		}
	}
}

// hear takes what somebody else says: that it has an address.
func (c *claims) hear(a netip.Addr, mac net.HardwareAddr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.held, a) {
		return
	}
	now := time.Now()
	was, again := c.heard[a]
	next, defend, yield := was.heardAgain(mac, now)
	c.heard[a] = next
	if !again || was.mac.String() != mac.String() || now.Sub(was.last) > claimShown {
		c.n.log.Warn("another machine on an uplink's network says that it has an address", "address", a, "mac", mac)
		c.n.poke()
	}
	if defend {
		c.n.warn("defending an address on the network of an uplink", c.conn.Announce(a))
	}
	if yield && c.pool != nil {
		c.pool.Taken(a, mac)
	}
}

// heardAgain is a claim after it was heard once more, and what to do about it: to defend
// the address, or to give it up, since the last defence did not help.
func (c claim) heardAgain(mac net.HardwareAddr, now time.Time) (next claim, defend, yield bool) {
	defend = c.defended.IsZero() || now.Sub(c.defended) >= defendEvery
	next = claim{mac: mac, last: now, defended: c.defended}
	if defend {
		next.defended = now
	}
	return next, defend, !defend && now.Sub(c.defended) > hearsDefence
}

// problems tells of the addresses that others said to have until a moment ago.
func (c *claims) problems(v *vnet, u *uplink) (out []hostnet.Problem) {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.held {
		heard, ok := c.heard[a]
		if !ok || time.Since(heard.last) > claimShown {
			continue
		}
		out = append(out, hostnet.Problem{Object: v.objectAt(a), Err: errs.New(errs.Conflict,
			"uplink %s (%s): the machine %s on its network says that it has the address %s, too: give that machine another, or take the address out of what members may have",
			u.goal.Name, u.goal.Source(), heard.mac, a)})
	}
	return out
}

// objectAt names who has an address: a member, or the virtual network itself.
func (v *vnet) objectAt(a netip.Addr) string {
	for k, p := range v.ports {
		if p.spec.Address == a {
			return "member " + k.Member
		}
	}
	return string(core.KindVirtualNetwork) + "/" + v.goal.Name
}

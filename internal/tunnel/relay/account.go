package relay

import (
	"context"
	"net"
	"net/netip"
	"strings"
)

// labels begins the label of a relayed connection, which names the member's address.
const labels = "tunnel/"

// labelOf ends in a slash, so that no label is the beginning of another.
func labelOf(addr netip.Addr) string { return labels + addr.String() + "/" }

func addrOfLabel(label string) (netip.Addr, error) {
	return netip.ParseAddr(strings.Trim(strings.TrimPrefix(label, labels), "/"))
}

// Forget ends the account of a member that is gone, as the address may become another's,
// and resets its connections: its side would stay silent.
func (r *Relay) Forget(addr netip.Addr) error {
	r.mu.Lock()
	delete(r.members, addr)
	r.mu.Unlock()
	for _, c := range r.handedOf(addr) {
		c.abort()
	}
	return r.opts.Splicer.Clear(labelOf(addr))
}

// addrOf is the tunnel address of a member's connection.
func addrOf(c *net.TCPConn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// enter admits a connection of a known member below its limit.
func (r *Relay) enter(c *net.TCPConn) (*account, bool) {
	addr := addrOf(c)
	if !r.opts.Known(addr) {
		r.opts.Logger.Warn("relay refuses an unknown tunnel address", "tunnelAddress", addr)
		return nil, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.account(addr)
	if a.open >= r.opts.MaxPerMember {
		a.past.Refused++
		r.opts.Logger.Warn("relay refuses a connection over the member's limit", "tunnelAddress", addr, "limit", r.opts.MaxPerMember)
		return nil, false
	}
	a.past.Accepted++
	a.open++
	return a, true
}

// account needs r.mu.
func (r *Relay) account(addr netip.Addr) *account {
	a := r.members[addr]
	if a == nil {
		a = &account{addr: addr}
		r.members[addr] = a
	}
	return a
}

// count counts an adopted connection.
func (r *Relay) count(addr netip.Addr) *account {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.account(addr)
	a.open++
	return a
}

// refuse counts a connection that could not be relayed.
func (r *Relay) refuse(a *account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.past.Refused++
}

// leave books a connection that is over. The account of a member that is gone, too, goes
// with its last connection.
func (r *Relay) leave(a *account, up, down int64) {
	known := r.opts.Known(a.addr)
	r.mu.Lock()
	defer r.mu.Unlock()
	a.open--
	a.past.ToService += up
	a.past.ToMember += down
	if !known && a.open == 0 && r.members[a.addr] == a {
		delete(r.members, a.addr)
	}
}

// Stats returns the accounts of all members by tunnel address.
func (r *Relay) Stats(ctx context.Context) (map[netip.Addr]Stats, error) {
	open, err := r.opts.Splicer.Pairs(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[netip.Addr]Stats, len(r.members))
	for addr, a := range r.members {
		s := a.past
		s.Open = a.open
		for _, p := range open {
			if p.Label == labelOf(addr) {
				s.ToService += p.AToB
				s.ToMember += p.BToA
			}
		}
		for c, of := range r.handed {
			if of == addr {
				up, down := carried(c.TCPConn)
				s.ToService += up
				s.ToMember += down
			}
		}
		all[addr] = s
	}
	return all, nil
}

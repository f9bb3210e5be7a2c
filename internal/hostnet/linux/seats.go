package linux

import (
	"net"
	"net/netip"
	"strings"
	"sync"
)

// seats bounds the connections of a private endpoint: all together, and each member's,
// so that a member which opens as many as it can leaves room for the others.
type seats struct {
	all, each int

	mu    sync.Mutex
	taken int
	by    map[netip.Addr]int
}

func newSeats(all, each int) *seats {
	return &seats{all: all, each: each, by: map[netip.Addr]int{}}
}

// take says why there is none, "" if there is.
func (s *seats) take(member netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.taken >= s.all:
		return "too many connections"
	case s.by[member] >= s.each:
		return "too many connections of one member"
	}
	s.hold(member)
	return ""
}

// keep takes a seat whether or not there is one, for a connection that goes on.
func (s *seats) keep(member netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(member)
}

// hold needs s.mu.
func (s *seats) hold(member netip.Addr) {
	s.taken++
	s.by[member]++
}

func (s *seats) leave(member netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.by[member]--; s.by[member] == 0 {
		delete(s.by, member)
	}
}

// labelFor names the connections of one member at the splicer.
func (e *endpoint) labelFor(member netip.Addr) string { return e.label + member.String() + "/" }

// memberOf reads the member back; the zero address stands for one that is not named.
func (e *endpoint) memberOf(label string) netip.Addr {
	a, _ := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(label, e.label), "/"))
	return a
}

// callerOf is the member that a connection comes from: the rules let no other source in.
func callerOf(c *net.TCPConn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

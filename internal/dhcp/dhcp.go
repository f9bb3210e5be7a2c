// Package dhcp leases addresses by DHCP (RFC 2131) on a network that exists already, each
// for a client of its own, and keeps them: renewed, rebound, released, lost.
//
// Pool owns the leases of one interface, Client speaks with servers; the messages and
// their repetition are github.com/insomniacslk/dhcp's. The package gives no address to an
// interface and knows nothing of members: hostnet/linux, its only caller, does.
package dhcp

import (
	"net/netip"
	"time"
)

// Lease is an address that a server gave a client for a time.
type Lease struct {
	Client   string     `json:"client"` // the identifier, unique on the network
	Address  netip.Addr `json:"address"`
	Server   netip.Addr `json:"server"`
	Obtained time.Time  `json:"obtained"` // or last renewed
	Renew    time.Time  `json:"renew"`    // T1: that server is asked for more time
	Rebind   time.Time  `json:"rebind"`   // T2: any server is
	Expires  time.Time  `json:"expires"`
}

// endless is the life of a lease that a server gives for ever.
const endless = 10 * 365 * 24 * time.Hour

// timed gives a lease its times: T1 and T2 are a half and seven eighths of its life where
// the server does not say, or says what can't be. T1 is before T2 always: that is when its
// own server is asked.
func timed(l Lease, now time.Time, life, t1, t2 time.Duration) Lease {
	if life <= 0 || life > endless {
		life = endless
	}
	if t2 <= 0 || t2 >= life {
		t2 = life / 8 * 7
	}
	if t1 <= 0 || t1 >= t2 {
		t1 = min(life/2, t2/7*4)
	}
	l.Obtained, l.Renew, l.Rebind, l.Expires = now, now.Add(t1), now.Add(t2), now.Add(life)
	return l
}

// duty is what a lease needs at a moment.
type duty int

const (
	dutyNone   duty = iota
	dutyRenew       // ask its server
	dutyRebind      // ask any server
	dutyGone        // it has expired: nobody may use the address
)

// next says what a lease needs now and, if that is nothing or does not succeed, when to
// look again: half of the time to the next stage, but not more often than every.
func next(l Lease, now time.Time, every time.Duration) (duty, time.Time) {
	again := func(d duty, end time.Time) (duty, time.Time) {
		left := end.Sub(now)
		return d, now.Add(min(max(left/2, every), left))
	}
	switch {
	case !now.Before(l.Expires):
		return dutyGone, time.Time{}
	case now.Before(l.Obtained): // the clock was set back: how much is left, only a server knows
		return again(dutyRebind, now.Add(l.Expires.Sub(l.Obtained)))
	case !now.Before(l.Rebind):
		return again(dutyRebind, l.Expires)
	case !now.Before(l.Renew):
		return again(dutyRenew, l.Rebind)
	}
	return dutyNone, l.Renew
}

package linux

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// site is one of the installations on a lab's host, with one member behind a NAT gateway.
type site struct {
	l      *lab
	n      *Network
	o      Options
	cfg    hostnet.Config
	public string // the address that it leaves as
	at     string // the member's namespace
}

func newSite(l *lab, public string) *site {
	l.t.Helper()
	uid := "u-" + public
	vn := corp(uid)
	vn.NATGateways[0].PublicAddresses = []string{public}
	s := &site{l: l, public: public, cfg: hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{member(vn, 1, 1)}}}
	instance, state := random(4), l.t.TempDir()
	s.n = l.up(func(o *Options) {
		o.Instance, o.StateDir = instance, state
		s.o = *o
	})
	s.set()
	serveIn(l.t, s.at, "0.0.0.0:9000", "member")
	return s
}

func (s *site) set() {
	s.l.t.Helper()
	s.at = portOf(s.l.t, s.l.set(s.n, s.cfg), s.cfg.Ports[0])
}

// restart ends the process of the site and begins another.
func (s *site) restart() {
	s.l.t.Helper()
	if err := s.n.Close(); err != nil {
		s.l.t.Fatal(err)
	}
	s.n = s.l.up(func(o *Options) { *o = s.o })
	s.set()
}

// works fails the test unless the member reaches the world as the site's address and back.
func (s *site) works() {
	s.l.t.Helper()
	wantGreeting(s.l.t, s.at, labWorldAddr+":80", "world "+s.public)
	wantGreeting(s.l.t, s.at, "203.0.113.20:80", "near "+s.public)
}

func (s *site) cleanUp() {
	s.l.t.Helper()
	if err := s.n.CleanUp(s.l.ctx()); err != nil {
		s.l.t.Error(err)
	}
}

// neighbours is a host that forwards nothing, with two installations on it.
type neighbours struct {
	*lab
	before        []string // of the settings
	first, second *site
	streams       map[*site]net.Conn // connections of each member, from before anything changed
}

var sharedSettings = []string{
	forwardingKey("up0"), forwardingKey("near0"), proxyDelayKey("near0"), proxyDelayKey("up0"),
}

func (x *neighbours) settings() (out []string) {
	x.t.Helper()
	for _, key := range sharedSettings {
		out = append(out, key+"="+x.sysctl(key))
	}
	return out
}

func newNeighbours(t *testing.T) *neighbours {
	t.Helper()
	x := &neighbours{lab: newLab(t), streams: map[*site]net.Conn{}}
	x.ip(x.world, "route", "add", "203.0.113.0/24", "via", labHostAddr)
	x.ip(nearLAN(x.lab), "route", "add", "default", "via", "203.0.113.1") // so that only the rules keep a stranger out
	serveIn(t, x.world, labWorldAddr+":80", "world")
	x.before = x.settings()
	if !strings.HasSuffix(x.before[0], "=0") || strings.HasSuffix(x.before[2], "=0") {
		t.Fatalf("the lab's host forwards, or answers without delay: %v", x.before)
	}
	x.first = newSite(x.lab, "203.0.113.8")
	x.first.works()
	x.second = newSite(x.lab, "203.0.113.9")
	for _, s := range []*site{x.first, x.second} {
		s.works()
		x.streams[s] = mustDial(t, s.at, labWorldAddr+":80")
	}
	return x
}

// confined fails the test if anything but the installations' own packets passes the host.
func (x *neighbours) confined(alive ...*site) {
	x.t.Helper()
	wantSilence(x.t, x.world, "203.0.113.20:80") // a stranger's
	for _, s := range alive {
		wantSilence(x.t, x.world, s.public+":9000") // unsolicited
		for _, other := range alive {
			if other != s {
				wantSilence(x.t, s.at, other.public+":9000")
			}
		}
	}
}

// TestTwoInstallationsShareAHost: both leave by interfaces that did not forward before.
// Whichever goes, and however, the other's flows go on at once, without a look of its own;
// and the host carries nothing else, while they are there and when both are gone.
func TestTwoInstallationsShareAHost(t *testing.T) {
	t.Parallel()
	deleted := func(s *site) {
		s.l.set(s.n, hostnet.Config{})
		s.n.reaper.wait()
	}
	for name, c := range map[string]struct {
		firstGoes bool
		leave     func(*site)
	}{
		"the first is cleaned up":                 {true, (*site).cleanUp},
		"the second is cleaned up":                {false, (*site).cleanUp},
		"the first deletes its last NAT gateway":  {true, deleted},
		"the second deletes its last NAT gateway": {false, deleted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newNeighbours(t)
			x.confined(x.first, x.second)
			x.second.restart()
			x.first.restart()
			goes, stays := x.second, x.first
			if c.firstGoes {
				goes, stays = stays, goes
			}
			during := x.settings()
			c.leave(goes)
			if diff := cmp.Diff(during, x.settings()); diff != "" {
				t.Errorf("the host's settings when one of two has gone (-before +after):\n%s", diff)
			}
			echo(t, x.streams[stays], "still here")
			stays.works()
			x.confined(stays)
			stays.restart()
			echo(t, x.streams[stays], "after a restart")
			stays.works()
			stays.cleanUp()
			if diff := cmp.Diff(x.before, x.settings()); diff != "" {
				t.Errorf("the host's settings at the end (-before +after):\n%s", diff)
			}
			if tables := nft(t, x.host, "list", "tables"); strings.Contains(tables, "sluice-") {
				t.Errorf("left: %s", tables)
			}
		})
	}
}

// TestCrashedInstallationKeepsItsShare: one that crashed is counted until it is cleaned up,
// since its members go on, and the settings go back with whoever is the last.
func TestCrashedInstallationKeepsItsShare(t *testing.T) {
	t.Parallel()
	x := newNeighbours(t)
	if err := x.first.n.Close(); err != nil {
		t.Fatal(err)
	}
	x.second.cleanUp()
	echo(t, x.streams[x.first], "nobody is home")
	x.first.works()
	x.confined(x.first)
	later, err := New(x.first.o)
	if err != nil {
		t.Fatal(err)
	}
	if err := later.CleanUp(x.ctx()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(x.before, x.settings()); diff != "" {
		t.Errorf("the host's settings at the end (-before +after):\n%s", diff)
	}
}

// TestInstallationsChangeTheHostInTurn: what two do to the host's settings never mixes.
func TestInstallationsChangeTheHostInTurn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var sides [2]*hostSide
	for i := range sides {
		h, err := l.up0().openHostSide()
		if err != nil {
			t.Fatal(err)
		}
		defer h.close()
		sides[i] = h
	}
	err := sides[0].alone(l.ctx(), func() error {
		short, cancel := context.WithTimeout(l.ctx(), 50*time.Millisecond)
		defer cancel()
		return sides[1].alone(short, func() error { return errors.New("both at once") })
	})
	if !errors.Is(err, context.DeadlineExceeded) || !contains(err.Error(), "another installation") {
		t.Errorf("a lock that is held: %v", err)
	}
	if err := sides[1].alone(l.ctx(), func() error { return nil }); err != nil {
		t.Errorf("a lock that was given back: %v", err)
	}
}

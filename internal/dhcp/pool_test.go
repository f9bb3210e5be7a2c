package dhcp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	first  = netip.MustParseAddr("192.168.10.140")
	second = netip.MustParseAddr("192.168.10.141")
	server = netip.MustParseAddr("192.168.10.1")
)

func TestNext(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	l := timed(Lease{Address: first}, now, time.Hour, 0, 0) // T1 30m, T2 52m30s
	for name, c := range map[string]struct {
		after time.Duration
		what  duty
		again time.Duration // after now
	}{
		"new":                    {0, dutyNone, 30 * time.Minute},
		"T1":                     {30 * time.Minute, dutyRenew, 41*time.Minute + 15*time.Second},
		"shortly before T2":      {52 * time.Minute, dutyRenew, 52*time.Minute + 30*time.Second},
		"T2":                     {52*time.Minute + 30*time.Second, dutyRebind, 56*time.Minute + 15*time.Second},
		"half a minute is left":  {59*time.Minute + 30*time.Second, dutyRebind, time.Hour},
		"three minutes are left": {57 * time.Minute, dutyRebind, 58*time.Minute + 30*time.Second},
		"expired":                {time.Hour, dutyGone, -1},
	} {
		what, again := next(l, now.Add(c.after), time.Minute)
		if want := now.Add(c.again); what != c.what || c.again >= 0 && !again.Equal(want) {
			t.Errorf("%s: %v, again at %v; want %v, %v", name, what, again.Sub(now), c.what, c.again)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct{ life, t1, t2, wantT1, wantT2, wantLife time.Duration }{
		"of the server":           {100, 20, 60, 20, 60, 100},
		"none":                    {800, 0, 0, 400, 700, 800},
		"T2 behind the end":       {800, 100, 900, 100, 700, 800},
		"T1 behind T2":            {800, 750, 700, 400, 700, 800},
		"for ever":                {endless * 20, 0, 0, endless / 2, endless / 8 * 7, endless},
		"a T2 before half of all": {800, 0, 210, 120, 210, 800},
		"T1 is T2":                {800, 210, 210, 120, 210, 800},
	} {
		l := timed(Lease{}, now, c.life, c.t1, c.t2)
		if got := [3]time.Duration{l.Renew.Sub(now), l.Rebind.Sub(now), l.Expires.Sub(now)}; got != [3]time.Duration{c.wantT1, c.wantT2, c.wantLife} {
			t.Errorf("%s: T1, T2, life %v; want %v, %v, %v", name, got, c.wantT1, c.wantT2, c.wantLife)
		}
	}
}

// fake is a network with a server, which tests change while a pool runs.
type fake struct {
	mu       sync.Mutex
	gives    []netip.Addr // in turn; the last one again and again
	err      error        // of each request
	extend   func(l Lease, rebind bool) (Lease, error)
	life     time.Duration
	t1, t2   time.Duration
	taken    map[netip.Addr]bool // by others on the network
	deaf     error               // of each probe
	asked    []string
	probed   []netip.Addr
	released []netip.Addr
	declined []netip.Addr
	rebinds  int
}

func (f *fake) Request(_ context.Context, client string, hint netip.Addr, fits func(netip.Addr) error) (Lease, error) {
	f.mu.Lock()
	f.asked = append(f.asked, client+" "+hint.String())
	if f.err != nil {
		defer f.mu.Unlock()
		return Lease{}, f.err
	}
	a := f.gives[0]
	if len(f.gives) > 1 {
		f.gives = f.gives[1:]
	}
	f.mu.Unlock()
	if err := fits(a); err != nil {
		return Lease{}, err
	}
	return timed(Lease{Client: client, Address: a, Server: server}, time.Now(), f.life, f.t1, f.t2), nil
}

func (f *fake) Extend(_ context.Context, l Lease, rebind bool) (Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rebind {
		f.rebinds++
	}
	return f.extend(l, rebind)
}

func (f *fake) Release(l Lease) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, l.Address)
	return nil
}

func (f *fake) Decline(l Lease) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.declined = append(f.declined, l.Address)
	return nil
}

func (f *fake) Probe(_ context.Context, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probed = append(f.probed, a)
	if f.taken[a] {
		return &TakenError{Address: a, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	}
	return f.deaf
}

// bench is a pool on a fake network.
type bench struct {
	*testing.T
	*Pool
	net   *fake
	mu    sync.Mutex
	saved []Lease
}

func newBench(t *testing.T, f *fake, change func(*Options)) *bench {
	b := &bench{T: t, net: f}
	o := Options{
		Exchange: f, Logger: slog.New(slog.DiscardHandler), Changed: func() {}, GiveUp: 20 * time.Second, Every: time.Millisecond,
		Hint: func(string, bool) netip.Addr { return second },
		Fits: func(_ string, a netip.Addr) error {
			if a == server {
				return errors.New("192.168.10.1 is not in the subnet")
			}
			return nil
		},
		Save: func(l []Lease) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.saved = slices.Clone(l)
			return nil
		},
	}
	if change != nil {
		change(&o)
	}
	b.Pool = NewPool(o)
	t.Cleanup(b.Close)
	return b
}

// until waits for what the states come to.
func (b *bench) until(what string, ok func(map[string]State) bool) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(b.States()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("never: %s; it is %+v", what, b.States())
		}
	}
}

func (b *bench) holds(id string, a netip.Addr) {
	b.Helper()
	b.until(id+" has "+a.String(), func(s map[string]State) bool { return s[id].Address == a })
}

func (b *bench) leases() []Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saved
}

func TestPoolObtainsAndReleases(t *testing.T) {
	t.Parallel()
	f := &fake{gives: []netip.Addr{server, first, second}, life: time.Hour} // the first one does not fit
	b := newBench(t, f, nil)
	b.Set([]Wanted{{ID: "m-1"}})
	b.holds("m-1", first)
	b.Set([]Wanted{{ID: "m-1", Address: first}, {ID: "m-2"}})
	b.holds("m-2", second)
	if got := b.leases(); len(got) != 2 {
		t.Errorf("written down: %+v", got)
	}
	b.Set([]Wanted{{ID: "m-2", Address: second}})
	b.until("m-1 is gone", func(s map[string]State) bool { return len(s) == 1 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if want := []netip.Addr{first}; !slices.Equal(f.released, want) {
		t.Errorf("released: %v; want %v: what does not fit is not taken", f.released, want)
	}
	if want := []netip.Addr{first, second}; !slices.Equal(f.probed, want) {
		t.Errorf("probed: %v; want %v", f.probed, want)
	}
	if want := "m-1 192.168.10.141"; f.asked[0] != want {
		t.Errorf("asked for %q; want %q", f.asked[0], want)
	}
	if got := b.leases(); len(got) != 1 || got[0].Address != second {
		t.Errorf("written down: %+v", got)
	}
}

// TestPoolLoses: each way to lose an address has its reason; a keen client takes another.
func TestPoolLoses(t *testing.T) {
	t.Parallel()
	silent := func(Lease, bool) (Lease, error) { return Lease{}, ErrSilent }
	nak := func(Lease, bool) (Lease, error) { return Lease{}, &RefusedError{Server: server, Text: "wrong network"} }
	for name, c := range map[string]struct {
		net  *fake
		want Wanted
		lost string
	}{
		"nobody answers":       {&fake{err: ErrSilent}, Wanted{ID: "m-1"}, "no DHCP server answered (for "},
		"refused at once":      {&fake{err: &RefusedError{Server: server}}, Wanted{ID: "m-1"}, "the DHCP server 192.168.10.1 refused it (NAK)"},
		"nothing fits":         {&fake{gives: []netip.Addr{server}, life: time.Hour}, Wanted{ID: "m-1"}, "192.168.10.1 is not in the subnet (for "},
		"another address":      {&fake{gives: []netip.Addr{second}, life: time.Hour}, Wanted{ID: "m-1", Address: first}, "gives 192.168.10.141 in place of 192.168.10.140"},
		"refused when renewed": {&fake{gives: []netip.Addr{first}, life: time.Hour, t1: time.Millisecond, extend: nak}, Wanted{ID: "m-1"}, "lease of 192.168.10.140 was not extended: the DHCP server 192.168.10.1 refused it (NAK: wrong network)"},
		"somebody has it":      {&fake{gives: []netip.Addr{first}, life: time.Hour, taken: map[netip.Addr]bool{first: true}}, Wanted{ID: "m-1"}, "the DHCP server gives 192.168.10.140, which 02:00:00:00:00:09 has already (for "},
		"no way to probe":      {&fake{gives: []netip.Addr{first}, life: time.Hour, deaf: errors.New("no buffer space")}, Wanted{ID: "m-1"}, "no buffer space (for "},
		"expired":              {&fake{gives: []netip.Addr{first}, life: 40 * time.Millisecond, extend: silent}, Wanted{ID: "m-1"}, "lease of 192.168.10.140 has expired at "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, c.net, func(o *Options) { o.GiveUp = 100 * time.Millisecond })
			b.Set([]Wanted{c.want})
			b.until(c.lost, func(s map[string]State) bool {
				return strings.Contains(s["m-1"].Lost, c.lost) && !s["m-1"].Address.IsValid()
			})
			if got := b.leases(); len(got) != 0 {
				t.Errorf("written down: %+v", got)
			}
			b.Set(nil)
			b.until("it is gone", func(s map[string]State) bool { return len(s) == 0 })
		})
	}
	f := &fake{gives: []netip.Addr{first, second}, life: time.Hour, t1: time.Millisecond, extend: nak}
	b := newBench(t, f, nil)
	b.Set([]Wanted{{ID: "own", Keen: true}})
	b.holds("own", second)
}

func TestPoolExtends(t *testing.T) {
	t.Parallel()
	var renewed int
	f := &fake{gives: []netip.Addr{first}, life: time.Hour, t1: time.Millisecond, t2: 50 * time.Millisecond}
	f.extend = func(l Lease, rebind bool) (Lease, error) {
		if renewed++; !rebind {
			return Lease{}, ErrSilent // its own server is away
		}
		return timed(l, time.Now(), 2*time.Hour, 0, 0), nil
	}
	b := newBench(t, f, func(o *Options) { o.Every = time.Millisecond })
	b.Set([]Wanted{{ID: "m-1"}})
	b.until("it was rebound", func(map[string]State) bool {
		got := b.leases()
		return len(got) == 1 && time.Until(got[0].Expires) > time.Hour
	})
	b.holds("m-1", first)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rebinds != 1 || renewed < 2 {
		t.Errorf("asked %d times for more time, %d times of any server; want more than one, and one", renewed, f.rebinds)
	}
}

// TestPoolTakesOver: what an earlier process had is kept, or released; and stays at the end.
func TestPoolTakesOver(t *testing.T) {
	t.Parallel()
	lease := func(id string, a netip.Addr, life time.Duration) Lease {
		return timed(Lease{Client: id, Address: a, Server: server}, time.Now(), life, 0, 0)
	}
	f := &fake{err: ErrSilent}
	b := newBench(t, f, func(o *Options) {
		o.Leases = []Lease{lease("m-1", first, time.Hour), lease("m-2", second, time.Hour)}
	})
	b.Set([]Wanted{{ID: "m-1", Address: first}})
	if got := b.States()["m-1"].Address; got != first {
		t.Errorf("at once it has %v; want %v", got, first)
	}
	b.until("m-2 is released", func(s map[string]State) bool { return len(s) == 1 })
	b.Close()
	if got := b.leases(); len(got) != 1 || got[0].Client != "m-1" {
		t.Errorf("written down: %+v", got)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.released, []netip.Addr{second}) || len(f.asked) != 0 {
		t.Errorf("released %v, asked %v; want %v alone released", f.released, f.asked, second)
	}
}

// TestPoolNeedsTheDisk: an address that can't be written down is not used.
func TestPoolNeedsTheDisk(t *testing.T) {
	t.Parallel()
	f := &fake{gives: []netip.Addr{first}, life: time.Hour}
	b := newBench(t, f, func(o *Options) {
		o.GiveUp, o.Save = 100*time.Millisecond, func([]Lease) error { return errors.New("no space left on device") }
	})
	b.Set([]Wanted{{ID: "m-1"}})
	b.until("it is lost", func(s map[string]State) bool {
		return strings.Contains(s["m-1"].Lost, "can't be written down: no space left on device")
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.released) == 0 {
		t.Error("the address was not released")
	}
}

// TestPoolDeclines: an address that somebody has is declined, not released, and another is
// asked for; one that was ours until now is not probed.
func TestPoolDeclines(t *testing.T) {
	t.Parallel()
	f := &fake{gives: []netip.Addr{first, second}, life: time.Hour, taken: map[netip.Addr]bool{first: true}}
	b := newBench(t, f, func(o *Options) { o.GiveUp = time.Second })
	b.Set([]Wanted{{ID: "m-1"}})
	b.holds("m-1", second)
	b.Set([]Wanted{{ID: "m-2"}})
	b.until("m-1 is gone", func(s map[string]State) bool { return len(s) == 1 })
	b.holds("m-2", second)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.declined, []netip.Addr{first}) || !slices.Equal(f.released, []netip.Addr{second}) {
		t.Errorf("declined %v, released %v; want %v, %v", f.declined, f.released, first, second)
	}
	if want := []netip.Addr{first, second}; !slices.Equal(f.probed, want) {
		t.Errorf("probed %v; want %v: the second time it was just given back", f.probed, want)
	}
}

// TestPoolYields: an address that somebody else uses, too, is declined, and is its client's no
// more; a keen client takes another. What is said of an address that nobody has does nothing.
func TestPoolYields(t *testing.T) {
	t.Parallel()
	by := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	f := &fake{gives: []netip.Addr{first, second}, life: time.Hour}
	b := newBench(t, f, nil)
	b.Set([]Wanted{{ID: "own", Keen: true}})
	b.holds("own", first)
	b.Taken(server, by)
	b.Taken(first, by)
	b.holds("own", second)
	b.Set([]Wanted{{ID: "m-1", Address: second}})
	b.until("own is gone", func(s map[string]State) bool { return len(s) == 1 })
	b.holds("m-1", second)
	b.Taken(second, by)
	b.until("it is lost", func(s map[string]State) bool {
		return s["m-1"].Lost == "its DHCP lease of 192.168.10.141 was declined: 02:00:00:00:00:09 uses that address, too" && !s["m-1"].Address.IsValid()
	})
	if got := b.leases(); len(got) != 0 {
		t.Errorf("written down: %+v", got)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.declined, []netip.Addr{first, second}) {
		t.Errorf("declined %v; want %v, %v", f.declined, first, second)
	}
}

// TestPoolHasNoAddressTwice: a server that tells clients apart by their MAC gives all of
// them one address; it stays the first one's.
func TestPoolHasNoAddressTwice(t *testing.T) {
	t.Parallel()
	f := &fake{gives: []netip.Addr{first}, life: time.Hour}
	b := newBench(t, f, func(o *Options) { o.GiveUp = 100 * time.Millisecond })
	b.Set([]Wanted{{ID: "own", Keen: true}})
	b.holds("own", first)
	b.Set([]Wanted{{ID: "own", Keen: true}, {ID: "m-1"}})
	b.until("m-1 is lost", func(s map[string]State) bool {
		return strings.Contains(s["m-1"].Lost, "gives 192.168.10.140, which own has: does it tell clients apart by their MAC alone?")
	})
	b.Set([]Wanted{{ID: "own", Keen: true}})
	b.until("m-1 is gone", func(s map[string]State) bool { return len(s) == 1 })
	b.holds("own", first)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.released) != 0 {
		t.Errorf("released %v; it is the other's", f.released)
	}
}

// TestPoolResumes: leases of an earlier process are extended although nobody says yet who
// is wanted; what is lost meanwhile stays lost, and the next pool says why.
func TestPoolResumes(t *testing.T) {
	t.Parallel()
	lease := func(id string, a netip.Addr, begun time.Time) Lease {
		return timed(Lease{Client: id, Address: a, Server: server}, begun, time.Hour, time.Minute, 0)
	}
	f := &fake{gives: []netip.Addr{second}, life: time.Hour}
	f.extend = func(l Lease, _ bool) (Lease, error) { return timed(l, time.Now(), 2*time.Hour, 0, 0), nil }
	old := []Lease{lease("m-1", first, time.Now().Add(-30*time.Minute)), lease("m-2", second, time.Now().Add(-2*time.Hour))}
	b := newBench(t, f, func(o *Options) { o.Leases = old })
	b.Resume()
	b.until("m-1 is extended, m-2 is lost", func(s map[string]State) bool {
		got := b.leases()
		return len(got) == 1 && got[0].Client == "m-1" && time.Until(got[0].Expires) > 90*time.Minute && s["m-2"].Lost != ""
	})
	b.Close()
	why := b.States()["m-2"].Lost
	if !strings.Contains(why, "lease of 192.168.10.141 has expired at ") || !strings.Contains(why, "the host was not there to extend it") {
		t.Errorf("m-2 is lost because %q", why)
	}
	next := newBench(t, f, func(o *Options) {
		o.Leases, o.Lost = b.leases(), map[string]string{"m-2": why, "own": "it expired, too"}
	})
	next.Set([]Wanted{{ID: "m-1", Address: first}, {ID: "m-2", Address: second}, {ID: "own", Keen: true}})
	next.holds("own", second)
	if s := next.States(); s["m-1"].Address != first || s["m-2"].Lost != why || s["m-2"].Address.IsValid() {
		t.Errorf("the next pool has %+v", s)
	}
}

// TestPoolStopsAtTheEnd: a server that is being asked for more time when the lease ends does
// not prolong it.
func TestPoolStopsAtTheEnd(t *testing.T) {
	t.Parallel()
	silent := &slow{fake: &fake{gives: []netip.Addr{first}, life: 300 * time.Millisecond}}
	b := newBench(t, silent.fake, func(o *Options) { o.Exchange = silent })
	b.Set([]Wanted{{ID: "m-1"}})
	b.until("it is lost", func(s map[string]State) bool { return strings.Contains(s["m-1"].Lost, "has expired") })
}

// slow never answers those who ask for more time.
type slow struct{ *fake }

func (s *slow) Extend(ctx context.Context, _ Lease, _ bool) (Lease, error) {
	<-ctx.Done()
	return Lease{}, ErrSilent
}

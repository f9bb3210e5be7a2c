package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
)

func rr(t testing.TB, line string) dns.RR {
	t.Helper()
	out, err := dns.NewRR(line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestHowLongAnswersAreKept: the shortest life decides; "not there" lives as long as the
// SOA says, and not at all without one.
func TestHowLongAnswersAreKept(t *testing.T) {
	v := &view{zones: newZoneSet(nil)}
	for name, c := range map[string]struct {
		rcode  int
		answer []string
		ns     []string
		want   time.Duration
	}{
		"the shortest":              {0, []string{"a.x. 60 IN CNAME b.x.", "b.x. 20 IN A 10.0.0.1", "b.x. 90 IN A 10.0.0.2"}, nil, 20 * time.Second},
		"of the answer alone":       {0, []string{"a.x. 60 IN A 10.0.0.1", "c.x. 5 IN A 10.0.0.1"}, nil, time.Minute},
		"none":                      {0, []string{"a.x. 0 IN A 10.0.0.1"}, nil, 0},
		"a day at most":             {0, []string{"a.x. 999999 IN A 10.0.0.1"}, nil, 24 * time.Hour},
		"a negative number is none": {0, []string{"a.x. 2147483648 IN A 10.0.0.1"}, nil, 0},
		"no such name":              {dns.RcodeNameError, nil, []string{"x. 900 IN SOA n.x. h.x. 1 2 3 4 30"}, 30 * time.Second},
		"no such name, SOA's life":  {dns.RcodeNameError, nil, []string{"x. 10 IN SOA n.x. h.x. 1 2 3 4 30"}, 10 * time.Second},
		"an hour at most":           {dns.RcodeNameError, nil, []string{"x. 99999 IN SOA n.x. h.x. 1 2 3 4 99999"}, time.Hour},
		"no such record":            {0, nil, []string{"x. 900 IN SOA n.x. h.x. 1 2 3 4 30"}, 30 * time.Second},
		"behind an alias":           {0, []string{"a.x. 7 IN CNAME b.x."}, []string{"x. 900 IN SOA n.x. h.x. 1 2 3 4 30"}, 7 * time.Second},
		"without an SOA":            {dns.RcodeNameError, nil, nil, 0},
		"with another's SOA":        {dns.RcodeNameError, nil, []string{"y. 900 IN SOA n.x. h.x. 1 2 3 4 30"}, 0},
		"of all names":              {dns.RcodeNameError, nil, []string{". 900 IN SOA n.x. h.x. 1 2 3 4 30"}, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			m := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: c.rcode, RecursionAvailable: true}}
			for _, line := range c.answer {
				m.Answer = append(m.Answer, rr(t, line))
			}
			for _, line := range c.ns {
				m.Ns = append(m.Ns, rr(t, line))
			}
			e, now := v.read(key{name: "a.x.", kind: dns.TypeA}, m), time.Unix(1000, 0)
			e.keep(now)
			got := time.Duration(0)
			if !e.expires.IsZero() {
				got = e.expires.Sub(now)
			}
			if got != c.want {
				t.Errorf("kept for %v, want %v", got, c.want)
			}
		})
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCache()
	put := func(name string, bytes int, life time.Duration) key {
		k := key{name: name, kind: dns.TypeA}
		c.put(k, &kept{made: now, expires: now.Add(life), bytes: bytes})
		return k
	}
	first := put("first.", 10, time.Hour)
	short := put("short.", 10, time.Second)
	if c.get(short, now) == nil || c.get(short, now.Add(time.Second)) != nil || c.get(first, now) == nil {
		t.Error("lives are not kept to")
	}
	for i := range maxCacheEntries {
		put(fmt.Sprintf("n%d.", i), 10, time.Hour)
		if i == maxCacheEntries/2 && c.get(first, now) == nil { // used: it stays
			t.Error("an entry went before there were too many")
		}
	}
	if len(c.entries) != maxCacheEntries || c.order.Len() != maxCacheEntries || c.get(first, now) == nil || c.get(key{name: "n0.", kind: dns.TypeA}, now) != nil {
		t.Errorf("%d entries, and not those used last", len(c.entries))
	}
	for i := range 100 {
		put(fmt.Sprintf("large%d.", i), 1<<20, time.Hour)
	}
	if c.bytes > maxCacheBytes || c.order.Len() > 4 {
		t.Errorf("%d entries of %d bytes are kept", c.order.Len(), c.bytes)
	}
	put("large99.", 5, time.Hour) // replaces
	sum := 0
	for k, el := range c.entries {
		sum += cost(k, el.Value.(*cached).entry)
	}
	if sum != c.bytes {
		t.Errorf("%d bytes are counted, there are %d", c.bytes, sum)
	}
}

// counting answers with a TTL, and counts in the last byte of the address.
func counting(t *testing.T, ttl uint32) *fakeUpstream {
	t.Helper()
	var n atomic.Int64
	return startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		record := aRecord(q.Question[0].Name, fmt.Sprintf("203.0.113.%d", n.Add(1)))
		record.Header().Ttl = ttl
		m.Answer, m.RecursionAvailable = []dns.RR{record}, true
		_ = w.WriteMsg(m)
	})
}

func TestAnswersAreKept(t *testing.T) {
	t.Parallel()
	u := counting(t, 3600)
	config := Config{Servers: servers(u.address)}
	s := start(t, Options{Config: config})
	want := func(name, address string, asked int64) {
		t.Helper()
		got := query(t, "udp", s.udp, question(name, dns.TypeA))
		if len(got.Answer) != 1 || got.Answer[0].(*dns.A).A.String() != address || got.Answer[0].Header().Name != name || u.asked.Load() != asked {
			t.Errorf("%s, and the server was asked %d times, want %s and %d", summary(got), u.asked.Load(), address, asked)
		}
	}
	want("www.example.org.", "203.0.113.1", 1)
	want("WWW.Example.org.", "203.0.113.1", 1) // the client's own spelling
	want("ftp.example.org.", "203.0.113.2", 2)

	// Ten minutes later: what is left of its life.
	v := s.view.Load()
	k := key{name: "www.example.org.", kind: dns.TypeA}
	old := *v.cache.get(k, time.Now())
	old.made = old.made.Add(-10 * time.Minute)
	v.cache.put(k, &old)
	if got := query(t, "udp", s.udp, question("www.example.org.", dns.TypeA)); got.Answer[0].Header().Ttl > 3000 {
		t.Errorf("after ten minutes of an hour: %s", summary(got))
	}

	s.Update(config) // nothing changed
	want("www.example.org.", "203.0.113.1", 2)
	config.Zones = []core.GoalZone{{Name: "corp.internal"}}
	s.Update(config)
	want("www.example.org.", "203.0.113.3", 3)
	config.Timeout = time.Second
	s.Update(config)
	want("www.example.org.", "203.0.113.4", 4)
}

func TestWhatHasNoLifeIsNotKept(t *testing.T) {
	t.Parallel()
	u := counting(t, 0)
	s := start(t, Options{Config: Config{Servers: servers(u.address)}})
	for i := range 3 {
		query(t, "udp", s.udp, question("www.example.org.", dns.TypeA))
		if got := u.asked.Load(); got != int64(i+1) {
			t.Errorf("the server was asked %d times for %d questions", got, i+1)
		}
	}
}

// TestEqualQuestionsAreAskedOnce holds the answer back until all have asked.
func TestEqualQuestionsAreAskedOnce(t *testing.T) {
	t.Parallel()
	const clients = 20
	release := make(chan struct{})
	u := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-release
		answering("203.0.113.1")(w, q)
	})
	s := start(t, Options{Config: Config{Servers: servers(u.address), Timeout: time.Minute}})
	var work sync.WaitGroup
	for range clients {
		work.Go(func() {
			c := dns.Client{Net: "tcp", Timeout: 30 * time.Second}
			if got, _, err := c.Exchange(question("www.example.org.", dns.TypeA), s.tcp); err != nil || len(got.Answer) != 1 {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	eventually(t, "all wait", func() bool { return s.waiting.len() == clients })
	close(release)
	work.Wait()
	if n := u.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
}

// TestTheFirstWhoAsksGoesAway: the one who waits with it asks again, and is answered.
func TestTheFirstWhoAsksGoesAway(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	u := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if n.Add(1) > 1 { // the first is never answered
			answering("203.0.113.1")(w, q)
		}
	})
	v := New(Options{Config: Config{Servers: servers(u.address), Timeout: time.Minute}}).view.Load()
	first, goAway := context.WithCancel(t.Context())
	ask := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			e, _, err := v.lookup(ctx, netip.Addr{}, question("www.example.org.", dns.TypeA), "www.example.org.")
			if err == nil && len(e.answer) != 1 {
				err = fmt.Errorf("no answer: %s", e.asked)
			}
			done <- err
		}()
		return done
	}
	one := ask(first)
	eventually(t, "the first asks", func() bool { return u.asked.Load() == 1 })
	two := ask(t.Context())
	eventually(t, "the second waits", func() bool { return v.waiting.len() == 2 })
	goAway()
	if err := <-one; err == nil {
		t.Error("the first was answered")
	}
	if err := <-two; err != nil {
		t.Errorf("the second: %v", err)
	}
}

// FuzzReply has a server send whatever it likes: the client gets a reply that can be sent,
// and no record of another name.
func FuzzReply(f *testing.F) {
	for _, m := range []*dns.Msg{
		new(dns.Msg).SetReply(question("www.example.org.", dns.TypeA)),
		{MsgHdr: dns.MsgHdr{Response: true}, Question: question("www.example.org.", dns.TypeA).Question,
			Answer: []dns.RR{rr(f, "www.example.org. 60 IN CNAME two.corp.internal."), rr(f, "two.corp.internal. 60 IN A 10.0.0.1"), rr(f, "x.y. 1 IN A 10.0.0.1")},
			Ns:     []dns.RR{rr(f, "example.org. 60 IN SOA n.x. h.x. 1 2 3 4 5")}},
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	v := New(Options{Config: Config{Zones: richZones()}}).view.Load()
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		const name = "www.example.org."
		e := v.read(key{name: name, kind: dns.TypeA}, m)
		e.keep(time.Now())
		allowed := map[string]bool{name: true}
		for _, r := range e.answer {
			if !allowed[dns.CanonicalName(r.Header().Name)] {
				t.Fatalf("a record of another name: %s", r)
			}
			if c, ok := r.(*dns.CNAME); ok {
				allowed[dns.CanonicalName(c.Target)] = true
			}
		}
		reply := new(dns.Msg).SetReply(question(name, dns.TypeA))
		reply.Answer, reply.Ns = e.answer, e.soa
		reply.Truncate(dns.MinMsgSize)
		if _, err := reply.Pack(); err != nil {
			t.Fatalf("the reply can't be sent: %v\n%s", err, reply)
		}
	})
}

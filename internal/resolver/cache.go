package resolver

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The longest that answers are kept, whatever they say, and the most that a cache holds.
const (
	maxKeep         = 24 * time.Hour
	maxKeepNegative = time.Hour
	keepFailure     = time.Second
	maxCacheEntries = 4096
	maxCacheBytes   = 8 << 20
)

// key is what a question has to share with another for one answer to do for both.
type key struct {
	name   string // canonical
	kind   uint16
	do, cd bool
}

// kept is an answer of the servers. It does not change.
type kept struct {
	rcode  int
	answer []dns.RR // the names that lead to the records, and these
	soa    []dns.RR // of a negative answer
	next   string   // the alias that the servers did not follow, or that leads into a zone
	none   bool     // a negative answer
	ad     bool
	asked  string // who was asked, and what each did

	made    time.Time
	expires time.Time
	bytes   int
}

// age is for how many seconds the entry has been kept.
func (e *kept) age(now time.Time) uint32 {
	if e.expires.IsZero() || now.Before(e.made) {
		return 0
	}
	return uint32(now.Sub(e.made) / time.Second)
}

// keep decides until when an answer may be kept: the shortest life of its records, and for
// "not there" what the SOA says (RFC 2308). Zero: not at all.
func (e *kept) keep(now time.Time) {
	e.made = now
	life, ok := uint32(0), false
	shorten := func(ttl uint32) {
		if !ok || ttl < life {
			life, ok = ttl, true
		}
	}
	for _, rr := range e.answer {
		shorten(rr.Header().Ttl)
		e.bytes += dns.Len(rr)
	}
	for _, rr := range e.soa {
		soa := rr.(*dns.SOA)
		shorten(min(soa.Hdr.Ttl, soa.Minttl))
		e.bytes += dns.Len(rr)
	}
	most := maxKeep
	if e.none {
		most, ok = maxKeepNegative, ok && len(e.soa) > 0
	}
	if ok && life > 0 && life < 1<<31 { // RFC 2181: more is none
		e.expires = now.Add(min(time.Duration(life)*time.Second, most))
	}
}

// cache keeps answers, those used last, within bounds of number and size.
type cache struct {
	mu      sync.Mutex
	entries map[key]*list.Element
	order   list.List // of *cached, the one used last in front
	bytes   int
}

type cached struct {
	key   key
	entry *kept
}

func newCache() *cache { return &cache{entries: map[key]*list.Element{}} }

// get gives an answer whose time is not over.
func (c *cache) get(k key, now time.Time) *kept {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*cached).entry
	if !now.Before(e.expires) {
		c.drop(el)
		return nil
	}
	c.order.MoveToFront(el)
	return e
}

func (c *cache) put(k key, e *kept) {
	if e.expires.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[k]; el != nil {
		c.drop(el)
	}
	c.entries[k] = c.order.PushFront(&cached{k, e})
	c.bytes += cost(k, e)
	for c.order.Len() > maxCacheEntries || c.bytes > maxCacheBytes {
		c.drop(c.order.Back())
	}
}

// drop takes an entry out. mu is held.
func (c *cache) drop(el *list.Element) {
	old := c.order.Remove(el).(*cached)
	delete(c.entries, old.key)
	c.bytes -= cost(old.key, old.entry)
}

// cost counts the wire form twice for what Go adds to it.
func cost(k key, e *kept) int { return 256 + len(k.name) + len(e.asked) + 2*e.bytes }

package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// maxAliases bounds how many names may stand for each other.
const maxAliases = 16

// view is everything that answers depend on, at one moment. A change makes a new one, with
// an empty cache.
type view struct {
	config  Config
	zones   *zoneSet
	client  *upstream.Client
	cache   *cache
	flights flights
	waiting *waiting
}

func (r *Resolver) newView(c Config, old *view) *view {
	v := &view{config: c, zones: newZoneSet(c.Zones), cache: newCache(), waiting: r.waiting}
	if old != nil && reflect.DeepEqual(old.config.Servers, c.Servers) && old.config.Timeout == c.Timeout {
		v.client = old.client // it knows which are down
		return v
	}
	v.client = upstream.New(upstream.Options{Servers: c.Servers, Dial: r.dial, Timeout: c.Timeout, Limit: answerLimit})
	return v
}

// result is the outcome of a question, before it is a message.
type result struct {
	rcode         int
	answer, soa   []dns.RR
	authoritative bool
	ad            bool
	code          uint16 // of why; 0 for none
	why           string
}

// resolve follows a name through zones and servers until there are records or none.
func (v *view) resolve(ctx context.Context, client netip.Addr, q *dns.Msg) (result, error) {
	question := q.Question[0]
	written, name := question.Name, dns.CanonicalName(question.Name)
	var res result
	seen := []string{}
	for {
		if slices.Contains(seen, name) || len(seen) > maxAliases {
			res.rcode, res.soa = dns.RcodeServerFailure, nil
			res.explain(codeZone, seen, loopText(seen, name))
			return res, nil
		}
		seen = append(seen, name)
		var next string
		if z := v.zones.find(name); z != nil {
			res.authoritative = res.authoritative || len(seen) == 1
			next = res.fromZone(z, name, written, question.Qtype, seen)
		} else if next2, err := v.fromServers(ctx, client, &res, q, name, written, seen); err != nil {
			return res, err
		} else {
			next = next2
		}
		if next == "" {
			return res, nil
		}
		written, name = next, dns.CanonicalName(next)
	}
}

func loopText(seen []string, name string) string {
	if slices.Contains(seen, name) {
		return "aliases go round in a circle: " + plainName(name) + " again"
	}
	return fmt.Sprintf("more than %d aliases follow each other", maxAliases)
}

// fromZone adds what a private zone says, and returns the alias to follow.
func (res *result) fromZone(z *zone, name, written string, kind uint16, seen []string) string {
	of, exists := z.lookup(name)
	found, alias := of.answer(kind)
	if name == z.name && (kind == dns.TypeSOA || kind == dns.TypeANY) {
		found = append(slices.Clone(found), z.soa())
	}
	res.ad = false
	if alias != nil {
		res.answer = append(res.answer, at(alias, written, 0))
		return alias.Target
	}
	for _, rr := range found {
		res.answer = append(res.answer, at(rr, written, 0))
	}
	res.rcode = dns.RcodeSuccess
	if len(found) > 0 {
		return ""
	}
	res.soa = []dns.RR{z.soa()}
	what := fmt.Sprintf("private zone %s has no %s record for %s", plainName(z.name), typeName(kind), plainName(name))
	if !exists {
		res.rcode = dns.RcodeNameError
		what = fmt.Sprintf("private zone %s has no name %s", plainName(z.name), plainName(name))
	}
	res.explain(codeZone, seen, what)
	return ""
}

// fromServers adds what the servers say, and returns the alias to follow.
func (v *view) fromServers(ctx context.Context, client netip.Addr, res *result, q *dns.Msg, name, written string, seen []string) (string, error) {
	if len(v.config.Servers) == 0 {
		res.rcode = dns.RcodeRefused
		if len(seen) > 1 {
			res.rcode = dns.RcodeServerFailure
		}
		res.explain(codeServers, seen, plainName(name)+" is in no private zone, and there is no server to ask")
		return "", nil
	}
	e, cached, err := v.lookup(ctx, client, q, name)
	if err != nil {
		return "", err
	}
	now, first := time.Now(), written
	for _, rr := range e.answer {
		owner := rr.Header().Name
		if dns.CanonicalName(owner) == name {
			owner = first // as the client wrote it
		}
		res.answer = append(res.answer, at(rr, owner, e.age(now)))
	}
	res.ad = e.ad && len(seen) == 1
	if e.next != "" {
		return e.next, nil
	}
	res.rcode, res.soa = e.rcode, nil
	for _, rr := range e.soa {
		res.soa = append(res.soa, at(rr, rr.Header().Name, e.age(now)))
	}
	if e.none {
		text := e.asked
		if cached {
			text += " (" + now.Sub(e.made).Round(time.Second).String() + " ago)"
		}
		res.explain(codeServers, seen, text)
	}
	return "", nil
}

// lookup gives the servers' answer about a name: one that is kept, or a new one. Equal
// questions at one time are asked once.
func (v *view) lookup(ctx context.Context, client netip.Addr, q *dns.Msg, name string) (e *kept, cached bool, err error) {
	o := q.IsEdns0()
	k := key{name: name, kind: q.Question[0].Qtype, do: o != nil && o.Do(), cd: q.CheckingDisabled}
	if e := v.cache.get(k, time.Now()); e != nil {
		return e, true, nil
	}
	if err := v.waiting.enter(client); err != nil {
		return nil, false, err
	}
	defer v.waiting.leave(client)
	for {
		e, leads := v.flights.join(k)
		if leads {
			got, err := v.askServers(ctx, k, q)
			v.flights.end(k, e, got)
			return got, false, err
		}
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-e.done:
			if e.got != nil {
				return e.got, false, nil
			}
		}
	}
}

// flights are the questions that servers are asked now. The first who has a question asks;
// the others wait for its answer, and ask again if the first went away.
type flights struct {
	mu   sync.Mutex
	open map[key]*flight
}

type flight struct {
	done chan struct{}
	got  *kept // set before done is closed; nil if the first went away
}

func (f *flights) join(k key) (fl *flight, leads bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.open[k]; fl != nil {
		return fl, false
	}
	if f.open == nil {
		f.open = map[key]*flight{}
	}
	fl = &flight{done: make(chan struct{})}
	f.open[k] = fl
	return fl, true
}

func (f *flights) end(k key, fl *flight, got *kept) {
	f.mu.Lock()
	delete(f.open, k)
	f.mu.Unlock()
	fl.got = got
	close(fl.done)
}

// askServers fails only if ctx ended. That no server answered is an answer, too, kept for
// a moment so that a client which asks again at once does not wait again.
func (v *view) askServers(ctx context.Context, k key, q *dns.Msg) (*kept, error) {
	if e := v.cache.get(k, time.Now()); e != nil {
		return e, nil // somebody was faster
	}
	m := upstream.Question(dns.Question{Name: k.name, Qtype: k.kind, Qclass: dns.ClassINET}, q)
	got, outcomes := v.client.Ask(ctx, m)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	now := time.Now()
	if got == nil {
		e := &kept{rcode: dns.RcodeServerFailure, none: true, asked: outcomes.String(), made: now, expires: now.Add(keepFailure)}
		v.cache.put(k, e)
		return e, nil
	}
	e := v.read(k, got)
	e.asked = outcomes.String()
	e.keep(now)
	v.cache.put(k, e)
	return e, nil
}

// read takes from a server's reply the aliases from the question's name on, as far as no
// private zone takes over, and the records at their end. Nothing else of it is believed.
func (v *view) read(k key, got *dns.Msg) *kept {
	e := &kept{rcode: got.Rcode, ad: got.AuthenticatedData}
	name := k.name
	for range maxAliases {
		here, alias := ownedBy(got.Answer, name, k.kind)
		e.answer = append(e.answer, here...)
		if alias == "" {
			break
		}
		name = dns.CanonicalName(alias)
		if v.zones.find(name) != nil {
			e.rcode, e.next = dns.RcodeSuccess, alias
			return e
		}
	}
	ended := len(e.answer) > 0 && name == k.name || hasType(e.answer, k.kind)
	if !ended {
		e.soa = soaFor(got.Ns, name)
	}
	if name != k.name && !ended && len(e.soa) == 0 && got.Rcode == dns.RcodeSuccess && !got.RecursionAvailable {
		e.next = name // the server leaves the rest to us
	}
	e.none = !ended && e.next == ""
	return e
}

// ownedBy gives a name's records of a type with their signatures, or its alias.
func ownedBy(all []dns.RR, name string, kind uint16) (here []dns.RR, alias string) {
	for _, rr := range all {
		h := rr.Header()
		if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != name {
			continue
		}
		covered := h.Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			covered = sig.TypeCovered
		}
		switch {
		case covered == kind, kind == dns.TypeANY && h.Rrtype != dns.TypeOPT, covered == dns.TypeCNAME:
			here = append(here, rr)
		}
		if c, ok := rr.(*dns.CNAME); ok && kind != dns.TypeCNAME && kind != dns.TypeANY {
			alias = c.Target
		}
	}
	return here, alias
}

func hasType(all []dns.RR, kind uint16) bool {
	return slices.ContainsFunc(all, func(rr dns.RR) bool { return rr.Header().Rrtype == kind })
}

// soaFor gives the SOA of a zone that a name is in.
func soaFor(ns []dns.RR, name string) []dns.RR {
	for _, rr := range ns {
		if soa, ok := rr.(*dns.SOA); ok && dns.IsSubDomain(dns.CanonicalName(soa.Hdr.Name), name) {
			return []dns.RR{soa}
		}
	}
	return nil
}

func plainName(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

func typeName(kind uint16) string {
	if s, ok := dns.TypeToString[kind]; ok {
		return s
	}
	return fmt.Sprintf("TYPE%d", kind)
}

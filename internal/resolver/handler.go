package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// The codes of the extended errors (RFC 8914, private use) that tell a client who decided
// that a name has no answer; their text tells why.
const (
	codeZone    = upstream.CodeZone
	codeServers = upstream.CodeServers
)

// serve answers one question, or drops it.
func (r *Resolver) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	reply, res := r.answer(ctx, clientOf(w.RemoteAddr()), q, udp)
	if reply == nil {
		return
	}
	size := dns.MaxMsgSize
	if udp {
		size = udpSize(q)
	}
	reply.Truncate(size)
	addWhy(reply, res, size)
	// A client that went away is no trouble of the resolver's.
	_ = w.WriteMsg(reply)
}

// udpSize is how large an answer the client can take.
func udpSize(q *dns.Msg) int {
	if o := q.IsEdns0(); o != nil {
		return min(max(int(o.UDPSize()), dns.MinMsgSize), upstream.MaxUDP)
	}
	return dns.MinMsgSize
}

// answer gives the reply, or nil for a question over UDP that there is no room for.
func (r *Resolver) answer(ctx context.Context, client netip.Addr, q *dns.Msg, udp bool) (*dns.Msg, result) {
	v := r.view.Load()
	reply := new(dns.Msg)
	reply.SetReply(q)
	reply.Compress = true
	reply.RecursionAvailable = len(v.config.Servers) > 0
	if o := q.IsEdns0(); o != nil {
		reply.SetEdns0(upstream.MaxUDP, o.Do())
	}
	if code, ok := refused(q); ok {
		reply.Rcode = code
		return reply, result{}
	}
	res, err := v.resolve(ctx, client, q)
	if err != nil {
		if udp && (errors.Is(err, errBusy) || errors.Is(err, errClientBusy)) {
			return nil, res
		}
		reply.Rcode = dns.RcodeServerFailure
		return reply, result{code: codeServers, why: err.Error()}
	}
	reply.Rcode, reply.Authoritative, reply.AuthenticatedData = res.rcode, res.authoritative, res.ad
	reply.Answer, reply.Ns = res.answer, res.soa
	return reply, res
}

// explain notes why a name has no answer; names are those that led to it.
func (res *result) explain(code uint16, names []string, text string) {
	if len(names) > 1 {
		plain := make([]string, len(names))
		for i, n := range names {
			plain[i] = plainName(n)
		}
		text = strings.Join(plain, " -> ") + ": " + text
	}
	res.code, res.why = code, text
}

// addWhy tells a client that knows EDNS0 why there is no answer, where it fits.
func addWhy(reply *dns.Msg, res result, size int) {
	o := reply.IsEdns0()
	if res.code == 0 || o == nil {
		return
	}
	text := upstream.Printable(res.why)
	if room := size - reply.Len() - 6; room < len(text) {
		return
	}
	o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: res.code, ExtraText: text})
}

// refused gives the code for what is not answered, whatever the name.
func refused(q *dns.Msg) (int, bool) {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented, true
	case len(q.Question) != 1:
		return dns.RcodeFormatError, true
	}
	if o := q.IsEdns0(); o != nil && o.Version() != 0 {
		return dns.RcodeBadVers, true
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY {
		return dns.RcodeRefused, true
	}
	switch question.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		return dns.RcodeRefused, true
	}
	return 0, false
}

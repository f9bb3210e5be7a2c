package resolver

import (
	"context"
	"net"

	"github.com/miekg/dns"
)

// maxUDP is the largest answer over UDP, which no link fragments; more goes over TCP.
const maxUDP = 1232

// serve answers one question, or drops it.
func (r *Resolver) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	reply := r.answer(ctx, q, udp)
	if reply == nil {
		return
	}
	if udp {
		reply.Truncate(udpSize(q))
	} else {
		reply.Truncate(dns.MaxMsgSize)
	}
	// A client that went away is no trouble of the resolver's.
	_ = w.WriteMsg(reply)
}

// udpSize is how large an answer the client can take.
func udpSize(q *dns.Msg) int {
	if o := q.IsEdns0(); o != nil {
		return min(max(int(o.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	return dns.MinMsgSize
}

// answer gives the reply, or nil for a question over UDP that there is no room for.
func (r *Resolver) answer(ctx context.Context, q *dns.Msg, udp bool) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(q)
	reply.Compress = true
	reply.RecursionAvailable = len(r.upstream.addresses) > 0
	if o := q.IsEdns0(); o != nil {
		reply.SetEdns0(maxUDP, o.Do())
	}
	if code, ok := refused(q); ok {
		reply.Rcode = code
		return reply
	}
	question := q.Question[0]
	if z := r.zones.Load().find(dns.CanonicalName(question.Name)); z != nil {
		z.answer(reply, question)
		return reply
	}
	if len(r.upstream.addresses) == 0 {
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	return r.forward(ctx, q, reply, udp)
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

// forward asks the upstreams, if not too many questions wait for them already.
func (r *Resolver) forward(ctx context.Context, q, reply *dns.Msg, udp bool) *dns.Msg {
	select {
	case r.inFlight <- struct{}{}:
		defer func() { <-r.inFlight }()
	default:
		if udp {
			return nil
		}
		reply.Rcode = dns.RcodeServerFailure
		return reply
	}
	got, err := r.upstream.ask(ctx, q)
	if err != nil {
		reply.Rcode = dns.RcodeServerFailure
		return reply
	}
	reply.Rcode, reply.AuthenticatedData = got.Rcode, got.AuthenticatedData
	reply.Answer, reply.Ns = got.Answer, got.Ns
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // the reply has its own
			reply.Extra = append(reply.Extra, rr)
		}
	}
	return reply
}

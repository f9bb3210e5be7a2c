package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// upstream asks other DNS servers.
type upstream struct {
	addresses []string
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	timeout   time.Duration
	log       *slog.Logger
}

// ask tries one server after the other, until one has an answer. "No such name" is one;
// "server failure" and "refused" are not.
func (u upstream) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	var failures []error
	for _, address := range u.addresses {
		got, err := u.askOne(ctx, address, u.question(q))
		if err == nil {
			return got, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	err := errors.Join(failures...)
	u.log.Debug("no upstream answered", "name", q.Question[0].Name, "err", err)
	return nil, err
}

// question makes a message of the resolver's own, with an id of its own.
func (u upstream) question(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = true, q.CheckingDisabled, q.AuthenticatedData
	m.Question = []dns.Question{q.Question[0]}
	o := q.IsEdns0()
	m.SetEdns0(maxUDP, o != nil && o.Do())
	return m
}

// askOne asks one server within the time-out: over UDP, then over TCP if the answer did
// not fit.
func (u upstream) askOne(ctx context.Context, address string, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	got, err := u.exchange(ctx, "udp", address, m)
	if err == nil && got.Truncated {
		got, err = u.exchange(ctx, "tcp", address, m)
	}
	if err != nil {
		return nil, err
	}
	if got.Rcode != dns.RcodeSuccess && got.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("answered %s", dns.RcodeToString[got.Rcode])
	}
	return got, nil
}

func (u upstream) exchange(ctx context.Context, network, address string, m *dns.Msg) (*dns.Msg, error) {
	c, err := u.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	// Ends the read below at the time-out and when the resolver stops.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		got, err := conn.ReadMsg()
		if err != nil {
			return nil, err
		}
		if answers(got, m) {
			return got, nil
		}
	}
}

// answers reports whether a message is the reply to a question, not a late one to another.
func answers(got, m *dns.Msg) bool {
	if !got.Response || got.Id != m.Id || len(got.Question) != 1 {
		return false
	}
	a, b := got.Question[0], m.Question[0]
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

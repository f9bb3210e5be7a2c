package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

var (
	// errSilent is the cause of a context whose server took too long, errLimit that of one
	// in which all servers together did.
	errSilent = errors.New("no answer")
	errLimit  = errors.New("the time for all servers is up")
)

// failure is why a server gave no answer.
type failure struct {
	result Result
	what   string
}

func (f *failure) Error() string { return f.what }

func resultOf(err error) Result {
	var f *failure
	if errors.As(err, &f) {
		return f.result
	}
	return Failed
}

// udpWasSilent is the network of an answer that came over TCP alone.
const udpWasSilent = "tcp, udp was silent"

type reply struct {
	network string
	msg     *dns.Msg
	err     error
}

// exchange asks one server within the time-out: over UDP; over TCP as well if the answer
// did not fit, UDP is refused, or half of the time is over.
func (c *Client) exchange(ctx context.Context, s Server, tcpOnly bool, m *dns.Msg) (*dns.Msg, string, error) {
	began := time.Now()
	one, cancel := context.WithTimeoutCause(ctx, c.opts.Timeout, errSilent)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	replies := make(chan reply, 3)
	start := func(network string) {
		work.Go(func() {
			got, err := c.over(one, network, s, m)
			replies <- reply{network, got, err}
		})
	}
	tcp, pending := tcpOnly || s.TCPOnly, 1
	var half <-chan time.Time
	if tcp {
		start("tcp")
	} else {
		start("udp")
		half = time.After(c.opts.Timeout / 2)
	}
	quiet, long := false, false // UDP said nothing so far; the answer did not fit
	var first error
	for pending > 0 {
		select {
		case <-half:
			half, quiet = nil, true
			pending++ // the packet may be lost
			start("udp")
		case r := <-replies:
			pending--
			if r.err == nil && !(r.network == "udp" && r.msg.Truncated) {
				return r.msg, way(r.network, quiet), nil
			}
			if first == nil {
				first = r.err
			}
			if r.network == "udp" {
				half, long = nil, long || r.err == nil
			}
		}
		if half == nil && !tcp {
			tcp = true
			pending++
			start("tcp")
		}
	}
	err := c.describe(ctx, one, first, time.Since(began))
	if long {
		err.what = "an answer too long for UDP, and over TCP: " + err.what
	}
	return nil, "", err
}

func way(network string, quiet bool) string {
	if network == "tcp" && quiet {
		return udpWasSilent
	}
	return network
}

// describe words why there was no answer.
func (c *Client) describe(ctx, one context.Context, err error, took time.Duration) *failure {
	var f *failure
	switch {
	case ctx.Err() != nil:
		return &failure{Cut, "no answer before the question ended, after " + short(took)}
	case errors.As(err, &f):
		return f
	case errors.Is(context.Cause(one), errSilent):
		return &failure{Silent, "no answer in " + short(c.opts.Timeout)}
	}
	return networkFailure(err)
}

func networkFailure(err error) *failure {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return &failure{Failed, "it closed the connection"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &failure{Unreachable, "nothing listens there (connection refused)"}
	case errors.Is(err, syscall.ENETUNREACH):
		return &failure{Unreachable, "no route to it"}
	case errors.Is(err, syscall.EHOSTUNREACH):
		return &failure{Unreachable, "it is unreachable"}
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return &failure{Unreachable, "a rule forbids packets to it"}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return &failure{Silent, "no answer"}
	}
	return &failure{Unreachable, reason(err)}
}

// reason leaves out the addresses that the outcome names already.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return strings.ToValidUTF8(err.Error(), "?")
}

// over asks once over one network; a server that does not know EDNS0 is asked again
// without it.
func (c *Client) over(ctx context.Context, network string, s Server, m *dns.Msg) (*dns.Msg, error) {
	conn, err := c.opts.Dial(ctx, network, s)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	// Ends a read or write below at the time-out and when the question is given up.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	dc := &dns.Conn{Conn: conn, UDPSize: maxReply}
	got, err := roundTrip(dc, network == "udp", m)
	if err == nil && got.Rcode == dns.RcodeFormatError && m.IsEdns0() != nil {
		plain := m.Copy()
		plain.Extra = nil
		got, err = roundTrip(dc, network == "udp", plain)
	}
	return got, err
}

const (
	maxReply   = 4096 // bytes, over UDP: more than was asked for
	maxStrange = 64   // replies to other questions, or malformed, before a server is given up
)

// roundTrip sends a question under an id of its own and reads until its reply comes. What
// comes over UDP and is not the reply may be anybody's: it is passed over.
func roundTrip(c *dns.Conn, udp bool, m *dns.Msg) (*dns.Msg, error) {
	m = m.Copy()
	m.Id = dns.Id()
	if err := c.WriteMsg(m); err != nil {
		return nil, err
	}
	for range maxStrange {
		got, err := c.ReadMsg()
		var ne net.Error
		switch {
		case err != nil && (errors.As(err, &ne) || !udp):
			return nil, malformed(err, ne != nil)
		case err == nil && isReply(got, m):
			return got, nil
		}
	}
	return nil, &failure{Failed, "answers to other questions"}
}

func malformed(err error, network bool) error {
	var parse *dns.Error
	if !network && errors.As(err, &parse) {
		return &failure{Failed, "an answer that is not DNS"}
	}
	return err
}

// isReply reports whether a message is the reply to a question. An error may come without
// the question.
func isReply(got, m *dns.Msg) bool {
	if !got.Response || got.Id != m.Id || got.Opcode != m.Opcode {
		return false
	}
	if len(got.Question) == 0 {
		return got.Rcode == dns.RcodeFormatError || got.Rcode == dns.RcodeNotImplemented
	}
	a, b := got.Question[0], m.Question[0]
	return len(got.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

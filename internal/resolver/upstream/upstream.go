package upstream

import (
	"cmp"
	"context"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Server is one to ask.
type Server struct {
	Address string // host:port
	// TCPOnly says that UDP does not reach the server.
	TCPOnly bool
	// Via tells Dial which way to take; this package only passes it on.
	Via any
}

// Options configure a Client.
type Options struct {
	// Servers are asked in this order. Required.
	Servers []Server
	// Dial connects to a server, over "udp" and "tcp". Default: a net.Dialer.
	Dial func(ctx context.Context, network string, s Server) (net.Conn, error)
	// Timeout bounds the wait for one server. Default 2 s.
	Timeout time.Duration
	// Limit bounds the wait for all of them. Default 8 s.
	Limit time.Duration
	// Together says that the servers are one under several addresses: each is asked a moment
	// after the one before, and the first reply counts, whatever it says.
	Together bool
	// DownFor is how long a server that did not answer is asked only after all others.
	// Default 30 s.
	DownFor time.Duration
}

// Client asks servers. Its methods may be called from several goroutines.
type Client struct {
	opts   Options
	states []*state
}

// New makes a client.
func New(o Options) *Client {
	o.Timeout = cmp.Or(o.Timeout, 2*time.Second)
	o.Limit = cmp.Or(o.Limit, 8*time.Second)
	o.DownFor = cmp.Or(o.DownFor, 30*time.Second)
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, network string, s Server) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.Address)
		}
	}
	c := &Client{opts: o}
	for range o.Servers {
		c.states = append(c.states, &state{})
	}
	return c
}

// Question makes a message, with EDNS0, to ask for what q asks for. like, if not nil, is a
// client's message whose wishes about DNSSEC are passed on.
func Question(q dns.Question, like *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.RecursionDesired, m.Question = true, []dns.Question{q}
	do := false
	if like != nil {
		m.CheckingDisabled, m.AuthenticatedData = like.CheckingDisabled, like.AuthenticatedData
		o := like.IsEdns0()
		do = o != nil && o.Do()
	}
	m.SetEdns0(MaxUDP, do)
	return m
}

// Codes of extended DNS errors (RFC 8914, for private use) by which a virtual network's
// resolver tells a member who decided that a name has no answer.
const (
	CodeZone    uint16 = 49400 // a private zone
	CodeServers uint16 = 49401 // the servers that the resolver asks
)

// MaxUDP is the largest answer over UDP, which no link fragments; more goes over TCP.
const MaxUDP = 1232

// Ask asks one server after the other until one has an answer. That there is no such name
// is one; "server failure" and "refused" are not. The message is nil if there was none.
func (c *Client) Ask(ctx context.Context, m *dns.Msg) (*dns.Msg, Outcomes) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.Limit, errLimit)
	defer cancel()
	if c.opts.Together {
		return c.askTogether(ctx, m)
	}
	outcomes := make(Outcomes, len(c.states))
	for _, i := range c.order(time.Now(), outcomes) {
		if ctx.Err() != nil {
			outcomes[i].set(NotAsked, "not asked, the time was up")
			continue
		}
		if got := c.askOne(ctx, i, m, &outcomes[i]); got != nil {
			return got, told(outcomes)
		}
	}
	return nil, told(outcomes)
}

// stagger is how long the next of several addresses of one server waits for its turn.
const stagger = 500 * time.Millisecond

func (c *Client) askTogether(ctx context.Context, m *dns.Msg) (*dns.Msg, Outcomes) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	type turn struct {
		got     *dns.Msg
		outcome Outcome
	}
	turns, failed := make(chan turn, len(c.states)), make(chan struct{}, len(c.states))
	for i := range c.states {
		work.Go(func() {
			t := turn{outcome: Outcome{Server: ServerName(c.opts.Servers[i].Address)}}
			defer func() { turns <- t }()
			for range i { // sooner, if one before has failed
				select {
				case <-time.After(stagger):
				case <-failed:
				case <-ctx.Done():
					t.outcome.set(NotAsked, "not asked, the time was up")
					return
				}
			}
			if t.got = c.askOne(ctx, i, m, &t.outcome); t.got == nil {
				for range c.states {
					select {
					case failed <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	var outcomes Outcomes
	for range c.states {
		t := <-turns
		if t.got != nil || t.outcome.Result == Failed {
			return t.got, Outcomes{t.outcome}
		}
		outcomes = append(outcomes, t.outcome)
	}
	return nil, outcomes
}

func (o *Outcome) set(r Result, what string) { o.Result, o.What = r, what }

// told leaves out the servers that had no turn.
func told(all Outcomes) Outcomes {
	out := make(Outcomes, 0, len(all))
	for _, o := range all {
		if o.What != "" {
			out = append(out, o)
		}
	}
	return out
}

// order lists the servers as they are to be asked: those that are down come last. Their
// outcomes say so until they are asked after all.
func (c *Client) order(now time.Time, outcomes Outcomes) []int {
	var up, down []int
	for i, s := range c.states {
		outcomes[i].Server = ServerName(c.opts.Servers[i].Address)
		if since, why, ok := s.claim(now, c.opts.Timeout); ok {
			up = append(up, i)
		} else {
			outcomes[i].set(NotAsked, "not asked again, "+short(now.Sub(since))+" ago: "+why)
			down = append(down, i)
		}
	}
	return append(up, down...)
}

// askOne gives a server's answer, or nil, and notes what it did.
func (c *Client) askOne(ctx context.Context, i int, m *dns.Msg, o *Outcome) *dns.Msg {
	s := c.states[i]
	got, network, err := c.exchange(ctx, c.opts.Servers[i], s.overTCP(), m)
	switch {
	case err == nil:
		s.up(network)
		err = verdict(got)
	case resultOf(err) == Silent, resultOf(err) == Unreachable:
		s.down(time.Now(), c.opts.DownFor, err.Error())
	}
	if got != nil {
		o.Code, o.Why = extended(got)
	}
	if err != nil {
		o.set(resultOf(err), err.Error())
		return nil
	}
	o.set(Answered, answered(got))
	return got
}

// extended gives the extended error of a reply (RFC 8914), made fit to be shown.
func extended(m *dns.Msg) (code uint16, text string) {
	opt := m.IsEdns0()
	if opt == nil {
		return 0, ""
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return e.InfoCode, Printable(e.ExtraText)
		}
	}
	return 0, ""
}

// verdict gives the reason why a reply is no answer.
func verdict(m *dns.Msg) error {
	switch {
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return &failure{Failed, rcodeName(m.Rcode)}
	case referral(m):
		return &failure{Failed, "a referral: it does not resolve names for others"}
	}
	return nil
}

// referral says that a server only knows who else may know.
func referral(m *dns.Msg) bool {
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) > 0 || m.Authoritative || m.RecursionAvailable {
		return false
	}
	ns := false
	for _, rr := range m.Ns {
		switch rr.Header().Rrtype {
		case dns.TypeSOA:
			return false
		case dns.TypeNS:
			ns = true
		}
	}
	return ns
}

// state is what is remembered of a server.
type state struct {
	mu       sync.Mutex
	failed   time.Time // when it last did not answer; zero while it is up
	why      string    // then
	until    time.Time
	tcpUntil time.Time // UDP was silent and TCP was not
}

// tcpFor is how long a server is asked over TCP alone after UDP did not get through.
const tcpFor = 5 * time.Minute

// claim reports whether the server is to be asked in its turn, else since when it is down
// and why.
// When its time is over, one question tries it while the others go on without it.
func (s *state) claim(now time.Time, timeout time.Duration) (since time.Time, why string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed.IsZero() {
		return time.Time{}, "", true
	}
	if now.Before(s.until) {
		return s.failed, s.why, false
	}
	s.until = now.Add(timeout)
	return time.Time{}, "", true
}

func (s *state) up(network string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed, s.until = time.Time{}, time.Time{}
	if network == udpWasSilent {
		s.tcpUntil = time.Now().Add(tcpFor)
	}
}

func (s *state) down(now time.Time, d time.Duration, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed, s.until, s.why = now, now.Add(d), why
}

func (s *state) overTCP() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.tcpUntil)
}

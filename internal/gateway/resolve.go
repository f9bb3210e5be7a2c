package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// vnetTimeout is how long the VNet's resolver may take: longer than it waits for all of
// its servers together.
const vnetTimeout = 9 * time.Second

// maxAliases bounds how many names are followed that servers leave to their clients.
const maxAliases = 8

// Resolver asks DNS servers for addresses. It needs no file of the container: neither
// resolv.conf nor hosts.
type Resolver struct {
	servers []string
	client  *upstream.Client
	own     bool // the servers are a data source's, not the VNet's
}

// NewResolver makes a Resolver that asks a VNet's resolver, which has all these addresses,
// each host:port.
func NewResolver(servers []string) *Resolver {
	return newResolver(servers, upstream.Options{Together: true, Timeout: vnetTimeout, Limit: vnetTimeout + time.Second/2})
}

// NewSourceResolver makes a Resolver of a data source's own servers, each host:port, asked
// in order.
func NewSourceResolver(servers []string) *Resolver {
	r := newResolver(servers, upstream.Options{})
	r.own = true
	return r
}

func newResolver(servers []string, o upstream.Options) *Resolver {
	for _, s := range servers {
		o.Servers = append(o.Servers, upstream.Server{Address: s})
	}
	return &Resolver{servers: servers, client: upstream.New(o)}
}

// Resolve returns the addresses of host; an address stands for itself. Members have IPv4
// only.
func (r *Resolver) Resolve(ctx context.Context, host string) ([]string, error) {
	if ip := net.ParseIP(host); ip != nil {
		return []string{ip.String()}, nil
	}
	if len(r.servers) == 0 {
		return nil, errs.New(errs.Unavailable, "%s can't be resolved: the gateway was given no DNS server", host).WithStep(errs.StepResolve)
	}
	name := dns.CanonicalName(host)
	if _, ok := dns.IsDomainName(name); !ok || host == "" || strings.ContainsAny(host, " \t\r\n") {
		return nil, errs.New(errs.Invalid, "%q is neither an address nor a DNS name", host).WithStep(errs.StepResolve)
	}
	for range maxAliases {
		got, outcomes := r.client.Ask(ctx, upstream.Question(dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassINET}, nil))
		if got == nil {
			return nil, r.unanswered(ctx, host, outcomes)
		}
		addrs, end := addressesOf(got, name)
		if len(addrs) > 0 {
			return addrs, nil
		}
		if end == name || got.RecursionAvailable || got.Rcode != dns.RcodeSuccess {
			return nil, r.missing(host, got, outcomes)
		}
		name = end // the server does not know where its alias leads
	}
	return nil, errs.New(errs.Unavailable, "%s can't be resolved: more than %d aliases follow each other", host, maxAliases).WithStep(errs.StepResolve)
}

// addressesOf follows a name's aliases within an answer to their end, and gives the
// addresses there.
func addressesOf(m *dns.Msg, name string) (addrs []string, end string) {
	for range len(m.Answer) + 1 {
		alias := ""
		for _, rr := range m.Answer {
			if dns.CanonicalName(rr.Header().Name) != name {
				continue
			}
			switch rr := rr.(type) {
			case *dns.A:
				addrs = append(addrs, rr.A.String())
			case *dns.CNAME:
				alias = dns.CanonicalName(rr.Target)
			}
		}
		if len(addrs) > 0 || alias == "" {
			return addrs, name
		}
		name = alias
	}
	return nil, name
}

// reason is what the VNet's resolver tells of why there is no answer, else what the
// servers themselves did.
func (r *Resolver) reason(outcomes upstream.Outcomes) (code uint16, text string) {
	for _, o := range outcomes {
		if !r.own && o.Why != "" && (o.Code == upstream.CodeZone || o.Code == upstream.CodeServers) {
			return o.Code, fmt.Sprintf("%s (asked the network's resolver %s)", o.Why, o.Server)
		}
	}
	return 0, "asked " + outcomes.String()
}

// missing is a name that has no address.
func (r *Resolver) missing(host string, got *dns.Msg, outcomes upstream.Outcomes) error {
	what := "has no IPv4 address"
	if got.Rcode == dns.RcodeNameError {
		what = "does not exist"
	}
	code, reason := r.reason(outcomes)
	e := errs.New(errs.Unavailable, "%s %s: %s", host, what, reason).WithStep(errs.StepResolve)
	switch {
	case r.own:
		return e.WithHint("check the name, and the data source's dnsServers")
	case code == upstream.CodeZone:
		return e.WithHint("check the name; else add a record to that PrivateDNSZone, or a PrivateEndpoint with this dnsName")
	case code == upstream.CodeServers:
		return e.WithHint("check the name; it lies in no private DNS zone that is linked to the virtual network, so the servers in the network's dns.servers decide")
	}
	return e.WithHint("check the name, and that a private DNS zone linked to the virtual network has it")
}

// unanswered is a name about which no server said anything.
func (r *Resolver) unanswered(ctx context.Context, host string, outcomes upstream.Outcomes) error {
	code, reason := r.reason(outcomes)
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
		return errs.New(errs.ClassOf(ctx.Err()), "%s was not resolved in time: %s", host, reason).WithStep(errs.StepResolve).
			WithHint("%s", r.remedy(code, outcomes))
	}
	if ctx.Err() != nil {
		return errs.New(errs.ClassOf(ctx.Err()), "%s was not resolved: %s", host, reason).WithStep(errs.StepResolve)
	}
	return errs.New(errs.Unavailable, "%s can't be resolved: %s", host, reason).WithStep(errs.StepResolve).
		WithHint("%s", r.remedy(code, outcomes))
}

func (r *Resolver) remedy(code uint16, outcomes upstream.Outcomes) string {
	switch {
	case r.own && outcomes.Only(upstream.Silent, upstream.Cut, upstream.NotAsked, upstream.Unreachable):
		return "check that the data source's dnsServers run, and that the subnet's rules and routes let the gateway reach them on UDP and TCP port 53"
	case r.own:
		return "check that the data source's dnsServers answer for this name"
	case code == upstream.CodeZone:
		return "correct the aliases in that PrivateDNSZone"
	case code == upstream.CodeServers:
		return "check that the servers in the virtual network's dns.servers run and are in its reach, and that they resolve names for others"
	}
	return "check that the network security group lets the gateway reach its DNS server"
}

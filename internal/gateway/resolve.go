package gateway

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// Resolver asks the VNet's resolvers for addresses. It needs no file of the
// container: neither resolv.conf nor hosts.
type Resolver struct {
	servers []string
	tries   []time.Duration
}

// NewResolver makes a Resolver of servers, each host:port, asked in order.
func NewResolver(servers []string) *Resolver {
	// A lost packet costs one second, not the five of the standard library.
	return &Resolver{servers: servers, tries: []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}}
}

// Resolve returns the addresses of host; an address stands for itself.
func (r *Resolver) Resolve(ctx context.Context, host string) ([]string, error) {
	if ip := net.ParseIP(host); ip != nil {
		return []string{ip.String()}, nil
	}
	if len(r.servers) == 0 {
		return nil, errs.New(errs.Unavailable, "%s can't be resolved: the gateway was given no DNS server", host).WithStep(errs.StepResolve)
	}
	var err error
	for _, bound := range r.tries {
		for _, server := range r.servers {
			var addrs []string
			if addrs, err = lookup(ctx, server, host, bound); err == nil {
				return addrs, nil
			}
			if ctx.Err() != nil || notFound(err) {
				return nil, r.explain(ctx, host, err)
			}
		}
		if !timedOut(err) {
			break
		}
	}
	return nil, r.explain(ctx, host, err)
}

// lookup asks one server once. Members have IPv4 only. The final dot keeps search
// lists out of it.
func lookup(ctx context.Context, server, host string, bound time.Duration) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var d net.Dialer
	res := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return d.DialContext(ctx, network, server)
	}}
	ips, err := res.LookupNetIP(ctx, "ip4", strings.TrimSuffix(host, ".")+".")
	if err != nil {
		return nil, err
	}
	addrs := make([]string, len(ips))
	for i, ip := range ips {
		addrs[i] = ip.Unmap().String()
	}
	return addrs, nil
}

func notFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

func timedOut(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsTimeout
}

// explain tells a name that does not exist from servers that do not answer.
func (r *Resolver) explain(ctx context.Context, host string, err error) error {
	asked := strings.Join(r.servers, ", ")
	switch {
	case ctx.Err() != nil:
		return errs.New(errs.ClassOf(ctx.Err()), "%s was not resolved in time: asked %s", host, asked).WithStep(errs.StepResolve)
	case notFound(err):
		return errs.New(errs.Unavailable, "%s does not exist: asked %s", host, asked).WithStep(errs.StepResolve).
			WithHint("check the name, and that a private DNS zone linked to the virtual network has it")
	case timedOut(err):
		return errs.New(errs.Unavailable, "%s can't be resolved: no answer from %s", host, asked).WithStep(errs.StepResolve).
			WithHint("check that the network security group lets the gateway reach its DNS server")
	case errors.Is(err, syscall.ECONNREFUSED), strings.Contains(err.Error(), "connection refused"):
		return errs.New(errs.Unavailable, "%s can't be resolved: nothing listens at %s", host, asked).WithStep(errs.StepResolve)
	}
	return errs.New(errs.Unavailable, "%s can't be resolved: %s refused to answer or failed", host, asked).WithStep(errs.StepResolve)
}

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// The time that a probe takes at the most: by default, and if the request asks for more.
const (
	defaultProbeLimit = 5 * time.Second
	maxProbeLimit     = time.Minute
)

// probe opens one TCP connection and closes it. What it met is the answer, not an error.
func (s *Server) probe(ctx context.Context, req memberapi.ProbeRequest) (core.Probe, error) {
	if req.Host == "" || req.Port == 0 {
		return core.Probe{}, errs.New(errs.Invalid, "a probe needs a host and a port")
	}
	limit := time.Duration(req.TimeoutMS) * time.Millisecond
	if limit <= 0 {
		limit = defaultProbeLimit
	}
	limit = min(limit, maxProbeLimit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	start := time.Now()
	addrs, err := s.opts.Resolve(ctx, req.Host)
	resp := core.Probe{Resolve: time.Since(start)}
	if err != nil {
		resp.Error = err.Error()
		return resp, nil
	}
	start = time.Now()
	err = errors.New("the name has no address")
	for _, addr := range addrs {
		resp.Address = addr
		if err = dialOnce(ctx, addr, req.Port); err == nil {
			break
		}
	}
	resp.Connect = time.Since(start)
	resp.Connected = err == nil
	if err != nil {
		resp.Error = describeDial(resp.Address, req.Port, limit, err)
	}
	return resp, nil
}

func dialOnce(ctx context.Context, addr string, port uint16) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	return conn.Close()
}

// describeDial says in plain words why a connection did not come about.
func describeDial(addr string, port uint16, limit time.Duration, err error) string {
	to := net.JoinHostPort(addr, strconv.Itoa(int(port)))
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return to + " refused the connection: nothing listens there, or a rule rejects it"
	case errors.Is(err, syscall.ENETUNREACH):
		return "there is no route to " + to
	case errors.Is(err, syscall.EHOSTUNREACH):
		return to + " is unreachable: the host does not answer, or a rule rejects it"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "the gateway may not connect to " + to
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("%s did not answer within %s: a rule drops it, or nothing is there", to, limit)
	}
	return fmt.Sprintf("connect to %s: %v", to, err)
}

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// hostDialer makes a host's connections to its service.
type hostDialer struct {
	keeper  *identity.Keeper
	dial    func(ctx context.Context) (net.Conn, error)
	refused atomic.Bool
}

// connect dials with the present certificate, or with a new one if the service has refused
// that: it may have started anew with another clock, by which the certificate has ended.
func (d *hostDialer) connect(ctx context.Context) (net.Conn, error) {
	if d.refused.Load() {
		if err := d.keeper.Join(ctx); err != nil {
			return nil, err
		}
		d.refused.Store(false)
	}
	raw, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := &hostConn{Conn: tls.Client(raw, d.keeper.TLSConfig(memberapi.ProtoHost)), of: d}
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS with the service: %w", err)
	}
	return conn, nil
}

// hostConn notices a refusal, which comes with the first read.
type hostConn struct {
	*tls.Conn
	of *hostDialer
}

func (c *hostConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if identity.Refused(err) {
		c.of.refused.Store(true)
	}
	return n, err
}

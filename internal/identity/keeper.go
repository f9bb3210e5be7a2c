package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Bounds of the keeper's retries.
const (
	defaultJoinTimeout = 30 * time.Second
	attemptTimeout     = 10 * time.Second
	firstRetry         = 10 * time.Millisecond
	lastRetry          = time.Second
	lastRenewRetry     = 30 * time.Second
)

// KeeperOptions of New.
type KeeperOptions struct {
	Role  string      // Required: memberapi.RoleMember or RoleHost
	Name  string      // Required: the member's ID or the host's name
	Token core.Secret // Required for Join: the token, a one-time token for members
	CAPEM []byte      // Required: the service's CA, which its certificate is verified with
	// Dial makes a plain connection to the service's hosts address. Required.
	Dial        func(ctx context.Context) (net.Conn, error)
	ServiceName string           // Default ServiceName
	JoinTimeout time.Duration    // Default 30 s: how long Join tries
	Logger      *slog.Logger     // Default: none
	Clock       func() time.Time // Default time.Now
}

// Keeper holds a client's identity. Join gets it, Run keeps it fresh, TLSConfig uses
// it; TLSConfig may be called concurrently with everything.
type Keeper struct {
	opts    KeeperOptions
	began   time.Time
	caBegan time.Time // by its certificate
	roots   *x509.CertPool
	expired chan struct{}

	mu      sync.Mutex
	current *credential // nil before Join
}

// credential is one certificate with its key and the TLS sessions made with it: a
// session carries the certificate that it was begun with, so they change together.
type credential struct {
	cert     tls.Certificate
	issued   time.Time
	life     time.Duration // from then on; by the service's clock, which may differ from ours
	notAfter time.Time
	sessions tls.ClientSessionCache
}

// New makes a keeper that holds nothing yet.
func New(opts KeeperOptions) (*Keeper, error) {
	if opts.Role == "" || opts.Name == "" || opts.Dial == nil {
		return nil, errs.New(errs.Internal, "identity.New: Role, Name and Dial are required")
	}
	block, _ := pem.Decode(opts.CAPEM)
	if block == nil {
		return nil, errs.New(errs.Invalid, "the service's CA certificate for %s %s is not PEM", opts.Role, opts.Name)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errs.New(errs.Invalid, "the service's CA certificate for %s %s can't be read: %w", opts.Role, opts.Name, err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if opts.ServiceName == "" {
		opts.ServiceName = ServiceName
	}
	if opts.JoinTimeout == 0 {
		opts.JoinTimeout = defaultJoinTimeout
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	opts.Logger = opts.Logger.With(opts.Role, opts.Name)
	return &Keeper{opts: opts, began: opts.Clock(), caBegan: ca.NotBefore, roots: roots, expired: make(chan struct{})}, nil
}

// now is the time by a clock that nobody sets after the keeper was made.
func (k *Keeper) now() time.Time { return steady(k.began, k.opts.Clock()) }

// verifying is the time at which the service's certificate is verified.
func (k *Keeper) verifying() time.Time { return believable(k.now(), k.opts.Clock(), k.caBegan) }

// believable is the earlier one of two clocks: the wall's, which may have been set ahead since
// the process began, and one that goes on from how the wall's was then, which may have been
// ahead and put right since. Neither was right before the CA began.
func believable(steady, wall, caBegan time.Time) time.Time {
	steady, wall = steady.Round(0), wall.Round(0) // compared as they are shown
	earlier, later := steady, wall
	if wall.Before(steady) {
		earlier, later = wall, steady
	}
	if earlier.Before(caBegan) {
		return later
	}
	return earlier
}

// TLSConfig returns a client configuration with the present identity, for one
// connection or several made now: a later one should ask again, since identities change.
func (k *Keeper) TLSConfig(alpn string) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    k.roots,
		ServerName: k.opts.ServiceName,
		NextProtos: []string{alpn},
		Time:       k.verifying,
		// Full records from the start: results are long, and latency is not bound by record size.
		DynamicRecordSizingDisabled: true,
	}
	if c := k.credential(); c != nil {
		cfg.Certificates = []tls.Certificate{c.cert}
		cfg.ClientSessionCache = c.sessions
	}
	return cfg
}

func (k *Keeper) credential() *credential {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// NotAfter is when the present certificate ends; zero before Join.
func (k *Keeper) NotAfter() time.Time {
	if c := k.credential(); c != nil {
		return c.notAfter
	}
	return time.Time{}
}

// Expired is closed when the identity is lost for good: the service refused to renew
// it, or its last certificate ended before a renewal succeeded.
func (k *Keeper) Expired() <-chan struct{} { return k.expired }

// Join gets a certificate with the token, which is good for one time to members: the first,
// or another one in the place of one that the service refuses. It tries again while the
// service can't be reached or does not know the token yet, since the host tells the
// service about the token at the same time as it starts the member.
func (k *Keeper) Join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.opts.JoinTimeout)
	defer cancel()
	key, csr, err := k.request()
	if err != nil {
		return err
	}
	req := memberapi.JoinRequest{Role: k.opts.Role, Name: k.opts.Name, Token: k.opts.Token.Reveal(), CSR: csr}
	var before error
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := k.fetch(ctx, memberapi.PathJoin, req, key)
		if err == nil {
			return nil
		}
		if before != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = before // the time was over in the middle of this try: what the one before it met says more
		}
		before = err
		if !worthRetry(err) || sleep(ctx, jitter(wait)) != nil {
			return fmt.Errorf("join as %s %s: %w", k.opts.Role, k.opts.Name, err)
		}
	}
}

// worthRetry reports whether time may cure a failed join.
func worthRetry(err error) bool {
	var unknownCA *tls.CertificateVerificationError
	if errors.As(err, &unknownCA) {
		return false
	}
	switch errs.ClassOf(err) {
	case errs.Unavailable, errs.Unauthenticated, errs.Timeout, errs.Exhausted:
		return true
	}
	return false
}

// Refused reports whether an error of a TLS connection is the service's word that it does not
// accept the certificate, which comes as an alert after the handshake.
func Refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate")
}

// Run renews the certificate at two thirds of each life until ctx ends, and then
// returns nil. If the identity is lost it closes Expired and returns why.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		c := k.credential()
		if c == nil {
			return errs.New(errs.Internal, "identity.Keeper.Run before Join")
		}
		due := c.issued.Add(c.life * 2 / 3)
		if sleep(ctx, due.Sub(k.now())) != nil {
			return nil
		}
		if err := k.renew(ctx, c); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			close(k.expired)
			k.opts.Logger.Error("identity lost", "error", err)
			return err
		}
	}
}

// renew tries until it has the next certificate, the present one ends, or the
// service refuses.
func (k *Keeper) renew(ctx context.Context, c *credential) error {
	for wait := firstRetry; ; wait = min(2*wait, lastRenewRetry) {
		err := k.renewOnce(ctx)
		if err == nil {
			k.opts.Logger.Debug("certificate renewed", "notAfter", k.NotAfter())
			return nil
		}
		if class := errs.ClassOf(err); class == errs.Denied {
			return errs.New(errs.Denied, "the service does not renew the identity of %s %s: %w", k.opts.Role, k.opts.Name, err)
		}
		left := c.issued.Add(c.life).Sub(k.now())
		if left <= 0 {
			return errs.New(errs.Unauthenticated, "the certificate of %s %s ended before it could be renewed: %w", k.opts.Role, k.opts.Name, err)
		}
		k.opts.Logger.Warn("certificate not renewed yet", "error", err, "left", left.Round(time.Second))
		// Never sleep past the end: the last try comes just before it.
		if err := sleep(ctx, min(jitter(wait), max(left/2, firstRetry))); err != nil {
			return err
		}
	}
}

func (k *Keeper) renewOnce(ctx context.Context) error {
	key, csr, err := k.request()
	if err != nil {
		return err
	}
	return k.fetch(ctx, memberapi.PathRenew, memberapi.RenewRequest{CSR: csr}, key)
}

// request makes a key and a certificate request for it.
func (k *Keeper) request() (*ecdsa.PrivateKey, []byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, csr, nil
}

// fetch posts a request for a certificate and makes the answer the present identity.
func (k *Keeper) fetch(ctx context.Context, path string, req any, key *ecdsa.PrivateKey) error {
	var resp memberapi.CertResponse
	if err := k.post(ctx, path, req, &resp); err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(resp.Certificate)
	if err != nil {
		return errs.New(errs.Internal, "the service answered with a broken certificate: %w", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return errs.New(errs.Internal, "the service answered with a certificate for another key")
	}
	now := k.now()
	if resp.Lifetime <= 0 { // an older service
		resp.Lifetime = leaf.NotAfter.Sub(now)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = &credential{
		cert:     tls.Certificate{Certificate: [][]byte{resp.Certificate}, PrivateKey: key, Leaf: leaf},
		issued:   now,
		life:     resp.Lifetime,
		notAfter: leaf.NotAfter,
		sessions: tls.NewLRUClientSessionCache(0),
	}
	return nil
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// jitter spreads retries over half to all of d, so that many clients don't come at once.
func jitter(d time.Duration) time.Duration { return d/2 + mathrand.N(d/2+1) }

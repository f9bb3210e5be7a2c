package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Lifetimes of what a CA issues, and how far before its making a CA begins. What it issues
// begins with it: a beginning protects from nothing, and clocks that are behind would refuse it.
const (
	MemberLifetime = time.Hour
	HostLifetime   = 24 * time.Hour

	serverLifetime = 24 * time.Hour
	caLifetime     = 20 * 365 * 24 * time.Hour
	backdate       = 365 * 24 * time.Hour
)

// CAOptions of OpenCA.
type CAOptions struct {
	MemberLifetime time.Duration    // Default MemberLifetime
	HostLifetime   time.Duration    // Default HostLifetime
	Clock          func() time.Time // Default time.Now
}

// CA is the service's certificate authority. Its methods may be called concurrently.
type CA struct {
	opts  CAOptions
	began time.Time // when it was opened
	cert  *x509.Certificate
	pem   []byte
	key   crypto.Signer

	mu      sync.Mutex
	servers map[string]*tls.Certificate // by name, renewed when due
}

// OpenCA loads the certificate authority of a data directory, making one where there
// is none: ca.pem, which everyone may read, and ca.key, which only the owner may.
func OpenCA(dir string, opts CAOptions) (*CA, error) {
	if opts.MemberLifetime == 0 {
		opts.MemberLifetime = MemberLifetime
	}
	if opts.HostLifetime == 0 {
		opts.HostLifetime = HostLifetime
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	key, err := openKey(dir)
	if err != nil {
		return nil, err
	}
	cert, err := openCertificate(dir, key, opts.Clock)
	if err != nil {
		return nil, err
	}
	return &CA{
		opts: opts, began: opts.Clock(), cert: cert, key: key, servers: map[string]*tls.Certificate{},
		pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
	}, nil
}

// CertPEM returns the CA's certificate, which clients verify the service with.
func (c *CA) CertPEM() []byte { return append([]byte(nil), c.pem...) }

// Pool returns the pool that client certificates are verified with.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// Now is the time that certificates are verified at: when the CA was opened, and what has
// gone by since. A clock that is set meanwhile makes no certificate end, nor any begin.
func (c *CA) Now() time.Time { return steady(c.began, c.opts.Clock()) }

// issuing is the time that certificates are made at: by the clock, unless it was set back,
// since what is made must not have ended at the time that it is verified at.
func (c *CA) issuing() time.Time {
	if now, wall := c.Now(), c.opts.Clock(); wall.Before(now.Round(0)) {
		return now
	}
	return c.opts.Clock()
}

// Left is how long a certificate that ends at a time is good for.
func (c *CA) Left(notAfter time.Time) time.Duration { return notAfter.Sub(c.issuing()) }

// steady is the time now by a clock that nobody sets, which was right at an earlier time:
// the monotonic clock goes on where the other jumps.
func steady(began, now time.Time) time.Time { return began.Add(now.Sub(began)) }

// Sign issues a client certificate for subj to the key of a certificate request;
// whatever else the request asks for is ignored. A lifetime of 0 means the default of
// the subject's role.
func (c *CA) Sign(csrDER []byte, subj Subject, lifetime time.Duration) (certDER []byte, notAfter time.Time, err error) {
	if err := subj.check(); err != nil {
		return nil, time.Time{}, errs.New(errs.Invalid, "can't certify %s: %w", subj, err)
	}
	pub, err := requestedKey(csrDER)
	if err != nil {
		return nil, time.Time{}, errs.New(errs.Invalid, "the certificate request of %s: %w", subj, err)
	}
	if lifetime == 0 {
		lifetime = c.lifetime(subj.Role)
	}
	tmpl := c.template(subj.Role+" "+subj.Name, lifetime)
	tmpl.URIs = []*url.URL{subj.uri()}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	certDER, err = x509.CreateCertificate(rand.Reader, tmpl, c.cert, pub, c.key)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("sign a certificate for %s: %w", subj, err)
	}
	return certDER, tmpl.NotAfter, nil
}

func (c *CA) lifetime(role string) time.Duration {
	if role == memberapi.RoleHost {
		return c.opts.HostLifetime
	}
	return c.opts.MemberLifetime
}

// template holds what all end certificates have in common. X.509 counts in seconds.
func (c *CA) template(commonName string, lifetime time.Duration) *x509.Certificate {
	if len(commonName) > 64 { // the limit of the field; the URI and DNS names are what counts
		commonName = commonName[:64]
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             c.cert.NotBefore,
		NotAfter:              c.issuing().Add(lifetime).Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
}

// requestedKey returns the key of a certificate request whose sender holds it.
func requestedKey(csrDER []byte) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("its key is not an ECDSA P-256 key")
	}
	return pub, nil
}

// ServerCertificate returns a function for tls.Config.GetCertificate that answers with
// a certificate for name. It is kept in memory and replaced when two thirds of its life are over.
func (c *CA) ServerCertificate(name string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.server(name) }
}

func (c *CA) server(name string) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.servers[name]; s != nil && c.issuing().Before(s.Leaf.NotAfter.Add(-serverLifetime/3)) {
		return s, nil
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	tmpl := c.template(name, serverLifetime)
	tmpl.DNSNames = []string{name}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	c.servers[name] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return c.servers[name], nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// CheckRequest reports, with class Invalid, why a certificate request can't be signed.
func CheckRequest(csrDER []byte) error {
	if _, err := requestedKey(csrDER); err != nil {
		return errs.New(errs.Invalid, "the certificate request: %w", err)
	}
	return nil
}

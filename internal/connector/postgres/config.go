package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

const (
	defaultMaxConns = 32
	// maxMessage bounds one message of the server, and so one row: a server that
	// announces more is not given the memory.
	maxMessage = 256 << 20
	// anonymousUser is who signs in without a credential: the protocol demands a name.
	anonymousUser = "anonymous"
)

// config is a data source's parameters, checked.
type config struct {
	object   string // for errors: DataSource/name
	host     string
	port     uint16
	database string
	user     string
	password core.Secret
	tls      *tls.Config // nil: no TLS
	timeout  time.Duration
	params   map[string]string // sent at sign-in
	readOnly bool
	resolve  func(ctx context.Context, host string) ([]string, error)
	maxConns int
	buffers  buffers // of its connections
}

func newConfig(src memberapi.Source, opts connector.Options) (*config, error) {
	c := &config{
		object: "DataSource/" + src.Name, readOnly: src.ReadOnly,
		user: src.Username, password: core.NewSecret(src.Password),
		resolve: opts.Resolve, maxConns: opts.MaxConns,
	}
	if c.maxConns <= 0 {
		c.maxConns = defaultMaxConns
	}
	if c.resolve == nil {
		return nil, errs.New(errs.Internal, "postgres: connector.Options.Resolve is required").On(c.object, "")
	}
	if err := c.setCredential(src.Credential); err != nil {
		return nil, err
	}
	return c, c.setParameters(src.Parameters)
}

func (c *config) setCredential(kind core.CredentialKind) error {
	switch kind {
	case core.CredentialBasic:
		if c.user == "" {
			return c.invalid("credentials.username", "a user name is required")
		}
	case core.CredentialAnonymous, "":
		c.password = core.Secret{}
		if c.user == "" {
			c.user = anonymousUser
		}
	default:
		return c.invalid("credentials.kind", "PostgreSQL does not take credentials of kind "+string(kind))
	}
	return nil
}

// setParameters checks against the catalogue first, which also fills in the defaults.
func (c *config) setParameters(given map[string]string) error {
	p, err := c.withDefaults(given)
	if err != nil {
		return err
	}
	c.host, c.database = p["host"], p["database"]
	port, err := strconv.ParseUint(p["port"], 10, 16)
	if err != nil || port == 0 {
		return c.invalid("parameters.port", "not a TCP port: "+p["port"])
	}
	c.port = uint16(port)
	if c.timeout, err = time.ParseDuration(p["connectTimeout"]); err != nil || c.timeout <= 0 {
		return c.invalid("parameters.connectTimeout", "not a positive duration such as 10s: "+p["connectTimeout"])
	}
	if c.tls, err = tlsConfig(p["tls"], c.host, p["tlsCA"]); err != nil {
		return c.invalid("parameters.tlsCA", err.Error())
	}
	c.params = map[string]string{
		"application_name": p["applicationName"], "client_encoding": "UTF8", "DateStyle": "ISO",
	}
	if p["options"] != "" {
		c.params["options"] = p["options"]
	}
	return nil
}

func (c *config) withDefaults(given map[string]string) (map[string]string, error) {
	p := map[string]string{}
	for _, d := range catalog.Postgres.Parameters {
		v, ok := given[d.Name]
		if !ok || v == "" {
			v = d.Default
		}
		if v == "" && d.Required {
			return nil, c.invalid("parameters."+d.Name, "is required: "+d.Doc)
		}
		if !allowed(d.Values, v) {
			return nil, c.invalid("parameters."+d.Name, "not one of the values allowed: "+v)
		}
		p[d.Name] = v
	}
	for name := range given {
		if _, ok := p[name]; !ok {
			return nil, c.invalid("parameters."+name, "no such parameter")
		}
	}
	return p, nil
}

func allowed(values []string, v string) bool {
	if slices.Contains(values, v) {
		return true
	}
	return len(values) == 0
}

func (c *config) invalid(field, reason string) error {
	return errs.New(errs.Invalid, "%s: %s: %s", c.object, field, reason).On(c.object, field)
}

// tlsConfig makes the client's side of a TLS mode, nil for none.
func tlsConfig(mode, host, ca string) (*tls.Config, error) {
	if mode == "disable" {
		return nil, nil
	}
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if ca != "" {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			return nil, errs.New(errs.Invalid, "holds no PEM certificate")
		}
	}
	switch mode {
	case "require":
		cfg.InsecureSkipVerify = true
	case "verify-ca": // the chain without the name: the library has no setting for it
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return verifyChain(cs, cfg.RootCAs) }
	}
	return cfg, nil
}

func verifyChain(cs tls.ConnectionState, roots *x509.CertPool) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	_, err := cs.PeerCertificates[0].Verify(opts)
	return err
}

// pgconnConfig is the library's configuration for one connection that has been
// dialled, TLS included. The environment's PG variables, which the library reads, are
// overruled.
func (c *config) pgconnConfig() (*pgconn.Config, error) {
	pc, err := pgconn.ParseConfig("host=127.0.0.1 user=u dbname=d sslmode=disable")
	if err != nil {
		return nil, err
	}
	pc.Host, pc.Port, pc.Database, pc.User, pc.Password = c.host, c.port, c.database, c.user, c.password.Reveal()
	pc.TLSConfig, pc.Fallbacks, pc.ConnectTimeout = nil, nil, 0
	pc.RuntimeParams, pc.ValidateConnect, pc.RequireAuth = c.params, nil, ""
	pc.MaxProtocolMessageBodyLen = maxMessage
	return pc, nil
}

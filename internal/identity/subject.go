// Package identity is who is who on the service's hosts address: the service's own
// certificate authority, the short-lived certificates of members and hosts, and the
// keeping of one on the client's side, from a one-time token through every renewal.
//
// It owns keys, certificates and the two HTTP calls that fetch them. It does not
// decide who may join or who is still welcome: ingress/ asks the service for that.
// The service uses CA, members and hosts use Keeper; private keys of clients are
// made in their memory and never leave it.
package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"strconv"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// ServiceName is the name in the service's certificate, whatever its address is.
const ServiceName = "service.sluice.internal"

// scheme of the URI that a certificate names its subject with.
const scheme = "sluice"

// Subject is who a certificate was issued to. Generation is 0 for a host.
type Subject struct {
	Role       string // memberapi.RoleMember or RoleHost
	Name       string // the member's ID or the host's name
	Generation int64
}

// String returns the URI form: sluice://member/<id>/<generation>, sluice://host/<name>.
func (s Subject) String() string { return s.uri().String() }

func (s Subject) uri() *url.URL {
	u := &url.URL{Scheme: scheme, Host: s.Role, Path: "/" + s.Name}
	if s.Role == memberapi.RoleMember {
		u.Path += "/" + strconv.FormatInt(s.Generation, 10)
	}
	return u
}

// nameForm keeps names free of anything that a URI or a log line could misread.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`)

// CheckName reports why a host or a member can't have a name.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%q is not a name of letters, digits, dots, dashes and underscores", name)
	}
	return nil
}

// check reports why a subject can't be certified.
func (s Subject) check() error {
	switch {
	case s.Role != memberapi.RoleMember && s.Role != memberapi.RoleHost:
		return fmt.Errorf("%q is not a role", s.Role)
	case CheckName(s.Name) != nil:
		return CheckName(s.Name)
	case s.Role == memberapi.RoleHost && s.Generation != 0:
		return fmt.Errorf("host %s has a generation", s.Name)
	case s.Generation < 0:
		return fmt.Errorf("the generation %d is negative", s.Generation)
	}
	return nil
}

var memberPath = regexp.MustCompile(`^/([^/]+)/(0|[1-9][0-9]*)$`)

// SubjectOf returns the subject that a certificate names. The certificate's chain must
// have been verified already.
func SubjectOf(cert *x509.Certificate) (Subject, error) {
	if len(cert.URIs) != 1 {
		return Subject{}, fmt.Errorf("the certificate holds %d URIs, want one", len(cert.URIs))
	}
	return parseSubject(cert.URIs[0])
}

func parseSubject(u *url.URL) (Subject, error) {
	s := Subject{Role: u.Host}
	if s.Role == memberapi.RoleMember {
		m := memberPath.FindStringSubmatch(u.Path)
		if m == nil {
			return Subject{}, fmt.Errorf("%q does not name a member and its generation", u)
		}
		s.Name = m[1]
		s.Generation, _ = strconv.ParseInt(m[2], 10, 64) // out of range: caught below
	} else if len(u.Path) > 1 {
		s.Name = u.Path[1:]
	}
	if err := s.check(); err != nil {
		return Subject{}, fmt.Errorf("%q is not a subject: %w", u, err)
	}
	// What does not print as it was read (another scheme, a query, an escape) is refused.
	if s.String() != u.String() {
		return Subject{}, fmt.Errorf("%q is not a subject in its only form, %q", u, s)
	}
	return s, nil
}

package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

func openCA(t testing.TB, dir string, opts identity.CAOptions) *identity.CA {
	t.Helper()
	ca, err := identity.OpenCA(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// csr makes a certificate request that asks for more than it will get.
func csr(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := url.Parse("sluice://member/m-other/1")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		URIs: []*url.URL{other}, DNSNames: []string{identity.ServiceName},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOpenCAMakesAndLoadsOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := openCA(t, dir, identity.CAOptions{})
	again := openCA(t, dir, identity.CAOptions{})
	if diff := cmp.Diff(first.CertPEM(), again.CertPEM()); diff != "" {
		t.Errorf("opened again it is another:\n%s", diff)
	}
	for name, want := range map[string]os.FileMode{"ca.pem": 0o644, "ca.key": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, mode %v, want %v", name, err, info.Mode().Perm(), want)
		}
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("%d files, want the two", len(entries))
	}
}

func TestOpenCAByManyAtOnceMakesOne(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pems := make([]string, 16)
	var wg sync.WaitGroup
	for i := range pems {
		wg.Go(func() { pems[i] = string(openCA(t, dir, identity.CAOptions{}).CertPEM()) })
	}
	wg.Wait()
	for _, p := range pems {
		if p != pems[0] {
			t.Fatal("two callers got different authorities")
		}
	}
}

func TestOpenCAAfterACrashBetweenKeyAndCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	openCA(t, dir, identity.CAOptions{})
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	openCA(t, dir, identity.CAOptions{})
}

func TestOpenCARefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"a key that others may read": {func(t *testing.T, dir string) {
			os.Chmod(filepath.Join(dir, "ca.key"), 0o640)
		}, "others than its owner"},
		"a certificate of another key": {func(t *testing.T, dir string) {
			other := t.TempDir()
			openCA(t, other, identity.CAOptions{})
			b, _ := os.ReadFile(filepath.Join(other, "ca.pem"))
			os.WriteFile(filepath.Join(dir, "ca.pem"), b, 0o644)
		}, "is not the certificate of"},
		"an empty key": {func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, "ca.key"), nil, 0o600)
		}, "one PEM block"},
		"a broken certificate": {func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o644)
		}, "ca.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			openCA(t, dir, identity.CAOptions{})
			c.spoil(t, dir)
			_, err := identity.OpenCA(dir, identity.CAOptions{})
			if errs.ClassOf(err) != errs.Invalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want Invalid with %q", err, c.want)
			}
		})
	}
	t.Run("an authority that has ended", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		openCA(t, dir, identity.CAOptions{})
		_, err := identity.OpenCA(dir, identity.CAOptions{Clock: func() time.Time { return time.Now().AddDate(30, 0, 0) }})
		if errs.ClassOf(err) != errs.Invalid {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("a directory that is not there", func(t *testing.T) {
		t.Parallel()
		if _, err := identity.OpenCA(filepath.Join(t.TempDir(), "none"), identity.CAOptions{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestSign(t *testing.T) {
	t.Parallel()
	ca := openCA(t, t.TempDir(), identity.CAOptions{})
	for name, c := range map[string]struct {
		subject  identity.Subject
		lifetime time.Duration
		want     time.Duration
	}{
		"member":       {identity.Subject{Role: memberapi.RoleMember, Name: "m-1", Generation: 3}, 0, time.Hour},
		"host":         {identity.Subject{Role: memberapi.RoleHost, Name: "host-1.example"}, 0, 24 * time.Hour},
		"for a minute": {identity.Subject{Role: memberapi.RoleHost, Name: "h"}, time.Minute, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der, notAfter, err := ca.Sign(csr(t), c.subject, c.lifetime)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			got, err := identity.SubjectOf(cert)
			if err != nil || got != c.subject {
				t.Errorf("subject %v, %v, want %v: what the request asks for must not count", got, err, c.subject)
			}
			if len(cert.DNSNames) != 0 {
				t.Errorf("names %v: a client could pose as the service", cert.DNSNames)
			}
			if d := time.Until(cert.NotAfter) - c.want; d.Abs() > 10*time.Second || !notAfter.Equal(cert.NotAfter) {
				t.Errorf("ends at %s (said %s), want in %s", cert.NotAfter, notAfter, c.want)
			}
			if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage); diff != "" {
				t.Error(diff)
			}
			if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
				t.Error("it passes as a server's certificate")
			}
			if cert.IsCA {
				t.Error("it is an authority itself")
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	ca := openCA(t, t.TempDir(), identity.CAOptions{})
	good := identity.Subject{Role: memberapi.RoleMember, Name: "m-1", Generation: 1}
	forged := csr(t)
	forged[len(forged)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		csr     []byte
		subject identity.Subject
	}{
		"no request":           {nil, good},
		"a forged signature":   {forged, good},
		"an RSA key":           {weak, good},
		"no role":              {csr(t), identity.Subject{Name: "x"}},
		"no name":              {csr(t), identity.Subject{Role: memberapi.RoleHost}},
		"a name with a slash":  {csr(t), identity.Subject{Role: memberapi.RoleHost, Name: "a/b"}},
		"a host's generation":  {csr(t), identity.Subject{Role: memberapi.RoleHost, Name: "a", Generation: 1}},
		"a negative one":       {csr(t), identity.Subject{Role: memberapi.RoleMember, Name: "a", Generation: -1}},
		"a name with a query?": {csr(t), identity.Subject{Role: memberapi.RoleMember, Name: "a?b", Generation: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := ca.Sign(c.csr, c.subject, 0); errs.ClassOf(err) != errs.Invalid {
				t.Errorf("err = %v, want Invalid", err)
			}
		})
	}
}

func TestSubjectOfRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"https://member/m-1/1", "sluice://member/m-1", "sluice://member/m-1/01", "sluice://member/m-1/-1",
		"sluice://member/m-1/1/", "sluice://member//1", "sluice://host/", "sluice://host", "sluice://host/a/1",
		"sluice://host/a?x=1", "sluice://host/a#x", "sluice://root@host/a", "sluice://host/%61", "sluice://admin/a",
		"sluice://member/m-1/99999999999999999999", "sluice://HOST/a", "sluice:host/a",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := identity.SubjectOf(&x509.Certificate{URIs: []*url.URL{u}}); err == nil {
			t.Errorf("%s is taken for %+v", text, s)
		}
	}
	a, _ := url.Parse("sluice://host/a")
	for _, uris := range [][]*url.URL{nil, {a, a}} {
		if _, err := identity.SubjectOf(&x509.Certificate{URIs: uris}); err == nil {
			t.Errorf("%d URIs are accepted", len(uris))
		}
	}
}

func FuzzSubjectOf(f *testing.F) {
	f.Add("sluice://member/m-1/7")
	f.Add("sluice://host/h")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		s, err := identity.SubjectOf(&x509.Certificate{URIs: []*url.URL{u}})
		if err == nil && s.String() != u.String() {
			t.Errorf("%q is read as %q", u, s)
		}
	})
}

func TestServerCertificateRenewsItself(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca := openCA(t, t.TempDir(), identity.CAOptions{Clock: func() time.Time { return now }})
	get := ca.ServerCertificate("service.test")
	first, err := get(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: "service.test", CurrentTime: now}); err != nil {
		t.Error(err)
	}
	if same, _ := get(nil); same != first {
		t.Error("another certificate for the next connection")
	}
	now = first.Leaf.NotAfter.Add(-time.Hour)
	next, err := get(nil)
	if err != nil || next == first || !next.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Errorf("an hour before its end: %v, not renewed", err)
	}
}

package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestServiceAndHostApart runs the two roles as processes of their own.
func TestServiceAndHostApart(t *testing.T) {
	t.Parallel()
	c := prepareCorp(t, t, sharedPG(t))
	c.Service()
	eventually(t, 15*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
	c.applyExample()
	begun := time.Now()
	wantFailure(t, c.query("select 1", "--timeout", "3s"), 1, "wake", "host")
	t.Logf("without a host a query fails after %v", time.Since(begun).Round(time.Millisecond))

	c.Host()
	c.Ready()
	if got := c.value("select 1"); got != "1" {
		t.Errorf("service and host apart: %q", got)
	}
	member := c.onlyMember().ID

	c.Stop("host", syscall.SIGTERM)
	eventually(t, 15*time.Second, "the service sees that the host is gone", func() bool { return strings.Contains(c.Must("get", "hosts"), "no") })
	c.Host()
	c.Ready()
	if got := c.value("select 2"); got != "2" {
		t.Errorf("after the host's restart: %q", got)
	}
	if now := c.onlyMember().ID; now != member {
		t.Errorf("the host's restart replaced the member %s by %s", member, now)
	}

	c.Stop("service", syscall.SIGTERM)
	c.Service()
	c.Ready()
	if got := c.value("select 3"); got != "3" {
		t.Errorf("after the service's restart: %q", got)
	}
	if now := c.onlyMember().ID; now != member {
		t.Errorf("the service's restart replaced the member %s by %s", member, now)
	}
}

// TestAHostThatIsRefused joins with a wrong token, and trusts the wrong service.
func TestAHostThatIsRefused(t *testing.T) {
	t.Parallel()
	c := prepareCorp(t, t, sharedPG(t))
	c.Service()
	eventually(t, 15*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
	write := func(name string, text []byte) string {
		path := filepath.Join(c.Dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, err := os.ReadFile(c.Data + "/host.token")
	if err != nil {
		t.Fatal(err)
	}
	base := []string{"host", "--name", "h1", "--run-dir", c.Run, "--service", c.Hosts}
	wrong := write("wrong.token", []byte("sluice_host_wrong\n"))
	r := fails(t, c.Command(append(base, "--ca", c.Data+"/ca.pem", "--token-file", wrong)...))
	wantFailure(t, r, 4, "token")
	if strings.Contains(r.Err, "sluice_host_wrong") || strings.Contains(r.Err, strings.TrimSpace(string(good))) {
		t.Errorf("the refusal shows a token:\n%s", r.Err)
	}
	r = fails(t, c.Command(append(base, "--ca", c.Dir+"/missing.pem", "--token-file", wrong)...))
	wantFailure(t, r, 2, "missing.pem", "hint: ")
	r = fails(t, c.Command(append(base, "--ca", c.Data+"/ca.pem", "--token-file", c.Dir+"/missing.token")...))
	wantFailure(t, r, 2, "missing.token", "hint: ")

	// A host that trusts another authority must not give its token away: it keeps
	// trying, and says why.
	other := c.Start("stranger", append(base, "--ca", write("other.pem", someCA(t)), "--token-file", c.Data+"/host.token")...)
	eventually(t, 10*time.Second, "the host says that it does not trust the service", func() bool {
		return strings.Contains(other.Log.String(), "certificate")
	})
	if out := c.Must("get", "hosts"); strings.Contains(out, "h1") {
		t.Errorf("a refused host is listed:\n%s", out)
	}
	c.Stop("stranger", syscall.SIGTERM)
}

// someCA is a certificate of an authority that signed nothing.
func someCA(t *testing.T) []byte {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

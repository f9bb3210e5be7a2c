package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

// TestServiceAndHostApart runs the two roles as processes of their own.
func TestServiceAndHostApart(t *testing.T) {
	waiting.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Service()
	eventually(t, 60*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
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
	eventually(t, 60*time.Second, "the service sees that the host is gone", func() bool { return strings.Contains(c.Must("get", "hosts"), "no") })
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

// TestChangesWaitForHosts: what applies, replaces and deletes comes back once the host has acted
// on it; if that takes too long, with that said; or at once if nobody wants to wait.
func TestChangesWaitForHosts(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Service()
	eventually(t, 15*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
	c.applyExample()
	c.Host()
	c.Ready()
	c.Must("gateway", "wake", gateway)
	spare := func(name, address string) {
		c.Apply("kind: PrivateEndpoint\nname: " + name + "\nvnet: corp\nsubnet: data\naddress: " + address + "\ntarget: 127.0.0.1:9\n")
	}
	for name, address := range map[string]string{"spare-a": "10.20.1.11", "spare-b": "10.20.1.12", "spare-c": "10.20.1.13", "spare-d": "10.20.1.14"} {
		spare(name, address)
	}
	here := func() string { // the addresses of private endpoints, as the kernel has them
		out, err := exec.Command("ip", "-n", vnetSpace(t, c.Stack), "-br", "addr", "show", "dev", "lo").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	there := func(address string) bool { return strings.Contains(here(), address+"/") }
	if r := c.Sluice("delete", "privateendpoint", "spare-a", "--wait", "1m"); r.Exit != 0 || strings.Contains(r.Err, "warning") || r.Out != "PrivateEndpoint/spare-a deleted\n" || there("10.20.1.11") || !there("10.20.1.12") {
		t.Errorf("a deletion: %+v; the host has\n%s", r, here())
	}

	host := c.Proc("host").Cmd.Process
	if err := host.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const behind = " has not acted on it within 1.5s; until it has, what was before holds there"
	for _, args := range [][]string{{"privateendpoint", "spare-b"}, {"privateendpoint", "spare-c", "--ignore-not-found"}} {
		r := c.Sluice(append([]string{"delete", "--wait", "1500ms"}, args...)...)
		if r.Exit != 0 || !strings.Contains(r.Out, args[1]+" deleted") || !strings.Contains(r.Err, "warning: host ") || !strings.Contains(r.Err, behind) ||
			!strings.Contains(r.Err, "waiting until the hosts have acted on it, for at most 1.5s") {
			t.Errorf("delete %s while the host does nothing: %+v", args, r)
		}
	}
	if r := c.Sluice("delete", "privateendpoint", "spare-d", "--no-wait"); r.Exit != 0 || r.Err != "" {
		t.Errorf("a deletion that does not wait: %+v", r)
	}
	if err := host.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var put struct {
		Change string
		Hosts  []client.HostActing
	}
	body := map[string]any{"vnet": "corp", "subnet": "data", "address": "10.20.1.15", "target": "127.0.0.1:9"}
	c.call(http.MethodPut, "/v1/privateendpoints/spare-e?wait=1m", body, &put)
	if put.Change != "created" || len(put.Hosts) != 1 || !put.Hosts[0].Acted || !there("10.20.1.15") || there("10.20.1.14") {
		t.Errorf("a PUT that waits: %+v; the host has\n%s", put, here())
	}
}

// call sends one request over the Unix socket and reads its answer, which must be a good one.
func (c *corp) call(method, path string, in, out any) {
	c.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequest(method, "http://sluice"+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode < 300 {
		err = json.Unmarshal(answer, out)
	}
	if err != nil || resp.StatusCode >= 300 {
		c.t.Fatalf("%s %s: %s %v: %s", method, path, resp.Status, err, answer)
	}
}

// TestAHostThatIsRefused joins with a wrong token, and trusts the wrong service.
func TestAHostThatIsRefused(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Service()
	eventually(t, 60*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
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
	eventually(t, 60*time.Second, "the host says that it does not trust the service", func() bool {
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

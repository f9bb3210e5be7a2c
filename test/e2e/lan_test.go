package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/nettest"
	"github.com/sluice-gateway/sluice/internal/testpg"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// far is a machine beyond the host, with a database server of its own: a namespace, and
// the host's end of a veth to it.
type far struct {
	ns     string // its name
	near   string // the host's end
	dev    string // its own end
	id     string // for the names of what stands beside it
	server string // its address
	pg     *testpg.Server
	dhcp   *exec.Cmd
}

func newFar(t *testing.T, address string) *far {
	t.Helper()
	return newFarNumber(t, outsides.Add(1), address)
}

func newFarNumber(t *testing.T, n int64, address string) *far {
	t.Helper()
	id := fmt.Sprintf("%x-%x", os.Getpid()&0xffff, n)
	f := &far{ns: "e2e-far-" + id, near: "e2ef" + id + "a", dev: "e2ef" + id + "b", id: id}
	f.server, _, _ = strings.Cut(address, "/")
	ip(t, "netns", "add", f.ns)
	t.Cleanup(func() { ip(t, "netns", "del", f.ns) })
	ip(t, "link", "add", f.near, "type", "veth", "peer", "name", f.dev, "netns", f.ns)
	ip(t, "link", "set", f.near, "up")
	ip(t, "-n", f.ns, "link", "set", "lo", "up")
	ip(t, "-n", f.ns, "link", "set", f.dev, "up")
	ip(t, "-n", f.ns, "addr", "add", address, "dev", f.dev)
	f.pg = startPG(t, testpg.WithNetNS("/run/netns/"+f.ns))
	return f
}

// newFarOnTheHost is a machine that the host itself reaches, and forwards to.
func newFarOnTheHost(t *testing.T) *far {
	t.Helper()
	n := outsides.Add(1)
	host, server := twoAddresses(int(n))
	f := newFarNumber(t, n, server+"/30")
	forwards(t, f.near)
	ip(t, "addr", "add", host+"/30", "dev", f.near)
	return f
}

// serveDHCP leases a range of the machine's network to others, until the test or endDHCP
// ends it, and returns what tells the leases.
func (f *far) serveDHCP(t *testing.T, from, to string, more ...string) func() string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "leases")
	f.dhcp = exec.Command("ip", append([]string{"netns", "exec", f.ns, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
		"--interface=" + f.dev, "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--log-facility=-", "--pid-file=",
		"--dhcp-leasefile=" + file, fmt.Sprintf("--dhcp-range=%s,%s,255.255.255.0,1h", from, to)}, more...)...)
	if err := f.dhcp.Start(); err != nil {
		t.Fatalf("dnsmasq (apt-get install dnsmasq-base): %v", err)
	}
	t.Cleanup(f.endDHCP)
	return func() string { return nettest.ReadLeases(t, file) }
}

func (f *far) endDHCP() {
	_ = f.dhcp.Process.Kill()
	_ = f.dhcp.Wait()
}

// source is the data source that the machine's server is.
func (f *far) source(name, host string) string {
	return dataSource(name, host, f.pg.Port, "orders", "report", password)
}

// callers are the addresses of those who are connected to the server now.
func (f *far) callers(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, row := range f.pg.Rows(t, "select distinct host(client_addr) from pg_stat_activity where client_addr is not null") {
		out = append(out, row[0])
	}
	return out
}

// ask gives one query's answer without its header, or what went wrong.
func ask(s *stack.Stack, source, sql string) (string, stack.Result) {
	r := s.Sluice("query", "-s", source, "-o", "csv", "--timeout", "60s", sql)
	_, rest, _ := strings.Cut(r.Out, "\r\n")
	return strings.TrimSpace(rest), r
}

// wantAnswerAtOnce asks once: an apply waits until hosts have acted on it.
func wantAnswerAtOnce(t *testing.T, s *stack.Stack, source, sql, want string) {
	t.Helper()
	if got, r := ask(s, source, sql); r.Exit != 0 || got != want {
		t.Errorf("%s on %s: %q, want %q; exit status %d\n%s", sql, source, got, want, r.Exit, r.Err)
	}
}

// wantAnswer asks until the answer is the wanted one: what lies beyond a host may take its time.
func wantAnswer(t *testing.T, s *stack.Stack, source, sql, want string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got, r := ask(s, source, sql)
		if r.Exit == 0 && got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s on %s: %q, want %q; exit status %d\n%s", sql, source, got, want, r.Exit, r.Err)
		}
	}
}

// holder is the address of the only member.
func holder(t *testing.T, s *stack.Stack) netip.Addr {
	t.Helper()
	return netip.MustParseAddr((&corp{Stack: s, t: t}).onlyMember().Address)
}

// newTUN joins the host and a machine by a VPN. It returns the name of the host's device.
func newTUN(t *testing.T, f *far, addr string) string {
	t.Helper()
	name := "e2et" + f.id
	nettest.JoinTUN(t, "", "/run/netns/"+f.ns, name)
	ip(t, "link", "set", name, "up")
	ip(t, "-n", f.ns, "addr", "add", addr, "dev", name)
	ip(t, "-n", f.ns, "link", "set", name, "up")
	return name
}

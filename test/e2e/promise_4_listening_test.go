package e2e

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// sockets lists what is bound in a namespace, as "tcp 10.0.0.1:53": TCP sockets that
// listen, and every UDP, raw, packet and Unix socket that is not connected.
func sockets(t testing.TB, space string) []string {
	t.Helper()
	var out []string
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp"} {
		for i, line := range strings.Split(strings.TrimSpace(readOptional(t, space, kind)), "\n") {
			w := strings.Fields(line)
			if i == 0 || len(w) < 4 {
				continue
			}
			const listening = "0A"
			connected := strings.Trim(w[2], "0:") != ""
			if strings.HasPrefix(kind, "tcp") && w[3] != listening || !strings.HasPrefix(kind, "tcp") && connected {
				continue
			}
			out = append(out, strings.TrimSuffix(kind, "6")+" "+procAddress(w[1]))
		}
	}
	for _, kind := range []string{"packet", "unix"} {
		for i, line := range strings.Split(strings.TrimSpace(readOptional(t, space, kind)), "\n") {
			if i > 0 {
				out = append(out, kind+" "+strings.Join(strings.Fields(line), " "))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func readOptional(t testing.TB, space, kind string) string {
	t.Helper()
	text := ""
	err := nettest.In(space, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/" + kind)
		text = string(b)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatalf("sockets of %s: %v", space, err)
	}
	return text
}

// procAddress reads an address as /proc/net writes it.
func procAddress(s string) string {
	a, p, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(a)
	port, perr := strconv.ParseUint(p, 16, 16)
	if err != nil || perr != nil || len(raw)%4 != 0 {
		return s
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.LittleEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)).String()
}

// TestPromise4MemberListensOnNothing looks at the member's sockets from outside, while it
// works, and tries to connect to it from everywhere that could.
func TestPromise4MemberListensOnNothing(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	api := c.Client()
	c.value("select 1")
	m := onlyMember(t, api)
	space := c.memberSpace(m)
	var wg sync.WaitGroup
	wg.Go(func() { c.query("select g, md5(g::text) from generate_series(1, 200000) g") })
	for range 20 {
		for _, s := range sockets(t, space) {
			t.Errorf("the member has an open socket: %s", s)
		}
		time.Sleep(20 * time.Millisecond)
	}
	wg.Wait()
	probe := listenIn(t, space, "127.0.0.1:0")
	if got := sockets(t, space); !slices.Contains(got, "tcp "+probe) {
		t.Errorf("a listener that was opened for comparison is not seen: %v", got)
	}
	if m := onlyMember(t, api); m.ID == "" {
		t.Error("no member any more")
	}
	c.nobodyConnects(t, m)
}

// nobodyConnects dials the member's lease: from the network's namespace, which the rules
// keep from beginning flows at all, and from a neighbour that they let through, whom only
// the absence of a listener refuses.
func (c *corp) nobodyConnects(t *testing.T, m core.Member) {
	t.Helper()
	c.rewrite("network.yaml", "priority: 4000, direction: Outbound, access: Deny", "priority: 4000, direction: Outbound, access: Allow")
	c.applyExample()
	c.Apply("kind: Gateway\nname: corp-two\nvnet: corp\nsubnet: gateways\n")
	neighbour := c.memberOf(t, c.Client(), "corp-two")
	listener := listenIn(t, c.memberSpace(m), m.Address.String()+":0")
	if err := dialFrom(c.memberSpace(neighbour), listener, 0, 30*time.Second); err != nil {
		t.Fatalf("the neighbour can't reach a listener that was opened for comparison: %v", err)
	}
	ports := []int{1, 22, 53, 80, 111, 443, 2049, 3306, 5432, 6060, 8080, 8443, 8480, 8481, 8482, 8483, 9090, 50051}
	ports = append(ports, localPorts(t, c.memberSpace(m), netip.MustParseAddrPort(listener).Port())...)
	var wg sync.WaitGroup
	for _, port := range ports {
		addr := fmt.Sprintf("%s:%d", m.Address, port)
		wg.Go(func() {
			if err := dialFrom(c.memberSpace(neighbour), addr, 0, 30*time.Second); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a neighbour's connection to %s: %v, want it refused", addr, err)
			}
		})
		wg.Go(func() {
			if dialFrom(c.vnetSpace(m), addr, 0, 700*time.Millisecond) == nil {
				t.Errorf("connected to %s from the network's namespace", addr)
			}
		})
	}
	wg.Wait()
}

// localPorts lists the ports that a namespace's connections come from.
func localPorts(t *testing.T, space string, but uint16) []int {
	t.Helper()
	var out []int
	for line := range strings.Lines(readIn(t, space, "/proc/thread-self/net/tcp")) {
		if w := strings.Fields(line); len(w) > 3 && w[0] != "sl" {
			if a, err := netip.ParseAddrPort(procAddress(w[1])); err == nil && a.Port() != but {
				out = append(out, int(a.Port()))
			}
		}
	}
	if len(out) == 0 {
		t.Errorf("no connections of the member in %s", space)
	}
	return out
}

// TestPromise4NoInboundPort lists every socket that the host opened: in the private
// network the endpoint and the resolver, on the tunnels the relay, nothing beyond.
func TestPromise4NoInboundPort(t *testing.T) {
	busy.take(t)
	l := newLab(t, sharedPG(t))
	l.value("select 1")
	m := onlyMember(t, l.api)
	want := []string{fmt.Sprintf("tcp 10.20.1.4:%d", l.PG.Port)}
	for _, a := range []string{"10.20.0.2", "10.20.0.3", "10.20.1.2", "10.20.1.3"} {
		want = append(want, "tcp "+a+":53", "udp "+a+":53")
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, sockets(t, l.vnetSpace(m))); diff != "" {
		t.Errorf("sockets in the private network (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"tcp " + relayAddress}, sockets(t, l.tunnelSpace())); diff != "" {
		t.Errorf("sockets on the tunnels (-want +got):\n%s", diff)
	}
	for _, n := range l.spaces("n") {
		if got := sockets(t, n); len(got) > 0 {
			t.Errorf("sockets at the NAT gateway: %v", got)
		}
	}
	if got := listening(t, l.pid("host")); len(got) > 0 {
		t.Errorf("the host process listens in the machine's own network: %v", got)
	}
	wantService := []string{"tcp " + l.Flight, "tcp " + l.HTTP, "tcp " + l.Hosts}
	slices.Sort(wantService)
	if diff := cmp.Diff(wantService, listening(t, l.pid("service"))); diff != "" {
		t.Errorf("the service listens on (-want +got):\n%s", diff)
	}
}

// listening lists the listening sockets of the machine's own network that a process has.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	own := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		link, _ := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	if len(own) == 0 {
		t.Fatalf("process %d has no sockets", pid)
	}
	var out []string
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, _ := os.ReadFile("/proc/self/net/" + kind)
		for line := range strings.Lines(string(text)) {
			w := strings.Fields(line)
			if len(w) < 10 || !own[w[9]] {
				continue
			}
			if state := w[3]; state == "0A" || strings.HasPrefix(kind, "udp") && strings.Trim(w[2], "0:") == "" {
				out = append(out, strings.TrimSuffix(kind, "6")+" "+procAddress(w[1]))
			}
		}
	}
	slices.Sort(out)
	return out
}

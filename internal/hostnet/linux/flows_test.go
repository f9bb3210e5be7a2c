package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/flowlog"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"golang.org/x/sys/unix"
)

// entry is a tuple of a log, with the rule that it stands under.
type entry struct {
	rule string
	flowlog.Tuple
}

// logOf reads the flow log of a network security group, in the order of the files.
func (l *lab) logOf(nsg string) (out []entry, lost flowlog.Lost) {
	l.t.Helper()
	names, err := filepath.Glob(filepath.Join(l.state, "flowlogs", string(core.DefaultTenant), "corp", nsg, "*.json"))
	if err != nil {
		l.t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			l.t.Fatal(err)
		}
		var file struct{ Records []flowlog.Record }
		if err := json.Unmarshal(b, &file); err != nil {
			l.t.Fatalf("%s is not whole: %v", name, err)
		}
		for _, r := range file.Records {
			if r.Version != 4 || r.VirtualNetwork != "corp" {
				l.t.Errorf("a record of version %d, network %q", r.Version, r.VirtualNetwork)
			}
			if r.Lost != nil {
				lost.DeniedPackets += r.Lost.DeniedPackets
				lost.UnseenEnds += r.Lost.UnseenEnds
				lost.UnknownRules += r.Lost.UnknownRules
			}
			for _, acl := range r.FlowRecords.Flows {
				if acl.ACLID != nsg {
					l.t.Errorf("%s: flows of %q", name, acl.ACLID)
				}
				for _, g := range acl.FlowGroups {
					for _, s := range g.FlowTuples {
						t, err := flowlog.ParseTuple(s)
						if err != nil {
							l.t.Error(err)
						}
						out = append(out, entry{g.Rule, t})
					}
				}
			}
		}
	}
	return out, lost
}

// logged waits until the log of a group satisfies done.
func (l *lab) logged(nsg, what string, done func([]entry) bool) []entry {
	l.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		got, _ := l.logOf(nsg)
		if done(got) {
			return got
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("never in the log of %s: %s; it has %s", nsg, what, show(got))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func show(list []entry) string {
	var b strings.Builder
	for _, e := range list {
		fmt.Fprintf(&b, "\n%s %s", e.rule, e.Tuple)
	}
	return b.String()
}

// ofPort are the entries about flows from a source port.
func ofPort(list []entry, port uint16) (out []entry) {
	for _, e := range list {
		if e.SourcePort == port {
			out = append(out, e)
		}
	}
	return out
}

func states(list []entry) string {
	var b strings.Builder
	for _, e := range list {
		b.WriteByte(byte(e.State))
	}
	return b.String()
}

func sum(list []entry) (sent, received flowlog.Counters) {
	for _, e := range list {
		sent.Packets, sent.Bytes = sent.Packets+e.Sent.Packets, sent.Bytes+e.Sent.Bytes
		received.Packets, received.Bytes = received.Packets+e.Received.Packets, received.Bytes+e.Received.Bytes
	}
	return sent, received
}

func ended(port uint16) func([]entry) bool {
	return func(list []entry) bool { return strings.HasSuffix(states(ofPort(list, port)), "E") }
}

func portOfConn(c net.Conn) uint16 { return netip.MustParseAddrPort(c.LocalAddr().String()).Port() }

func logFast(o *Options) { o.FlowLogFlush = 100 * time.Millisecond }

// logging turns the log of groups on.
func logging(g core.GoalVNet, names ...string) core.GoalVNet {
	g = cloneVNet(g)
	for i := range g.NSGs {
		g.NSGs[i].FlowLog = core.FlowLog{Enabled: slices.Contains(names, g.NSGs[i].Name), Interval: core.Duration(time.Second)}
	}
	return g
}

// forgetSoon has the kernel forget flows soon after their end.
func forgetSoon(t testing.TB, n *Network, uid string) {
	t.Helper()
	err := n.vnets[uid].at.do(func() error {
		return writeAll([]sysctl{
			{key: "netfilter/nf_conntrack_tcp_timeout_time_wait", value: "1"}, {key: "netfilter/nf_conntrack_tcp_timeout_close", value: "1"},
			{key: "netfilter/nf_conntrack_tcp_timeout_last_ack", value: "1"}, {key: "netfilter/nf_conntrack_udp_timeout", value: "2"},
			{key: "netfilter/nf_conntrack_udp_timeout_stream", value: "2"},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// twoMembers is corp with a member in each subnet and nothing denied but what is asked.
func twoMembers(g core.GoalVNet) (a, b hostnet.Port) {
	a, b = member(g, 1, 1), member(g, 2, 2)
	b.Subnet, b.Address = "data", nth(g.Subnets[1].Prefix, 9)
	return a, b
}

// interfaceBytes are what an interface received and sent, with Ethernet headers.
func interfaceBytes(t testing.TB, path, link string) (in4 [4]uint64) {
	t.Helper()
	in(t, path, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
			if f := strings.Fields(rest); name == link && len(f) >= 10 {
				for i, at := range []int{0, 1, 8, 9} {
					fmt.Sscan(f[at], &in4[i])
				}
			}
		}
		return nil
	})
	return in4
}

// TestFlowLogCountsExactly compares the log with what the member's own interface counted
// for a known transfer, over TCP and over UDP.
func TestFlowLogCountsExactly(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := logging(open2(corp("u1")), "gateways", "data")
	a, b := twoMembers(g)
	n := l.up(logFast)
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}})
	forgetSoon(t, n, "u1")
	from, to := portOf(t, s, a), portOf(t, s, b)

	t.Run("TCP", func(t *testing.T) {
		server := acceptIn(t, to, b.Address.String()+":5432")
		before := interfaceBytes(t, from, "eth0")
		c, err := dialIn(t, from, b.Address.String()+":5432", 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		served := <-server
		const up, down = 300_000, 2_000_000
		go func() {
			io.CopyN(io.Discard, served, up)
			served.Write(make([]byte, down))
			served.Close()
		}()
		if _, err := c.Write(make([]byte, up)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c); err != nil || n != down {
			t.Fatalf("%d bytes came: %v", n, err)
		}
		port := portOfConn(c)
		c.Close()
		for _, nsg := range []string{"gateways", "data"} {
			checkCounters(t, l, nsg, port, before, from, 6, up, down)
		}
	})
	t.Run("UDP", func(t *testing.T) {
		server := listenDatagram(t, to, b.Address.String()+":5353")
		before := interfaceBytes(t, from, "eth0")
		c := dialDatagram(t, from, b.Address.String()+":5353")
		const packets, size = 50, 1000
		buf := make([]byte, 2*size)
		for range packets {
			if _, err := c.Write(buf[:size]); err != nil {
				t.Fatal(err)
			}
			server.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, peer, err := server.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := server.WriteTo(buf[:2*size/5], peer); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		port := portOfConn(c)
		for _, nsg := range []string{"gateways", "data"} {
			got := checkCounters(t, l, nsg, port, before, from, 17, packets*size, packets*2*size/5)
			sent, received := sum(got)
			if want := (flowlog.Counters{Packets: packets, Bytes: packets * (size + 28)}); sent != want {
				t.Errorf("%s: sent %+v, want %+v", nsg, sent, want)
			}
			if want := (flowlog.Counters{Packets: packets, Bytes: packets * (2*size/5 + 28)}); received != want {
				t.Errorf("%s: received %+v, want %+v", nsg, received, want)
			}
		}
	})
}

const ethernetHeader = 14

// checkCounters waits for the end of a flow and compares the sums of its entries with
// what the interface carried since.
func checkCounters(t *testing.T, l *lab, nsg string, port uint16, before [4]uint64, path string, protocol uint8, up, down uint64) []entry {
	t.Helper()
	got := ofPort(l.logged(nsg, "the end of the flow", ended(port)), port)
	after := interfaceBytes(t, path, "eth0")
	sent, received := sum(got)
	wantReceived := flowlog.Counters{Packets: after[1] - before[1], Bytes: after[0] - before[0] - ethernetHeader*(after[1]-before[1])}
	wantSent := flowlog.Counters{Packets: after[3] - before[3], Bytes: after[2] - before[2] - ethernetHeader*(after[3]-before[3])}
	if sent != wantSent || received != wantReceived {
		t.Errorf("%s: sent %+v, received %+v; the interface sent %+v, received %+v%s", nsg, sent, received, wantSent, wantReceived, show(got))
	}
	if sent.Bytes < up || received.Bytes < down {
		t.Errorf("%s: %d and %d bytes; %d and %d were carried", nsg, sent.Bytes, received.Bytes, up, down)
	}
	direction := map[string]core.Direction{"gateways": core.Outbound, "data": core.Inbound}[nsg]
	rule := map[string]string{"gateways": "AllowVnetOutBound", "data": "AllowVnetInBound"}[nsg]
	for _, e := range got {
		if e.Direction != direction || e.rule != rule || e.Protocol != protocol {
			t.Errorf("%s: %s under rule %s", nsg, e.Tuple, e.rule)
		}
	}
	if text := states(got); text[0] != 'B' || strings.Count(text, "B") != 1 || strings.Count(text, "E") != 1 {
		t.Errorf("%s: the entries are %s", nsg, text)
	}
	return got
}

func listenDatagram(t *testing.T, path, addr string) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	in(t, path, func() (err error) {
		pc, err = net.ListenPacket("udp4", addr)
		return err
	})
	t.Cleanup(func() { pc.Close() })
	return pc
}

func dialDatagram(t *testing.T, path, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	in(t, path, func() (err error) {
		c, err = net.Dial("udp4", addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// TestFlowLogNamesTheRuleThatDenied also holds that only the group whose log is on writes.
func TestFlowLogNamesTheRuleThatDenied(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := logging(denyPort(open2(corp("u1")), "5432", false), "data")
	a, b := twoMembers(g)
	n := l.up(logFast)
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}})
	from := portOf(t, s, a)
	wantSilence(t, from, b.Address.String()+":5432")
	got := l.logged("data", "the denied packet", func(list []entry) bool { return len(list) > 0 })
	d := got[0]
	if d.rule != "closed" || d.State != flowlog.Deny || d.Direction != core.Inbound || d.DestinationPort != 5432 ||
		d.Source != a.Address || d.Destination != b.Address || d.Protocol != unix.IPPROTO_TCP || d.Sent.Packets == 0 || d.Sent.Bytes < 40*d.Sent.Packets {
		t.Errorf("under rule %s: %s", d.rule, d.Tuple)
	}
	if other, _ := l.logOf("gateways"); len(other) > 0 {
		t.Errorf("the log that is off has%s", show(other))
	}
}

// TestFlowLogOfTheOneThatAllowed: a flow that the destination's rules deny began and ended
// in the log of the source's, with the packets that these let pass; whether or not the
// others have a log.
func TestFlowLogOfTheOneThatAllowed(t *testing.T) {
	t.Parallel()
	for _, logs := range [][]string{{"gateways", "data"}, {"gateways"}} {
		t.Run(strings.Join(logs, " and "), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			g := logging(denyPort(open2(corp("u1")), "5432", false), logs...)
			a, b := twoMembers(g)
			n := l.up(logFast)
			s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}})
			wantSilence(t, portOf(t, s, a), b.Address.String()+":5432")
			dropped := counter(t, n.vnets["u1"].at.path, "data/closed (101) inbound")
			got := l.logged("gateways", "every packet that was let pass", func(list []entry) bool {
				sent, _ := sum(list)
				return int(sent.Packets) >= dropped
			})
			if states(got) != strings.Repeat("BE", len(got)/2) || got[0].rule != "AllowVnetOutBound" || got[0].Direction != core.Outbound ||
				got[0].Source != a.Address || got[0].DestinationPort != 5432 {
				t.Errorf("the log of the source's group has%s", show(got))
			}
			if sent, received := sum(got); int(sent.Packets) != dropped || received.Packets != 0 {
				t.Errorf("%d packets were let pass and denied, logged %+v, %+v", dropped, sent, received)
			}
			if denials, _ := l.logOf("data"); (len(denials) > 0) != (len(logs) == 2) {
				t.Errorf("the log of the destination's group has%s", show(denials))
			}
		})
	}
}

// TestFlowLogKeepsTheRuleOfTheBeginning: a flow begins, the rules change, and the log
// still names the rule that let it pass; entries come at each interval, and the end.
func TestFlowLogKeepsTheRuleOfTheBeginning(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := logging(open2(corp("u1")), "data")
	a, b := twoMembers(g)
	n := l.up(logFast)
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}}
	s := l.set(n, cfg)
	forgetSoon(t, n, "u1")
	server := acceptIn(t, portOf(t, s, b), b.Address.String()+":5432")
	c, err := dialIn(t, portOf(t, s, a), b.Address.String()+":5432", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	served := <-server
	cfg.VNets[0] = logging(denyPort(open2(corp("u1")), "5432", false), "data")
	l.set(n, cfg)
	carry(t, c, served)
	port := portOfConn(c)
	l.logged("data", "two entries of a flow that goes on", func(list []entry) bool { return strings.HasPrefix(states(ofPort(list, port)), "BCC") })
	c.Close()
	served.Close()
	got := ofPort(l.logged("data", "the end", ended(port)), port)
	if text := states(got); strings.ReplaceAll(text, "C", "") != "BE" {
		t.Errorf("the entries are %s", text)
	}
	for i, e := range got {
		if e.rule != "AllowVnetInBound" {
			t.Errorf("entry %s under rule %s", e.Tuple, e.rule)
		}
		if i > 0 && e.Time.Before(got[i-1].Time) {
			t.Errorf("entry %s comes after %s", e.Tuple, got[i-1].Tuple)
		}
	}
	if sent, _ := sum(got[:1]); sent != (flowlog.Counters{}) {
		t.Errorf("the beginning counts %+v", sent)
	}
}

// TestFlowLogGoesOnAfterARestart: neither a second beginning nor a lost end, and the
// counters of all entries are those of the flow. One flow ends while nobody looks. After
// a kill there are only the files that were there at that moment.
func TestFlowLogGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			goesOn(t, killed)
		})
	}
}

func goesOn(t *testing.T, killed bool) {
	l := newLab(t)
	g := logging(open2(corp("u1")), "data")
	a, b := twoMembers(g)
	n := l.up(logFast)
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}}
	s := l.set(n, cfg)
	forgetSoon(t, n, "u1")
	from, to := portOf(t, s, a), portOf(t, s, b)
	server := listenDatagram(t, to, b.Address.String()+":5353")
	long, short := dialDatagram(t, from, b.Address.String()+":5353"), dialDatagram(t, from, b.Address.String()+":5353")
	send := func(c net.Conn) {
		t.Helper()
		if _, err := c.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, _, err := server.ReadFrom(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
	}
	send(long)
	send(short)
	sent := uint64(1)
	l.logged("data", "both beginnings", func(list []entry) bool {
		return len(ofPort(list, portOfConn(long))) > 0 && len(ofPort(list, portOfConn(short))) > 0
	})
	logs := filepath.Join(l.state, "flowlogs")
	then := copyOf(t, logs)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if killed {
		if err := errors.Join(os.RemoveAll(logs), os.CopyFS(logs, os.DirFS(then))); err != nil {
			t.Fatal(err)
		}
	}
	for range 40 { // the short one ends meanwhile; the long one must not
		send(long)
		sent++
		time.Sleep(100 * time.Millisecond)
	}
	n = l.up(logFast)
	l.set(n, cfg)
	send(long)
	sent++
	got := l.logged("data", "both ends", func(list []entry) bool { return ended(portOfConn(long))(list) && ended(portOfConn(short))(list) })
	for _, c := range []net.Conn{long, short} {
		if text := states(ofPort(got, portOfConn(c))); strings.ReplaceAll(text, "C", "") != "BE" {
			t.Errorf("the entries are %s", text)
		}
	}
	if total, _ := sum(ofPort(got, portOfConn(long))); total != (flowlog.Counters{Packets: sent, Bytes: 128 * sent}) {
		t.Errorf("%+v were counted, %d packets sent", total, sent)
	}
	if _, lost := l.logOf("data"); lost.UnseenEnds != 1 {
		t.Errorf("%d ends that nobody saw, want 1", lost.UnseenEnds)
	}
}

// copyOf copies a directory that is written to. A file may go between its listing and its
// copy: then all is copied again.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	var err error
	for range 20 {
		to := filepath.Join(t.TempDir(), "copy")
		if err = os.CopyFS(to, os.DirFS(dir)); err == nil {
			return to
		}
	}
	t.Fatal(err)
	return ""
}

// TestFlowLogIsOffUnlessAskedFor: without a log nothing is counted, marked or written;
// switched off again, nothing is left but the files.
func TestFlowLogIsOffUnlessAskedFor(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := open2(corp("u1"))
	a, b := twoMembers(g)
	n := l.up(logFast)
	cfg := hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}}
	l.set(n, cfg)
	path := n.vnets["u1"].at.path
	values := func() (out []string) {
		in(t, path, func() error {
			for _, key := range []string{"acct", "timestamp", "events"} {
				v, err := readSysctl("netfilter/nf_conntrack_" + key)
				if err != nil {
					return err
				}
				out = append(out, v)
			}
			return nil
		})
		return out
	}
	check := func(want []string, marks bool) {
		t.Helper()
		if diff := cmp.Diff(want, values()); diff != "" {
			t.Errorf("the kernel counts: %s", diff)
		}
		if got := strings.Contains(nft(t, path, "list", "ruleset"), "ct mark set"); got != marks {
			t.Errorf("the rules mark flows: %v, want %v", got, marks)
		}
	}
	check([]string{"0", "0", "2"}, false)
	if _, err := os.Stat(filepath.Join(l.state, "flowlogs")); err == nil {
		t.Error("there is a directory for flow logs")
	}
	cfg.VNets[0] = logging(g, "data")
	l.set(n, cfg)
	check([]string{"1", "1", "1"}, true)
	cfg.VNets[0] = g
	l.set(n, cfg)
	check([]string{"0", "0", "2"}, false)
}

// TestFlowLogEndsWithItsNetwork: flows that live when their network goes get their end.
func TestFlowLogEndsWithItsNetwork(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := logging(open2(corp("u1")), "data")
	a, b := twoMembers(g)
	n := l.up(logFast)
	s := l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{a, b}})
	server := listenDatagram(t, portOf(t, s, b), b.Address.String()+":5353")
	c := dialDatagram(t, portOf(t, s, a), b.Address.String()+":5353")
	if _, err := c.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := server.ReadFrom(make([]byte, 200)); err != nil {
		t.Fatal(err)
	}
	l.set(n, hostnet.Config{})
	got, lost := l.logOf("data")
	got = ofPort(got, portOfConn(c))
	if sent, _ := sum(got); strings.ReplaceAll(states(got), "C", "") != "BE" || sent != (flowlog.Counters{Packets: 1, Bytes: 128}) || lost != (flowlog.Lost{}) {
		t.Errorf("lost %+v, entries%s", lost, show(got))
	}
}

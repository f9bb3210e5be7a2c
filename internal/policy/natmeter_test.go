package policy

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNATAccount(t *testing.T) {
	t.Parallel()
	count := func(names ...string) NATCounts {
		out := NATCounts{}
		for _, n := range names {
			name, value, _ := strings.Cut(n, "=")
			v, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = NATCount{Packets: v, Bytes: 100 * v}
		}
		return out
	}
	all := count("from_inside=90", "from_outside=50", "passed_out=80", "passed_in=45", "attempted=20", "no_port=2",
		"established=12", "refused=2", "closed=5")
	for name, c := range map[string]struct {
		before NATCounts
		flows  NATFlows
		after  NATCounts
		want   NATTotals
	}{
		"nothing yet": {before: NATCounts{}, after: NATCounts{}},
		"at rest": {
			// 18 flows: 12 established (5 closed, 4 go on, so 3 timed out), 2 refused, 1 waits, so 3 had no answer.
			before: all, after: all, flows: NATFlows{Waiting: 1, Established: 4, Closed: 2, Refused: 1},
			want: NATTotals{BytesOut: 8000, BytesIn: 4500, PacketsOut: 78, PacketsIn: 45, Dropped: 17,
				Attempted: 20, Established: 12, Failed: 2 + 2 + 3, Closed: 5, TimedOut: 3},
		},
		"what moves meanwhile is not lost yet": {
			before: count("attempted=1", "established=1"),
			flows:  NATFlows{Closed: 1},
			after:  count("attempted=1", "established=1", "closed=1"),
			want:   NATTotals{Attempted: 1, Established: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, NATAccount(c.before, c.flows, c.after)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNATTotalsNeverGoBack(t *testing.T) {
	t.Parallel()
	last := NATTotals{Failed: 3, Attempted: 7}
	if got, want := (NATTotals{Failed: 2, Attempted: 9}).Since(last), (NATTotals{Failed: 3, Attempted: 9}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// meter puts the meter beside the lab's rules; two ports of each address remain.
func (n *natLab) meter() {
	n.t.Helper()
	text, err := CompileNATMeter("in0", "out0")
	if err != nil {
		n.t.Fatal(err)
	}
	n.nft("nat", text)
	rules, err := CompileNAT(natInput())
	if err != nil {
		n.t.Fatal(err)
	}
	few := strings.ReplaceAll(rules, natPorts, "1024-1025")
	if few == rules {
		n.t.Fatal("the rules name no ports")
	}
	n.nft("nat", few)
}

var counterForm = regexp.MustCompile(`counter (\w+) {\s+packets (\d+) bytes (\d+)`)

func (n *natLab) counts() NATCounts {
	n.t.Helper()
	out := NATCounts{}
	text := n.run("", "ip", "netns", "exec", n.prefix+"nat", "nft", "list", "counters", "table", "ip", NATMeterTable)
	for _, m := range counterForm.FindAllStringSubmatch(text, -1) {
		packets, _ := strconv.ParseUint(m[2], 10, 64)
		bytes, _ := strconv.ParseUint(m[3], 10, 64)
		out[m[1]] = NATCount{packets, bytes}
	}
	for _, name := range NATMeterCounters("in0", "out0") {
		if _, ok := out[name]; !ok {
			n.t.Fatalf("the kernel has no counter %s:\n%s", name, text)
		}
	}
	stats := n.run("", "ip", "netns", "exec", n.prefix+"nat", "cat", "/proc/net/stat/nf_conntrack")
	rows := strings.Split(strings.TrimSpace(stats), "\n")
	for i, column := range strings.Fields(rows[0]) {
		if column != "insert_failed" {
			continue
		}
		for _, row := range rows[1:] {
			v, err := strconv.ParseUint(strings.Fields(row)[i], 16, 32)
			if err != nil {
				n.t.Fatal(err)
			}
			out[MeterNoPort] = NATCount{Packets: out[MeterNoPort].Packets + v}
		}
	}
	return out
}

func (n *natLab) tracked() (out NATFlows) {
	n.t.Helper()
	n.in("nat", func() error {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range list {
			out.Add(f.Mark)
		}
		return err
	})
	return out
}

func (n *natLab) forget() {
	n.t.Helper()
	n.in("nat", func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// until waits until the account is as wanted; packets on their way arrive meanwhile.
func (n *natLab) until(what string, want NATTotals) {
	n.t.Helper()
	var got NATTotals
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		before := n.counts()
		got = NATAccount(before, n.tracked(), n.counts())
		got.BytesOut, got.BytesIn, got.PacketsOut, got.PacketsIn = 0, 0, 0, 0
		if got == want {
			return
		}
	}
	n.t.Fatalf("%s: the account is not as wanted (-want +got):\n%s", what, cmp.Diff(want, got))
}

// TestKernelNATMeterCountsEachFlowOnce sends one flow of each fate.
func TestKernelNATMeterCountsEachFlowOnce(t *testing.T) {
	t.Parallel()
	n := newNATLab(t)
	n.meter()
	l := n.listen("out", "192.0.2.2:443")
	connect := func() (client, server net.Conn) {
		client, err := n.dial("in", "10.20.0.4:0", "192.0.2.2:443")
		if err != nil {
			t.Fatal(err)
		}
		return client, accept(t, l)
	}
	client, server := connect()
	n.until("one goes on", NATTotals{Attempted: 1, Established: 1})
	pass(t, client, server, "question")
	pass(t, server, client, "answer")
	n.until("and is counted once", NATTotals{Attempted: 1, Established: 1})
	connect() // the second of two ports
	if _, err := n.dial("in", "10.20.0.5:0", "192.0.2.2:443"); err == nil {
		t.Fatal("a third flow to the same destination found a third of two ports")
	}
	// How many packets the dial sent before it gave up is up to the clock: each asks for a port.
	tries := n.counts()[MeterAttempted].Packets - 2
	if tries == 0 {
		t.Fatal("the third flow did not ask for a port")
	}
	want := NATTotals{Attempted: 2 + tries, Established: 2, Failed: tries, Dropped: tries}
	n.until("no port", want)
	if _, err := n.dial("in", "10.20.0.5:0", "192.0.2.2:444"); err == nil {
		t.Fatal("nothing listens there")
	}
	want.Attempted, want.Failed = want.Attempted+1, want.Failed+1
	n.until("refused", want)
	client.Close()
	server.Close()
	want.Closed++
	n.until("closed", want)
	n.forget()
	want.TimedOut++
	n.until("one that went on timed out", want)
	send(t, n.raw["in"], packet(Flow{Source: addr("10.20.0.4"), Destination: addr("192.0.2.99"), Protocol: core.ProtocolUDP, SourcePort: 7, DestinationPort: 7}, 1))
	want.Attempted++
	n.until("nobody answers", want)
	n.forget()
	want.Failed++
	n.until("nobody answered", want)
}

func TestKernelNATMeterCountsPacketsAndBytes(t *testing.T) {
	t.Parallel()
	n := newNATLab(t)
	n.meter()
	udp := Flow{Source: addr("10.20.0.4"), Destination: addr("192.0.2.2"), Protocol: core.ProtocolUDP, SourcePort: 5000, DestinationPort: 5000}
	esp := udp
	esp.Protocol = core.ProtocolESP
	size := uint64(len(packet(udp, 1)))
	for i := range 10 {
		send(t, n.raw["in"], packet(udp, uint16(100+i)))
	}
	for range 3 {
		send(t, n.raw["in"], packet(esp, 50))
	}
	stray := Flow{Source: addr("192.0.2.2"), Destination: addr("192.0.2.1"), Protocol: core.ProtocolUDP, SourcePort: 9, DestinationPort: 9}
	send(t, n.raw["out"], packet(stray, 60))
	var got NATTotals
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c := n.counts()
		if got = NATAccount(c, n.tracked(), c); got.PacketsOut >= 10 && got.Dropped >= 4 {
			break
		}
	}
	// Nothing listens: what comes back is one ICMP error for each datagram, at the most.
	if got.PacketsOut != 10 || got.BytesOut != 10*size || got.Dropped != 4 || got.Attempted != 1 || got.Established != 0 {
		t.Errorf("10 datagrams of %d bytes, 3 of ESP, 1 from outside: %+v", size, got)
	}
}

func TestNATMeterRefusesBadNames(t *testing.T) {
	t.Parallel()
	if _, err := CompileNATMeter("in0", "out 0"); err == nil {
		t.Error("an interface with a blank in its name was taken")
	}
	a, b := NATMeterCounters("in0", "out0"), NATMeterCounters("in0", "out1")
	if fmt.Sprint(a) == fmt.Sprint(b) {
		t.Error("two texts have one version")
	}
}

package flowlog

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sluice-gateway/sluice/internal/core"
)

func testLedger(t *testing.T, dir string) *ledger {
	t.Helper()
	l, err := openLedger(dir, "data", Record{Tenant: "default", VirtualNetwork: "corp"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	l.set(core.FlowLog{Enabled: true})
	return l
}

var allowed = decision{"data", "allow-db", core.Inbound}

func testConn(port uint16, packets uint64) conn {
	return conn{
		FiveTuple: FiveTuple{netip.MustParseAddr("10.0.0.4"), netip.MustParseAddr("10.0.1.4"), port, 5432, 6},
		sent:      Counters{packets, 100 * packets}, received: Counters{2 * packets, 300 * packets}, start: noon.Add(-time.Second), stop: noon.Add(time.Second),
	}
}

func written(t *testing.T, l *ledger) (out []string, lost Lost) {
	t.Helper()
	records, err := l.files.since(position{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.Lost != nil {
			lost.add(*r.Lost)
		}
		for _, g := range r.FlowRecords.Flows[0].FlowGroups {
			for _, s := range g.FlowTuples {
				out = append(out, g.Rule+" "+s)
			}
		}
	}
	return out, lost
}

func flush(t *testing.T, l *ledger) {
	t.Helper()
	l.gather()
	if err := l.flush(noon); err != nil {
		t.Fatal(err)
	}
}

func TestEntriesOfAFlow(t *testing.T) {
	l := testLedger(t, t.TempDir())
	c := testConn(40000, 1)
	for i := range 3 {
		c.sent.Packets += uint64(i)
		l.live(noon.Add(time.Duration(i)*time.Minute), c, allowed)
		l.swept(noon, true)
	}
	c.closed = true // nothing was added: no further entry
	l.live(noon.Add(3*time.Minute), c, allowed)
	c.stop = noon.Add(200 * time.Second)
	l.end(c, allowed)
	short := testConn(40001, 7)
	short.stop = noon
	l.end(short, allowed)
	l.deny(noon, FiveTuple{Source: c.Destination, Destination: c.Source, Protocol: 1}, decision{"data", "deny-all", core.Outbound}, 84)
	l.deny(noon, FiveTuple{Source: c.Destination, Destination: c.Source, Protocol: 1}, decision{"data", "deny-all", core.Outbound}, 84)
	flush(t, l)
	want := []string{
		"allow-db 1795436999000,10.0.0.4,10.0.1.4,40000,5432,6,I,B,NX,0,0,0,0",
		"allow-db 1795436999000,10.0.0.4,10.0.1.4,40001,5432,6,I,B,NX,0,0,0,0",
		"allow-db 1795437000000,10.0.0.4,10.0.1.4,40001,5432,6,I,E,NX,7,700,14,2100",
		"allow-db 1795437060000,10.0.0.4,10.0.1.4,40000,5432,6,I,C,NX,2,100,2,300",
		"allow-db 1795437120000,10.0.0.4,10.0.1.4,40000,5432,6,I,C,NX,2,0,0,0",
		"allow-db 1795437200000,10.0.0.4,10.0.1.4,40000,5432,6,I,E,NX,0,0,0,0",
		"deny-all 1795437000000,10.0.1.4,10.0.0.4,0,0,1,O,D,NX,2,168,0,0",
	}
	got, lost := written(t, l)
	if diff := cmp.Diff(want, got); diff != "" || lost != (Lost{}) {
		t.Errorf("lost %+v: %s", lost, diff)
	}
}

// TestEntriesStandInTheOrderOfTheirTimes, under each rule, in whatever order they came; of
// one flow no end stands before what goes on, though the kernel dates it back.
func TestEntriesStandInTheOrderOfTheirTimes(t *testing.T) {
	l := testLedger(t, t.TempDir())
	late, early := testConn(40000, 1), testConn(40001, 1)
	early.start = late.start.Add(-5 * time.Second)
	l.live(noon, late, allowed)
	l.live(noon, early, allowed)
	late.sent.Packets++
	l.live(noon.Add(time.Minute), late, allowed)
	late.stop = noon.Add(30 * time.Second)
	l.end(late, allowed)
	denied := decision{"data", "deny-all", core.Outbound}
	for i := range uint16(20) {
		l.deny(noon.Add(time.Duration(20-i)*time.Second), FiveTuple{Source: late.Source, Destination: late.Destination, DestinationPort: i, Protocol: 6}, denied, 60)
	}
	other := FiveTuple{Source: late.Destination, Destination: late.Source, SourcePort: 7, DestinationPort: 8, Protocol: 17}
	l.pass(noon.Add(2*time.Second), other, allowed, 60)
	l.pass(noon.Add(3*time.Second), other, allowed, 40)
	flush(t, l)
	lines, _ := written(t, l)
	var got []string
	last := map[string]string{}
	for _, line := range lines {
		rule, tuple, _ := strings.Cut(line, " ")
		when, _, _ := strings.Cut(tuple, ",")
		if when < last[rule] {
			t.Errorf("%s stands behind %s", line, last[rule])
		}
		if last[rule] = when; rule == allowed.rule {
			got = append(got, tuple)
		}
	}
	want := []string{
		"1795436994000,10.0.0.4,10.0.1.4,40001,5432,6,I,B,NX,0,0,0,0",
		"1795436999000,10.0.0.4,10.0.1.4,40000,5432,6,I,B,NX,0,0,0,0",
		"1795437002000,10.0.1.4,10.0.0.4,7,8,17,I,B,NX,0,0,0,0",
		"1795437003000,10.0.1.4,10.0.0.4,7,8,17,I,E,NX,2,100,0,0",
		"1795437060000,10.0.0.4,10.0.1.4,40000,5432,6,I,C,NX,2,100,2,300",
		"1795437060000,10.0.0.4,10.0.1.4,40000,5432,6,I,E,NX,0,0,0,0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestStateOutlivesACrash kills the writer at each point between flush and save: the flows
// that the next one knows are those of the log.
func TestStateOutlivesACrash(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	c := testConn(40000, 1)
	check := func(when string) {
		t.Helper()
		again := testLedger(t, dir)
		if diff := cmp.Diff(l.flows, again.flows, cmp.AllowUnexported(flowState{}), cmpopts.IgnoreFields(flowState{}, "seen", "missed"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
	}
	l.live(noon, c, allowed)
	flush(t, l)
	check("a beginning, never saved")
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	check("saved")
	c.sent.Packets = 5
	l.live(noon, c, allowed)
	l.live(noon, testConn(40001, 9), allowed)
	flush(t, l)
	check("more after the save")
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	l.end(c, allowed)
	flush(t, l)
	check("an end after the save")
	again := c // the same ports once more, ended and begun under another rule within one flush
	again.start, again.stop = noon.Add(time.Second), noon.Add(2*time.Second)
	l.live(noon, again, allowed)
	flush(t, l)
	check("the ports again")
	l.end(again, allowed)
	again.start = noon.Add(3 * time.Second)
	l.live(noon, again, decision{"data", "a-rule-that-sorts-before", core.Inbound})
	flush(t, l)
	check("the ports again, under another rule")
}

func TestAFlowThatNobodySawEnd(t *testing.T) {
	l := testLedger(t, t.TempDir())
	l.live(noon, testConn(40000, 1), allowed)
	l.swept(noon, true)
	l.swept(noon, true)
	l.swept(noon, false) // not all flows were read: that says nothing
	if len(l.flows) != 1 {
		t.Error("the flow ended too early")
	}
	l.swept(noon, true)
	flush(t, l)
	got, lost := written(t, l)
	if len(got) != 2 || !strings.Contains(got[1], ",E,NX,0,0,0,0") || lost != (Lost{UnseenEnds: 1}) {
		t.Errorf("lost %+v: %q", lost, got)
	}
}

// TestWhatFindsNoRoomIsCounted holds that nothing is left out silently.
func TestWhatFindsNoRoomIsCounted(t *testing.T) {
	l := testLedger(t, t.TempDir())
	for i := range maxDenied + 10 {
		l.deny(noon, FiveTuple{Source: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Destination: netip.MustParseAddr("10.0.1.4")}, decision{"data", "deny-all", core.Inbound}, 40)
	}
	flush(t, l)
	if got, lost := written(t, l); len(got) != maxDenied || lost != (Lost{DeniedPackets: 10}) {
		t.Errorf("%d entries, lost %+v", len(got), lost)
	}
	l.waiting = maxPending
	l.live(noon, testConn(40000, 1), allowed)
	if l.lost != (Lost{Entries: 1}) {
		t.Errorf("lost %+v", l.lost)
	}
}

func FuzzParseTuple(f *testing.F) {
	f.Add("1795436999000,10.0.0.4,10.0.1.4,40000,5432,6,I,B,NX,0,0,0,0")
	f.Add("1,10.0.0.4,10.0.1.4,1,2,17,O,C,NX,18446744073709551615,1,2,3")
	f.Add(",,,,,,,,,,,,")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseTuple(s)
		if err != nil {
			return
		}
		b, err := ParseTuple(a.String())
		if err != nil || a.String() != b.String() {
			t.Errorf("%q became %q: %v", s, a, err)
		}
	})
}

func FuzzKernelMessages(f *testing.F) {
	f.Add([]byte{8, 0, 8, 0, 1, 2, 3, 4})
	f.Add([]byte{12, 0, 9, 0, 0x45, 0, 0, 40, 1, 2, 3, 4})
	f.Add([]byte{3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ok := parseConn(b); ok && !c.Source.Is4() {
			t.Errorf("a flow without source: %+v", c)
		}
		if d, ok := parseDenied(b); ok && (!d.Source.Is4() || d.rule.NSG == "") {
			t.Errorf("a packet without source or rule: %+v", d)
		}
	})
}

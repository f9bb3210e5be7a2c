package flowlog

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"golang.org/x/sys/unix"
)

// bench is a namespace with rules like those of a virtual network, on its loopback.
type bench struct {
	t      *testing.T
	ns     *os.File
	dir    string
	rules  Rules
	groups []core.NetworkSecurityGroup
}

const benchPort = 5353

// newBench denies port 9 and allows all else, outbound of the network security group out.
func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	b := &bench{t: t, dir: t.TempDir()}
	space, from := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/24")
	b.groups = []core.NetworkSecurityGroup{{Name: "out", FlowLog: core.FlowLog{Enabled: true, Interval: core.Duration(time.Second)}}}
	var err error
	b.rules, err = NewRules(core.GoalVNet{
		Name: "corp", AddressSpace: []netip.Prefix{space}, Subnets: []core.Subnet{{Name: "from", Prefix: from, NSG: "out"}}, NSGs: b.groups,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() { // the thread ends with the goroutine, the namespace stays with its file
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			b.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.ns.Close() })
	b.run("ip", "link", "set", "lo", "up")
	return b
}

func (b *bench) inside(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(b.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func (b *bench) run(name string, args ...string) {
	b.t.Helper()
	b.feed("", name, args...)
}

func (b *bench) feed(text, name string, args ...string) {
	b.t.Helper()
	err := b.inside(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// open opens the log with little room for messages, and puts the rules in force.
func (b *bench) open() *Log { return b.openWith(100*time.Millisecond, 16<<10) }

func (b *bench) openWith(every time.Duration, room int) *Log {
	b.t.Helper()
	l, err := Open(Options{
		Dir: b.dir, Tenant: "default", Network: "corp", Inside: b.inside, FlushEvery: every, ReceiveBuffer: room,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := l.Set(b.rules, b.groups); err != nil {
		b.t.Fatal(err)
	}
	b.feed(fmt.Sprintf(`table inet sluice {}
delete table inet sluice
table inet sluice {
	chain output {
		type filter hook output priority filter; policy accept
		ct state established accept
		udp dport 9 counter log prefix "out/closed/O" group 1 drop
		ct mark set 0x%08x
	}
}
`, b.rules.Mark), "nft", "-f", "-")
	return l
}

// flood sends so many packets, each from a port of its own, to one port.
func (b *bench) flood(packets, port int) {
	b.t.Helper()
	err := b.inside(func() error {
		for i := range packets {
			from := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 20_000 + i}
			c, err := net.DialUDP("udp4", from, &net.UDPAddr{IP: net.IPv4(127, 1, 0, 1), Port: port})
			if err != nil {
				return err
			}
			_, _ = c.Write([]byte("x")) // a denied one is refused
			c.Close()
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// read gives what the log has.
func (b *bench) read() (begun, ended int, denied uint64, lost Lost) {
	b.t.Helper()
	f := &files{dir: filepath.Join(b.dir, "default", "corp", "out")}
	records, err := f.since(position{})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range records {
		if r.Lost != nil {
			lost.add(*r.Lost)
		}
		for _, e := range r.entries() {
			switch e.State {
			case Begin:
				begun++
			case End:
				ended++
			case Deny:
				denied += e.Sent.Packets
			}
		}
	}
	return begun, ended, denied, lost
}

func (b *bench) await(what string, done func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			begun, ended, denied, lost := b.read()
			b.t.Fatalf("never: %s; %d beginnings, %d ends, %d denied, lost %+v", what, begun, ended, denied, lost)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestDeniedPacketsThatFindNoRoomAreCounted floods a log that does not read: what is
// written and what is lost are together what was denied.
func TestDeniedPacketsThatFindNoRoomAreCounted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open()
	b.flood(1, 9)
	b.await("the first denied packet", func() bool { _, _, denied, _ := b.read(); return denied == 1 })
	const packets = 5000
	l.mu.Lock()
	b.flood(packets, 9)
	l.mu.Unlock()
	b.flood(1, 9) // whose number tells how many are missing
	b.await("all packets, written or lost", func() bool {
		_, _, denied, lost := b.read()
		return denied+lost.DeniedPackets >= packets+2
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, denied, lost := b.read()
	if denied+lost.DeniedPackets != packets+2 || lost.DeniedPackets == 0 {
		t.Errorf("%d were written and %d lost of %d", denied, lost.DeniedPackets, packets+2)
	}
}

// TestEndsThatFindNoRoomComeLater: the kernel repeats the end of a flow, with its counters.
func TestEndsThatFindNoRoomComeLater(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open()
	const flows = 1000
	b.flood(flows, benchPort)
	l.mu.Lock()
	b.run("conntrack", "-F")
	l.mu.Unlock()
	b.await("the ends", func() bool { _, ended, _, _ := b.read(); return ended >= flows })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	begun, ended, _, lost := b.read()
	if begun != flows || ended != flows || lost.UnseenEnds != 0 || lost.DelayedEnds == 0 {
		t.Errorf("%d beginnings, %d ends, lost %+v", begun, ended, lost)
	}
}

// TestABeginningIsWrittenAtOnce, though nothing else is for an hour: each flow once, then
// its end with all of its packets. That flows begin while the log is looking changes nothing.
func TestABeginningIsWrittenAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.groups[0].FlowLog.Interval = core.Duration(time.Hour)
	l := b.openWith(time.Hour, 16<<20)
	b.await("the first reading of all flows", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.ledgers["out"].due.After(time.Now().Add(time.Minute))
	})
	want := 0
	for _, flows := range []int{1, 3, 300} {
		want += flows
		b.flood(flows, benchPort+want)
		b.await(fmt.Sprint(want, " beginnings"), func() bool { begun, _, _, _ := b.read(); return begun >= want })
	}
	if begun, ended, _, _ := b.read(); begun != want || ended != 0 {
		t.Errorf("%d beginnings and %d ends of %d flows that go on", begun, ended, want)
	}
	b.run("conntrack", "-F")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if begun, ended, _, lost := b.read(); begun != want || ended != want || lost.UnseenEnds != 0 {
		t.Errorf("%d beginnings and %d ends of %d flows, lost %+v", begun, ended, want, lost)
	}
}

// TestBeginningsCostAShare: the next reading waits in proportion to what the last one took.
func TestBeginningsCostAShare(t *testing.T) {
	b := begun{some: true}
	if !b.worthALook() {
		t.Error("the first one waits")
	}
	b.spent(time.Now().Add(-time.Minute))
	if wait := time.Until(b.next); b.worthALook() || wait < 40*time.Minute || wait > share*2*time.Minute {
		t.Errorf("after a reading of a minute the next one waits for %s", wait)
	}
}

// TestRulesOutliveARestart: a flow whose rules are long gone is known by its mark.
func TestRulesOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	v := core.GoalVNet{Name: "corp", NSGs: []core.NetworkSecurityGroup{{Name: "a", FlowLog: core.FlowLog{Enabled: true}}}}
	marks := map[uint32]bool{}
	h, err := openHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range keptRules + 3 {
		v.NSGs[0].Rules = []core.SecurityRule{{Name: fmt.Sprint("rule-", i), Priority: 100 + i, Direction: core.Inbound}}
		r, err := NewRules(v, nil)
		if err != nil {
			t.Fatal(err)
		}
		marks[r.Mark] = true
		if err := h.add(r); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	for m := range marks {
		if again.judge(m) != nil {
			known++
		}
	}
	if len(marks) != keptRules+3 || known != keptRules {
		t.Errorf("%d of %d are known, want %d", known, len(marks), keptRules)
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/flowlog"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// TestFlowLogCountsATransfer compares the log with counters that the kernel keeps on the
// server's machine, for what was allowed, and at the rule, for what was denied.
func TestFlowLogCountsATransfer(t *testing.T) {
	waiting.take(t)
	f := newFar(t, lanServer+"/24")
	s := stack.New(t)
	s.Up()
	t.Cleanup(func() { // a cleanup leaves the files
		s.Stop("up", syscall.SIGTERM)
		os.RemoveAll(filepath.Join(s.Run, "flowlogs"))
	})
	_, uplink := standing["a NIC"](t, f)
	network := strings.Replace(plant(uplink), "delegation: sluice/gateways", "delegation: sluice/gateways, nsg: watched", 1)
	s.Apply(network + fmt.Sprintf(`---
kind: NetworkSecurityGroup
name: watched
flowLog: {enabled: true, interval: 10s}
rules:
  - {name: database, priority: 100, direction: Outbound, access: Allow, protocol: TCP, destination: [%s], destinationPorts: ["%d"]}
  - {name: nothing-else, priority: 200, direction: Outbound, access: Deny, protocol: Any}
`, lanServer, f.pg.Port) + f.source("plant", lanServer))
	countTransfer(t, f)
	if got, r := ask(s, "plant", "select sum(length(l)) from (select repeat(md5(i::text), 40) l from generate_series(1, 3000) i) x"); got != "3840000" {
		t.Fatalf("the sum is %q: %+v", got, r)
	}
	if r := s.Sluice("query", "-s", "plant", "-o", "csv", "select repeat(md5(i::text), 40) from generate_series(1, 3000) i"); r.Exit != 0 || len(r.Out) < 3000*1280 {
		t.Fatalf("the transfer: exit status %d, %d bytes\n%s", r.Exit, len(r.Out), r.Err)
	}
	member := holder(t, s)
	eventually(t, 60*time.Second, "the flow that goes on has begun in the log", func() bool { return sums(t, s, member).open() > 0 })
	r := s.Sluice("check", "-g", gateway, "--timeout", "2s", "--to", lanServer+":81")
	if r.Exit != 1 || !strings.Contains(r.Out, "denied by rule watched/nothing-else (200)") {
		t.Fatalf("the check of a denied port: %+v", r)
	}
	s.Must("gateway", "pause", gateway) // its connections end
	var last string
	eventually(t, 90*time.Second, "the log has all of it", func() bool {
		got := sums(t, s, member)
		// After the log: the server may still say again what the member, which is gone, did not confirm.
		sent, received := counter(t, f.ns, "in"), counter(t, f.ns, "out")
		denied := ruleCounter(t, vnetSpace(t, s), "watched/nothing-else (200) outbound")
		if received.Bytes < 3000*1280 || denied.Packets == 0 {
			t.Fatalf("the kernel counted %+v of the server and %+v denied packets: nothing was transferred", received, denied)
		}
		want := fmt.Sprint("database ", sent, received, " nothing-else ", denied)
		if now := got.String(); now != last {
			last = now
			t.Logf("the log has %s; want %s", now, want)
		}
		if got.sent.Bytes > sent.Bytes || got.received.Bytes > received.Bytes || got.denied.Packets > denied.Packets {
			t.Fatalf("the log counts more than there was: %s; want %s", got, want)
		}
		return got.String() == want && got.open() == 0
	})
}

// countTransfer makes the server's machine count what comes in to the database and what
// goes out of it.
func countTransfer(t *testing.T, f *far) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", f.ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`table inet count {
	counter in {}
	counter out {}
	chain input { type filter hook input priority 0; tcp dport %[1]d counter name in; }
	chain output { type filter hook output priority 0; tcp sport %[1]d counter name out; }
}`, f.pg.Port))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

var counted = regexp.MustCompile(`packets (\d+) bytes (\d+)`)

func counter(t *testing.T, ns, name string) flowlog.Counters {
	t.Helper()
	return readCounter(t, nft(t, ns, "list", "counter", "inet", "count", name))
}

// ruleCounter is that of the rule with a comment.
func ruleCounter(t *testing.T, ns, comment string) flowlog.Counters {
	t.Helper()
	for line := range strings.Lines(nft(t, ns, "list", "ruleset")) {
		if strings.Contains(line, `comment "`+comment+`"`) && counted.MatchString(line) {
			return readCounter(t, line)
		}
	}
	t.Fatalf("%s has no rule %q that counts", ns, comment)
	return flowlog.Counters{}
}

func nft(t *testing.T, ns string, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", ns, "nft"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}

func readCounter(t *testing.T, text string) (c flowlog.Counters) {
	t.Helper()
	m := counted.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no counter in %q", text)
	}
	c.Packets, _ = strconv.ParseUint(m[1], 10, 64)
	c.Bytes, _ = strconv.ParseUint(m[2], 10, 64)
	return c
}

// logged is what the flow log has of a member's flows.
type logged struct {
	sent, received, denied flowlog.Counters
	last                   map[loggedFlow]flowlog.Tuple // of each flow
}

// loggedFlow is what entries of one flow have in common.
type loggedFlow struct {
	rule string
	flowlog.FiveTuple
	core.Direction
}

// open counts the flows that have begun and not ended.
func (l logged) open() (n int) {
	for _, t := range l.last {
		if t.State == flowlog.Begin || t.State == flowlog.Continue {
			n++
		}
	}
	return n
}

// String implements fmt.Stringer.
func (l logged) String() string {
	return fmt.Sprint("database ", l.sent, l.received, " nothing-else ", l.denied)
}

func sums(t *testing.T, s *stack.Stack, member netip.Addr) (out logged) {
	t.Helper()
	out.last = map[loggedFlow]flowlog.Tuple{}
	names, err := filepath.Glob(filepath.Join(s.Run, "flowlogs", "default", "plant", "watched", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var file struct{ Records []flowlog.Record }
		if err := json.Unmarshal(text, &file); err != nil {
			t.Fatalf("%s is not whole: %v", name, err)
		}
		for _, r := range file.Records {
			for _, acl := range r.FlowRecords.Flows {
				for _, g := range acl.FlowGroups {
					for _, line := range g.FlowTuples {
						out.add(t, g.Rule, line, member)
					}
				}
			}
		}
	}
	return out
}

func (l *logged) add(t *testing.T, rule, line string, member netip.Addr) {
	t.Helper()
	tuple, err := flowlog.ParseTuple(line)
	switch {
	case err != nil:
		t.Fatal(err)
	case tuple.Source != member:
		t.Errorf("a flow of another: %s", line)
	case tuple.Direction != core.Outbound:
		t.Errorf("nothing begins outside: %s", line)
	case (rule == "nothing-else") != (tuple.State == flowlog.Deny):
		t.Errorf("an entry in the state %v under the rule %s: %s", tuple.State, rule, line)
	case rule == "database":
		l.follows(t, loggedFlow{rule, tuple.FiveTuple, tuple.Direction}, tuple)
		plus(&l.sent, tuple.Sent)
		plus(&l.received, tuple.Received)
	case rule == "nothing-else":
		plus(&l.denied, tuple.Sent)
	default:
		t.Errorf("a flow of the rule %s: %s", rule, line)
	}
}

// follows holds that a flow begins, goes on and ends, in this order.
func (l *logged) follows(t *testing.T, f loggedFlow, now flowlog.Tuple) {
	t.Helper()
	before, known := l.last[f]
	fresh := !known || before.State == flowlog.End
	if fresh != (now.State == flowlog.Begin) || now.State == flowlog.Begin && now.Sent.Packets+now.Received.Packets != 0 || now.Time.Before(before.Time) {
		t.Errorf("after %s came %s", before, now)
	}
	l.last[f] = now
}

func plus(to *flowlog.Counters, c flowlog.Counters) {
	to.Packets, to.Bytes = to.Packets+c.Packets, to.Bytes+c.Bytes
}

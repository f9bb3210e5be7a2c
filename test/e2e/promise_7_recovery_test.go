package e2e

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// TestPromise7ChaosRecovers kills host, service and members at random points of
// injections and queries for a minute. Afterwards everything agrees, a query works, no
// address was held twice at any time, and a pause leaves nothing.
func TestPromise7ChaosRecovers(t *testing.T) {
	busy.take(t)
	l := newLab(t, sharedPG(t), "--quarantine", "200ms")
	watch := watchAddresses(t, l.corp)
	rng := seeded(t)
	var wg sync.WaitGroup
	var good, bad atomic.Int64
	enough := func() bool { return watch.samples.Load() >= 50 && good.Load() >= 3 && bad.Load() >= 3 }
	ctx, cancel := chaosContext(time.Minute, enough)
	defer cancel()
	for i := range 3 {
		wg.Go(func() { l.keepQuerying(ctx, i, &good, &bad) })
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(400 * time.Millisecond)
			pause, stop := context.WithTimeout(ctx, 3*time.Second)
			_ = l.api.Gateway(pause, "pause", gateway) // so that there are injections to hit
			stop()
		}
	})
	m := newMonkey(l, rng)
	for ctx.Err() == nil {
		m.pause(1200)
		m.strike()
	}
	wg.Wait()
	l.Ready()
	begun := time.Now()
	worksAgain(t, l.api, 90*time.Second)
	t.Logf("strikes %v; %d queries worked and %d failed meanwhile; recovered after %v", m.strikes, good.Load(), bad.Load(), time.Since(begun))
	checkSettled(t, l)
	watch.end()
	if !enough() {
		t.Errorf("%d samples, %d good and %d bad queries: too little for this test to mean anything", watch.samples.Load(), good.Load(), bad.Load())
	}
	l.checkPauseLeavesNothing(t)
	l.checkDeleteLeavesNothing(t)
}

// keepQuerying runs short and long queries until ctx ends. A query must end in bounded
// time, whatever dies.
func (l *lab) keepQuerying(ctx context.Context, i int, good, bad *atomic.Int64) {
	sql := []string{"select 1", "select g, md5(g::text) from generate_series(1, 300000) g", "select pg_sleep(0.3)"}[i]
	sql += " -- of " + l.Instance() // the server is others', too
	for ctx.Err() == nil {
		bound, stop := context.WithTimeout(context.Background(), queryBound)
		begun := time.Now()
		err := tryQuery(bound, l.api, sql)
		if took := time.Since(begun); took >= queryBound {
			l.t.Errorf("%s ended after %v only: %v", sql, took, err)
		}
		stop()
		if err == nil {
			good.Add(1)
			continue
		}
		bad.Add(1)
		time.Sleep(10 * time.Millisecond)
	}
}

// checkPauseLeavesNothing pauses the gateway and looks for what is left of its members.
func (l *lab) checkPauseLeavesNothing(t *testing.T) {
	t.Helper()
	l.Must("gateway", "pause", gateway)
	for _, lease := range objects[core.Lease](t, l.api, "leases") {
		if lease.State == core.LeaseHeld {
			t.Errorf("after the pause %s still holds %s", lease.Member, lease.Address)
		}
	}
	eventually(t, 60*time.Second, "containers and namespaces of members are gone", func() bool {
		return len(l.containers()) == 0 && len(l.spaces("m")) == 0
	})
	bundles, _ := filepath.Glob(l.Run + "/members/bundles/m-*")
	if len(bundles) > 0 {
		t.Errorf("bundles are left: %v", bundles)
	}
	for _, space := range append(l.spaces("v"), l.spaces("t")...) {
		links, err := commandIn(space, "ip", "-o", "link")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(links) {
			if w := strings.Fields(line); len(w) > 1 && (w[1][0] == 'm' || w[1][0] == 't') {
				t.Errorf("a member's interface is left in %s: %s", space, line)
			}
		}
	}
	eventually(t, 60*time.Second, "no query of the installation runs at the data source", func() bool { return l.activity("-- of "+l.Instance()) == 0 })
}

// checkDeleteLeavesNothing deletes what needs a network, which then goes without any help.
func (l *lab) checkDeleteLeavesNothing(t *testing.T) {
	t.Helper()
	for _, object := range [][2]string{{"datasource", source}, {"gateway", gateway}, {"privateendpoint", "orders-db"}} {
		l.Must("delete", object[0], object[1])
	}
	var left []string
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		left = append(append(l.spaces("m"), l.spaces("v")...), l.spaces("n")...)
		tables, _ := exec.Command("nft", "list", "tables").CombinedOutput()
		if strings.Contains(string(tables), l.Instance()) {
			left = append(left, string(tables))
		}
		links, _ := net.Interfaces()
		for _, link := range links {
			if strings.HasPrefix(link.Name, "s"+l.Instance()+"-") {
				left = append(left, link.Name)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("after everything was deleted there is still: %v", left)
}

// TestPromise7Reboot takes away what a reboot takes: every process, every namespace,
// interface and table, and what is below /run. The data directory stays.
func TestPromise7Reboot(t *testing.T) {
	busy.take(t)
	l := newLab(t, sharedPG(t))
	l.value("select 1")
	before := onlyMember(t, l.api)
	l.kill("host")
	l.kill("service")
	l.pullThePlug(t)
	if left := l.Leftovers(); len(left) > 0 {
		t.Fatalf("the simulated reboot left:\n%s", strings.Join(left, "\n"))
	}
	l.startService()
	l.startHost()
	l.Ready()
	begun := time.Now()
	worksAgain(t, l.api, 90*time.Second)
	t.Logf("recovered after %v", time.Since(begun))
	checkSettled(t, l)
	after := onlyMember(t, l.api)
	if after.ID == before.ID && after.Generation == before.Generation && after.Address != before.Address {
		t.Errorf("member %s has moved from %s to %s", after.ID, before.Address, after.Address)
	}
	l.checkPauseLeavesNothing(t)
}

// pullThePlug removes everything of the installation that a reboot would.
func (l *lab) pullThePlug(t *testing.T) {
	t.Helper()
	killAll(append(slices.Collect(maps.Values(l.containers())), l.Splicers()...))
	eventually(t, 60*time.Second, "the containers have ended", func() bool { return len(l.containers()) == 0 })
	for _, kind := range []string{"m", "v", "n", "t", "b"} {
		for _, space := range l.spaces(kind) {
			run1(t, "ip", "netns", "del", filepath.Base(space))
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if strings.HasPrefix(link.Name, "s"+l.Instance()+"-") {
			_ = exec.Command("ip", "link", "del", link.Name).Run() // its namespace may be just taking it along
		}
	}
	run1(t, "nft", "add table ip sluice-"+l.Instance()+"; delete table ip sluice-"+l.Instance())
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*/sluice-" + l.Instance())
	more, _ := filepath.Glob("/sys/fs/cgroup/sluice-" + l.Instance())
	for _, dir := range append(cgroups, more...) {
		run1(t, "find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";")
	}
	if err := os.RemoveAll(l.Run); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the interfaces are gone", func() bool { return len(l.Leftovers()) == 0 })
}

func run1(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestPromise7RestartsDisturbNothing restarts the host and the service, by signal and by
// force, while a member runs: it stays the same process with the same lease, its
// connections through the rules stay open, and the next query needs no injection.
func TestPromise7RestartsDisturbNothing(t *testing.T) {
	busy.take(t)
	l := newLab(t, sharedPG(t))
	l.rewrite("network.yaml", "priority: 4000, direction: Outbound, access: Deny", "priority: 4000, direction: Outbound, access: Allow")
	l.applyExample()
	l.Apply("kind: Gateway\nname: corp-two\nvnet: corp\nsubnet: gateways\n")
	l.value("select 1")
	m := l.memberOf(t, l.api, gateway)
	neighbour := l.memberOf(t, l.api, "corp-two")
	pid := l.pidOf(t, m)
	flow := openFlow(t, l.memberSpace(m), listenIn(t, l.memberSpace(neighbour), neighbour.Address.String()+":0"))
	for _, step := range []struct {
		name string
		sig  syscall.Signal
	}{{"host", syscall.SIGKILL}, {"host", syscall.SIGTERM}, {"service", syscall.SIGKILL}, {"service", syscall.SIGTERM}} {
		what := fmt.Sprintf("%s ended by signal %v", step.name, step.sig)
		l.Stop(step.name, step.sig)
		flow.check(t, what)
		if !alive(pid) {
			t.Fatalf("%s, and the member with it", what)
		}
		l.start(step.name)
		l.Ready()
		worksAgain(t, l.api, 60*time.Second)
		flow.check(t, what+" and is back")
		l.sameMember(t, m, pid, what)
	}
	eventually(t, 60*time.Second, "the last query is in the log", func() bool { return len(phasesOfLast(t, l)) > 0 })
	for _, p := range phasesOfLast(t, l) {
		if p.Name == core.PhaseInjected || p.Name == core.PhaseLeased {
			t.Errorf("the last query waited for an injection: %v", p)
		}
	}
}

// TestPromise7HostRestartKeepsQueries kills the host in the middle of a result: the
// result still comes whole, over the same connections.
func TestPromise7HostRestartKeepsQueries(t *testing.T) {
	busy.take(t)
	l := newLab(t, sharedPG(t))
	l.value("select 1")
	const rows = 400_000
	res, err := l.api.Query(t.Context(), client.Query{Source: source, SQL: fmt.Sprintf("select g, repeat('x', 100) from generate_series(1, %d) g", rows)}, client.MediaCSV)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for range 100 { // there is much more than the buffers on the way hold
		if !lines.Scan() {
			t.Fatalf("the result ended early: %v", lines.Err())
		}
	}
	splicers := l.Splicers()
	l.kill("host")
	l.startHost()
	l.Ready()
	got := 100
	for lines.Scan() {
		got++
	}
	if err := lines.Err(); err != nil || got != rows+1 { // and the header
		t.Errorf("%d lines and %v, want %d", got, err, rows+1)
	}
	if now := l.Splicers(); len(splicers) != 1 || len(now) != 1 || now[0] != splicers[0] {
		t.Errorf("the connections were joined by process %v and are by %v, want the same one", splicers, now)
	}
	worksAgain(t, l.api, 60*time.Second)
}

func phasesOfLast(t *testing.T, l *lab) []core.Phase {
	t.Helper()
	for _, q := range objects[core.Query](t, l.api, "queries") {
		if q.State == core.QuerySucceeded {
			return q.Phases
		}
	}
	return nil
}

// sameMember checks that a member is who it was.
func (l *lab) sameMember(t *testing.T, was core.Member, pid int, what string) {
	t.Helper()
	if now := l.pidOf(t, was); now != pid {
		t.Errorf("%s: the member's process was %d and is %d", what, pid, now)
	}
	held := 0
	for _, lease := range objects[core.Lease](t, l.api, "leases") {
		if lease.Member == was.ID && lease.Address == was.Address && lease.State == core.LeaseHeld && lease.Generation == was.Generation {
			held++
		}
	}
	if held != 1 {
		t.Errorf("%s: %d leases of the member, want the one that it had", what, held)
	}
	if n := len(l.containers()); n != 2 {
		t.Errorf("%s: %d containers, want the two that there were", what, n)
	}
}

// flow is a TCP connection from a member's namespace through the network's rules.
type flow struct {
	conn net.Conn
	in   *bufio.Reader
	sent int
}

func openFlow(t *testing.T, space, addr string) *flow {
	t.Helper()
	f := &flow{}
	err := nettest.In(space, func() (err error) {
		f.conn, err = net.DialTimeout("tcp4", addr, 30*time.Second)
		return err
	})
	if err != nil {
		t.Fatalf("connect from %s: %v", space, err)
	}
	t.Cleanup(func() { f.conn.Close() })
	f.in = bufio.NewReader(f.conn)
	f.check(t, "new")
	return f
}

// check sends a line and reads it back.
func (f *flow) check(t *testing.T, when string) {
	t.Helper()
	f.sent++
	_ = f.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintf(f.conn, "line %d\n", f.sent); err != nil {
		t.Fatalf("%s: the member's connection broke: %v", when, err)
	}
	line, err := f.in.ReadString('\n')
	if err != nil || line != fmt.Sprintf("line %d\n", f.sent) {
		t.Fatalf("%s: the member's connection gave %q, %v", when, line, err)
	}
}

// TestPromise7NothingGrowsInOneProcess runs 300 queries and 10 wakes and pauses with service and
// host in one process, and then finds as many descriptors, goroutines, namespaces and
// interfaces as before. The soak test does many more with both apart.
func TestPromise7NothingGrowsInOneProcess(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	api := c.Client()
	up := c.upPID(t)
	cycle := func(queries int) {
		t.Helper()
		for range queries {
			if err := tryQuery(t.Context(), api, "select g from generate_series(1, 100) g"); err != nil {
				t.Fatal(err)
			}
		}
		c.failSome(t, api)
		c.Must("gateway", "pause", gateway)
	}
	for range 3 {
		cycle(30)
	}
	eventually(t, 60*time.Second, "the pool is full", func() bool { return len(c.spaces("b")) == 1 })
	before := c.count(t, up)
	for range 10 {
		cycle(30)
	}
	var after usage
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if after = c.count(t, up); after.within(before) {
			break
		}
	}
	t.Logf("before %+v, after %+v", before, after)
	if !after.within(before) {
		t.Errorf("it grows: before %+v, after %+v", before, after)
	}
}

// failSome runs what leaves early: wrong queries and clients that go away.
func (c *corp) failSome(t *testing.T, api *client.Client) {
	t.Helper()
	if err := tryQuery(t.Context(), api, "selec 1"); err == nil {
		t.Error("a wrong query worked")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	mark := "left by a client of " + c.Instance()
	if err := tryQuery(ctx, api, "select pg_sleep(30) -- "+mark); err == nil {
		t.Error("a client that went away got a result")
	}
	eventually(t, 60*time.Second, "the query of a client that went away ends at the source", func() bool { return c.activity(mark) == 0 })
}

// usage is what must not grow.
type usage struct{ FDs, Goroutines, Spaces, Links int }

// within allows a few idle connections, far less than one thing per wake. Threads are
// not counted: the runtime keeps as many as it once needed, which a busy machine
// decides, and one that does not come back holds a goroutine.
func (u usage) within(before usage) bool {
	return u.FDs <= before.FDs+3 && u.Goroutines <= before.Goroutines+6 && u.Spaces <= before.Spaces && u.Links <= before.Links
}

func (c *corp) count(t *testing.T, pid int) usage {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	u := usage{FDs: len(fds), Goroutines: c.goroutines(t)}
	for _, kind := range []string{"m", "v", "n", "t", "b"} {
		for _, space := range c.spaces(kind) {
			u.Spaces++
			links, _ := commandIn(space, "ip", "-o", "link") // one that goes away has none
			u.Links += strings.Count(links, "link/ether")
		}
	}
	return u
}

// goroutines asks the installation how many it runs.
func (c *corp) goroutines(t *testing.T) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.HTTP+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			count, err := strconv.Atoi(n)
			if err != nil {
				t.Fatalf("/metrics: go_goroutines %q", n)
			}
			return count
		}
	}
	t.Fatal("/metrics has no go_goroutines")
	return 0
}

// upPID finds the process of "sluice up" by the lock that it holds.
func (c *corp) upPID(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(c.Data + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatalf("%s/lock: %q", c.Data, text)
	}
	return pid
}

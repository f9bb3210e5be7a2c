package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	netfake "github.com/sluice-gateway/sluice/internal/hostnet/fake"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/sandbox"
	boxfake "github.com/sluice-gateway/sluice/internal/sandbox/fake"
	"github.com/sluice-gateway/sluice/internal/splice"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// rig is a host on a machine in memory, and the service that the test plays.
type rig struct {
	t       *testing.T
	net     *netfake.Machine
	boxes   *boxfake.Machine
	pool    int
	look    time.Duration
	retry   time.Duration
	version int64
	service func(context.Context) (*net.TCPConn, error) // nil: there is none
	told    func([]core.TunnelReport)
	network *netfake.Network     // of the last start
	tunnel  func(int) netip.Addr // of a member
	deltas  bool                 // the service sends what changes, and takes it

	mu      sync.Mutex
	conn    net.Conn
	goal    core.GoalState
	report  core.HostReport
	holds   *hostapi.Holds
	whole   int // goal states that were sent as such
	changes int // what was sent in their place
	changed int // what came in place of reports
}

func newRig(t *testing.T) *rig {
	return &rig{
		t: t, net: netfake.NewMachine(), boxes: boxfake.NewMachine(nil), look: 10 * time.Millisecond, retry: 20 * time.Millisecond,
		tunnel: func(i int) netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, byte(i)}) },
	}
}

// start runs a host process on the rig's machine until stop.
func (r *rig) start() (stop func()) {
	r.network = netfake.New(r.net)
	h := New(Options{
		Name: "h", Network: r.network, Runtime: boxfake.New(r.boxes), Dial: r.dial,
		DialService: r.dialService, TellTunnels: r.told, Meter: 20 * time.Millisecond,
		Splicer: localSplicer(r.t), ServiceName: "service", ServiceCA: []byte("PEM"), Logger: slog.New(slog.DiscardHandler), Recheck: 50 * time.Millisecond, Look: r.look, Pool: r.pool,
	})
	h.pool.retry = r.retry
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Errorf("run: %v", err)
			}
		case <-time.After(10 * time.Second):
			r.t.Error("the host did not end within 10 s")
		}
	})
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) dialService(ctx context.Context) (*net.TCPConn, error) {
	if r.service == nil {
		return nil, errors.New("no service in this test")
	}
	return r.service(ctx)
}

// dial gives the host a connection to the played service.
func (r *rig) dial(context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	r.mu.Lock()
	r.conn, r.holds = b, nil
	goal := r.goal
	r.mu.Unlock()
	go func() {
		if goal.Version > 0 {
			_ = wire.Write(b, hostapi.ToHost{Goal: &goal, Deltas: r.deltas})
		}
		for {
			var msg hostapi.ToService
			if wire.Read(b, &msg, 0) != nil {
				return
			}
			r.heard(b, msg)
		}
	}()
	return a, nil
}

// heard takes in what the host says: a report, or what has changed since.
func (r *rig) heard(conn net.Conn, msg hostapi.ToService) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != conn {
		return
	}
	r.holds = msg.Holds
	switch c := msg.Changes; {
	case msg.Report != nil:
		r.report = *msg.Report
	case c != nil:
		r.changed++
		members := slices.DeleteFunc(r.report.Members, func(o core.ObservedMember) bool {
			return slices.Contains(c.Gone, hostapi.Gone{ID: o.ID, Generation: o.Generation}) ||
				slices.ContainsFunc(c.Members, func(n core.ObservedMember) bool { return keyOf(n) == keyOf(o) })
		})
		if c.SameTunnels {
			c.Tunnels = r.report.Tunnels
		}
		r.report = c.HostReport
		members = append(members, c.Members...)
		r.report.Members = members
	}
	if msg.Lost {
		r.whole++
		goal := r.goal
		go func() { _ = wire.Write(conn, hostapi.ToHost{Goal: &goal, Deltas: true}) }()
	}
}

// push sends the goal state, or what has changed between the one before and it, if the host
// is known to have that.
func (r *rig) push(goal core.GoalState) {
	r.mu.Lock()
	before, conn, msg := r.goal, r.conn, hostapi.ToHost{Goal: &goal, Deltas: r.deltas}
	r.goal = goal
	r.whole++
	if r.deltas && r.holds != nil && *r.holds == (hostapi.Holds{Version: before.Version, Sum: before.Sum()}) {
		d := &core.GoalDelta{Base: before.Version, Version: goal.Version, Members: goal.Members, Sum: goal.Sum()}
		d.Networks = &core.NetworksDelta{VNets: goal.VNets, All: []string{"v1"}}
		for _, m := range before.Members {
			if !slices.ContainsFunc(goal.Members, func(g core.GoalMember) bool { return g.ID == m.ID }) {
				d.Gone = append(d.Gone, m.ID)
			}
		}
		msg.Goal, msg.Delta = nil, d
		r.whole--
		r.changes++
	}
	r.mu.Unlock()
	if conn != nil {
		_ = wire.Write(conn, msg) // a new connection brings it again
	}
}

// want sends a goal state with these members.
func (r *rig) want(members ...int) {
	r.t.Helper()
	r.version++
	goal := core.GoalState{Version: r.version, VNets: []core.GoalVNet{{
		UID: "v1", Name: "corp", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		Subnets:     []core.Subnet{{Name: "s", Prefix: netip.MustParsePrefix("10.0.0.0/24"), Delegation: core.DelegationGateways}},
		NATGateways: []core.GoalNATGateway{{UID: "n1", NATGateway: core.NATGateway{Name: "egress", VNet: "corp"}}},
	}}}
	for _, i := range members {
		goal.Members = append(goal.Members, core.GoalMember{
			ID: fmt.Sprintf("m-%d", i), Generation: int64(i), Gateway: "g", VNetUID: "v1", Subnet: "s",
			Address:       netip.AddrFrom4([4]byte{10, 0, 0, byte(4 + i)}),
			TunnelAddress: r.tunnel(i),
		})
	}
	slices.SortFunc(goal.Members, func(a, b core.GoalMember) int { return strings.Compare(a.ID, b.ID) })
	r.push(goal)
}

func (r *rig) lastReport() core.HostReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report
}

func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	r.t.Fatalf("not within 10 s: %s\nsandboxes %v, ports %v, report %+v", what, r.boxes.IDs(), r.net.Ports(), r.lastReport())
}

// exists reports whether exactly these members' sandboxes and ports exist.
func (r *rig) exists(members ...int) bool {
	ids, ports := r.boxes.IDs(), r.net.Ports()
	if len(ids) != len(members) || len(ports) != len(members) {
		return false
	}
	have := map[string]bool{}
	for _, id := range ids {
		have[id] = true
	}
	for _, i := range members {
		if !have[fmt.Sprintf("m-%d-%d", i, i)] {
			return false
		}
	}
	return true
}

func (r *rig) observed(id string) (core.ObservedMember, bool) {
	for _, m := range r.lastReport().Members {
		if m.ID == id {
			return m, true
		}
	}
	return core.ObservedMember{}, false
}

func TestGoalBecomesTrue(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.want(1, 2)
	r.eventually("both run", func() bool { return r.exists(1, 2) })
	r.eventually("the report says so", func() bool {
		m, ok := r.observed("m-1")
		return ok && m.Running && m.JoinTokenHash != "" && r.lastReport().Version == 1 && r.lastReport().Complete
	})
	r.eventually("and tells of the NAT gateway", func() bool {
		list := r.lastReport().NATGateways
		return len(list) == 1 && list[0].UID == "n1" && list[0].Name == "egress" && list[0].Up
	})
	r.want(2)
	r.eventually("one is gone", func() bool { return r.exists(2) })
	r.eventually("the report says so", func() bool {
		_, ok := r.observed("m-1")
		return !ok && r.lastReport().Version == 2
	})
}

// The service hears of a member's join token before there is anything of the member, and
// the member gets that very token.
func TestTokenIsToldBeforeTheNetworkIsMade(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.net.Fail("member m-1", errors.New("no more veths"))
	r.start()
	r.want(1)
	var told core.ObservedMember
	r.eventually("the token's hash is told", func() (ok bool) { told, ok = r.observed("m-1"); return ok && told.JoinTokenHash != "" })
	if told.Present || told.Running {
		t.Errorf("of a member of which there is nothing: %+v", told)
	}
	r.net.Fail("member m-1", nil)
	r.eventually("it runs", func() bool { return r.exists(1) })
	var boot memberapi.Boot
	spec, _ := r.boxes.Spec("m-1-1")
	if err := json.Unmarshal(spec.Boot, &boot); err != nil || hashToken(boot.JoinToken) != told.JoinTokenHash {
		t.Errorf("its boot document has another token (%v)", err)
	}
	r.want()
	r.eventually("nothing is told of it any more", func() bool { _, ok := r.observed("m-1"); return !ok && r.lastReport().Version == 2 })
}

func TestRestartDisturbsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.start()
	r.want(1, 2)
	r.eventually("both run", func() bool { return r.exists(1, 2) })
	spec, _ := r.boxes.Spec("m-1-1")
	stop()
	r.start()
	r.eventually("the new process reports", func() bool {
		m, ok := r.observed("m-1")
		return ok && m.Running && m.JoinTokenHash == "" && r.lastReport().Complete
	})
	if again, _ := r.boxes.Spec("m-1-1"); string(again.Boot) != string(spec.Boot) {
		t.Error("the member was started again")
	}
}

func TestNothingIsStoppedBeforeTheServiceSpoke(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.start()
	r.want(1)
	r.eventually("it runs", func() bool { return r.exists(1) })
	stop()
	r.mu.Lock()
	r.goal = core.GoalState{} // the service is silent
	r.mu.Unlock()
	r.start()
	time.Sleep(300 * time.Millisecond)
	if ids := r.boxes.IDs(); len(ids) != 1 {
		t.Errorf("sandboxes %v, want the one that ran", ids)
	}
}

func TestMemberThatEndedIsReportedAndNotRestarted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.want(1)
	r.eventually("it runs", func() bool { return r.exists(1) })
	r.boxes.End("m-1-1", sandbox.Exit{OutOfMemory: true, Code: 137, Reason: "out of memory: the limit is 8192 MiB", LogTail: "first\nlast\n"})
	r.eventually("its end is reported", func() bool {
		m, ok := r.observed("m-1")
		return ok && !m.Running && m.Exit == "out of memory: the limit is 8192 MiB" && m.Wrote == "last"
	})
	time.Sleep(200 * time.Millisecond)
	if m, _ := r.observed("m-1"); m.Running {
		t.Error("it was started again: that is the service's decision")
	}
	r.want()
	r.eventually("it is removed", func() bool { return r.exists() })
}

func TestStartThatFailsIsReported(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.boxes.FailWith(func(op, _ string) error {
		if op == "start" {
			return errors.New("no more processes")
		}
		return nil
	})
	r.start()
	r.want(1)
	r.eventually("the reason is reported", func() bool {
		m, ok := r.observed("m-1")
		return ok && strings.Contains(m.Exit, "no more processes")
	})
}

func TestNetworkProblemIsReportedAndStartsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.net.Fail("member m-1", errors.New("no more veths"))
	r.start()
	r.want(1, 2)
	r.eventually("the problem is reported", func() bool {
		return strings.Contains(strings.Join(r.lastReport().Problems, " "), "no more veths")
	})
	r.eventually("the other member runs", func() bool { return len(r.boxes.IDs()) == 1 && r.boxes.IDs()[0] == "m-2-2" })
}

func TestBootHoldsWhatTheMemberNeeds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	r.want(3)
	r.eventually("it runs", func() bool { return r.exists(3) })
	spec, _ := r.boxes.Spec("m-3-3")
	var boot memberapi.Boot
	if err := json.Unmarshal(spec.Boot, &boot); err != nil {
		t.Fatal(err)
	}
	if boot.Member != "m-3" || boot.Generation != 3 || boot.JoinToken == "" || len(boot.DNSServers) == 0 || boot.ServiceCA != "PEM" {
		t.Errorf("boot document %+v lacks something", boot)
	}
	r.eventually("the token's hash is reported", func() bool {
		m, _ := r.observed("m-3")
		return m.JoinTokenHash == hashToken(boot.JoinToken)
	})
	for k, v := range spec.Labels {
		if strings.Contains(v, boot.JoinToken) {
			t.Errorf("label %s shows the join token", k)
		}
	}
}

// TestRandomWalk lets goals change, members end and the host die at random: at the end
// exactly what the last goal says exists.
func TestRandomWalk(t *testing.T) {
	t.Parallel()
	t.Run("whole goal states and reports", func(t *testing.T) { t.Parallel(); randomWalk(t, newRig(t)) })
	t.Run("what has changed", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.deltas = true
		randomWalk(t, r)
		if r.changes == 0 || r.changed == 0 {
			t.Errorf("%d changes were sent and %d came: want some", r.changes, r.changed)
		}
	})
}

func randomWalk(t *testing.T, r *rig) {
	rng := rand.New(rand.NewPCG(1, 7))
	stop := r.start()
	next := 0
	var current []int
	for range 120 {
		switch rng.IntN(5) {
		case 0, 1:
			next++
			current = append(current, next)
			r.want(current...)
		case 2:
			if len(current) > 0 {
				i := rng.IntN(len(current))
				current = append(current[:i:i], current[i+1:]...)
				r.want(current...)
			}
		case 3:
			if len(current) > 0 {
				i := current[rng.IntN(len(current))]
				r.boxes.End(fmt.Sprintf("m-%d-%d", i, i), sandbox.Exit{Code: 1, Reason: "exit status 1"})
			}
		case 4:
			stop()
			stop = r.start()
		}
		time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond)
	}
	r.want(current...)
	r.eventually("the last goal is true", func() bool { return r.exists(current...) && r.lastReport().Version == r.version })
}

func TestRunLeaksNoGoroutine(t *testing.T) {
	r := newRig(t)
	before := runtime.NumGoroutine()
	stop := r.start()
	r.want(1)
	r.eventually("it runs", func() bool { return r.exists(1) })
	stop()
	r.boxes.End("m-1-1", sandbox.Exit{})
	r.mu.Lock()
	r.conn.Close()
	r.mu.Unlock()
	r.eventually("goroutines end", func() bool { return runtime.NumGoroutine() <= before+1 })
}

// slowList lists, then waits for leave before it returns what it saw.
type slowList struct {
	sandbox.Runtime
	listed chan struct{}
	leave  chan struct{}
	arm    func() bool
	more   []sandbox.State // that it saw then, too
}

func (s *slowList) List(ctx context.Context) ([]sandbox.State, error) {
	out, err := s.Runtime.List(ctx)
	if s.arm() {
		s.listed <- struct{}{}
		<-s.leave
		out = append(out, s.more...)
	}
	return out, err
}

type slowStart struct {
	*slowList
	gate chan struct{}
	in   chan struct{}
}

func (s *slowStart) Start(ctx context.Context, spec sandbox.Spec) error {
	s.in <- struct{}{}
	<-s.gate
	return s.Runtime.Start(ctx, spec)
}

// a List that began before a container was there, or when half of it was, and whose answer
// comes after its start.
func TestSlowListJudgesNoNewMember(t *testing.T) {
	t.Parallel()
	for name, saw := range map[string][]sandbox.State{
		"no container yet": nil,
		"half of a start":  {{ID: "m-1-1", Exit: sandbox.Exit{Code: -1, Reason: "its start was interrupted"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slowListJudgesNoNewMember(t, saw)
		})
	}
}

func slowListJudgesNoNewMember(t *testing.T, saw []sandbox.State) {
	t.Helper()
	r := newRig(t)
	armed := make(chan bool, 1)
	sl := &slowList{Runtime: boxfake.New(r.boxes), more: saw, listed: make(chan struct{}), leave: make(chan struct{}), arm: func() bool {
		select {
		case <-armed:
			return true
		default:
			return false
		}
	}}
	rt := &slowStart{slowList: sl, gate: make(chan struct{}), in: make(chan struct{})}
	h := New(Options{Name: "h", Network: netfake.New(r.net), Runtime: rt, Dial: r.dial,
		DialService: func(context.Context) (*net.TCPConn, error) { return nil, errors.New("none") },
		Splicer:     localSplicer(r.t), ServiceName: "service", ServiceCA: []byte("PEM"), Logger: slog.New(slog.DiscardHandler), Recheck: 50 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	r.want(1)
	<-rt.in // the start is under way
	armed <- true
	<-sl.listed // the recheck has listed: no container yet
	rt.gate <- struct{}{}
	r.eventually("the container runs", func() bool { return len(r.boxes.IDs()) == 1 })
	time.Sleep(20 * time.Millisecond)
	sl.leave <- struct{}{}
	time.Sleep(100 * time.Millisecond)
	m, _ := r.observed("m-1")
	if m.Exit != "" {
		t.Errorf("a member that runs is reported as ended: %q (running on the machine: %v)", m.Exit, r.boxes.IDs())
	}
}

// hidingNet leaves a port out of one status although the machine still has it, as
// hostnet/linux does when its VNet or its port could not be set in that pass.
type hidingNet struct {
	*netfake.Network
	hide chan struct{}
}

func (n *hidingNet) Set(ctx context.Context, cfg hostnet.Config) (hostnet.Status, error) {
	s, err := n.Network.Set(ctx, cfg)
	select {
	case <-n.hide:
		s.Ports = map[hostnet.PortKey]string{}
	default:
	}
	return s, err
}

func TestOneBadPassDoesNotSpin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := &hidingNet{netfake.New(r.net), make(chan struct{}, 1)}
	h := New(Options{Name: "h", Network: n, Runtime: boxfake.New(r.boxes), Dial: r.dial,
		DialService: func(context.Context) (*net.TCPConn, error) { return nil, errors.New("none") },
		Splicer:     localSplicer(r.t), ServiceName: "service", ServiceCA: []byte("PEM"), Logger: slog.New(slog.DiscardHandler), Recheck: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	r.want(1)
	r.eventually("runs", func() bool { return r.exists(1) })
	n.hide <- struct{}{}
	time.Sleep(500 * time.Millisecond)
	begun, before := time.Now(), r.net.Sets()
	time.Sleep(2 * time.Second)
	passes := r.net.Sets() - before
	rechecks := int(time.Since(begun)/(200*time.Millisecond)) + 1
	if passes > rechecks+5 {
		t.Errorf("%d passes (the recheck explains %d) after one pass without the port", passes, rechecks)
	}
}

func localSplicer(t *testing.T) *splice.Splicer {
	s := splice.Local(slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	return s
}

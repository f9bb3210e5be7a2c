package flowlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Options configure the flow log of a virtual network.
type Options struct {
	// Dir is below which the logs of all virtual networks are: TENANT/NETWORK/NSG. Required.
	Dir string
	// Tenant and Network name the virtual network. Required.
	Tenant  core.TenantID
	Network string
	// Inside runs a function in a thread of the virtual network's namespace. Required.
	Inside func(func() error) error
	// FlushEvery is how long an entry other than a beginning waits before it is written.
	// Default 10 s.
	FlushEvery time.Duration
	// ReceiveBuffer is how many bytes of messages may wait in the kernel until they are
	// read. Default 16 MiB.
	ReceiveBuffer int
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Logger gets a line when the log cannot be written. Default: none.
	Logger *slog.Logger
}

// Log writes the flow logs of one virtual network.
type Log struct {
	o    Options
	dir  string
	stop context.CancelFunc
	work sync.WaitGroup

	ends, reports, begins *socket
	requests              *nl.SocketHandle

	mu      sync.Mutex
	history *history
	current *judge
	ledgers map[string]*ledger // by network security group
	flushed time.Time
	next    uint32 // the number of the next report of a denied packet
	counted bool   // next is known
	failing bool
	delays  time.Time // when the end of a flow last found no room
	begun   begun
}

// Open begins to follow the flows of a namespace. From its return on the kernel counts
// each new flow. Set says what is logged.
func Open(o Options) (*Log, error) {
	o.FlushEvery, o.ReceiveBuffer = cmp.Or(o.FlushEvery, 10*time.Second), cmp.Or(o.ReceiveBuffer, 16<<20)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{o: o, dir: filepath.Join(o.Dir, string(o.Tenant), o.Network), ledgers: map[string]*ledger{}, flushed: o.Now()}
	var err error
	if l.history, err = openHistory(filepath.Join(l.dir, hidden+"rules")); err != nil {
		return nil, l.failed(err)
	}
	if err := o.Inside(l.openSockets); err != nil {
		l.closeSockets()
		return nil, l.failed(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.work.Go(func() { l.listen(ctx, l.ends, l.ended, l.delayed) })
	l.work.Go(func() { l.listen(ctx, l.reports, l.reported, nil) })
	l.work.Go(func() { l.listen(ctx, l.begins, l.beginning, l.began) })
	l.work.Go(func() { l.tick(ctx) })
	return l, nil
}

func (l *Log) failed(err error) error {
	return fmt.Errorf("opening the flow log of virtual network %s: %w", l.o.Network, err)
}

// The values that make the kernel count, and what they are without a flow log.
func counting() map[string][2]string {
	return map[string][2]string{"nf_conntrack_acct": {"1", "0"}, "nf_conntrack_timestamp": {"1", "0"}, "nf_conntrack_events": {"1", "2"}}
}

func setCounting(on bool) error {
	for key, v := range counting() {
		value := v[1]
		if on {
			value = v[0]
		}
		if err := os.WriteFile("/proc/sys/net/netfilter/"+key, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// openSockets runs in the namespace.
func (l *Log) openSockets() (err error) {
	if l.ends, err = openEnds(l.o.ReceiveBuffer); err != nil {
		return fmt.Errorf("the ends of flows: %w", err)
	}
	if l.reports, err = openDenied(policy.FlowLogGroup, l.o.ReceiveBuffer); err != nil {
		return fmt.Errorf("denied packets: %w", err)
	}
	if l.begins, err = openBegins(); err != nil {
		return fmt.Errorf("the beginnings of flows: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	l.requests = &nl.SocketHandle{Socket: s}
	tv := unix.NsecToTimeval(int64(requestTimeout))
	return errors.Join(s.SetSendTimeout(&tv), s.SetReceiveTimeout(&tv), setCounting(true))
}

func (l *Log) closeSockets() {
	for _, s := range []*socket{l.ends, l.reports, l.begins} {
		if s != nil {
			s.file.Close()
		}
	}
	if l.requests != nil {
		l.requests.Close()
	}
}

// Set says which rules are in force from now on, and which network security groups log.
// It must be called before the kernel has the rules with their mark.
func (l *Log) Set(r Rules, groups []core.NetworkSecurityGroup) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.history.add(r); err != nil {
		return err
	}
	l.current = l.history.judge(r.Mark)
	on := map[string]bool{}
	for _, g := range groups {
		if !g.FlowLog.Enabled {
			continue
		}
		on[g.Name] = true
		if l.ledgers[g.Name] == nil {
			record := Record{Tenant: string(l.o.Tenant), VirtualNetwork: l.o.Network}
			n, err := openLedger(filepath.Join(l.dir, g.Name), g.Name, record, l.o.Now())
			if err != nil {
				return fmt.Errorf("opening the flow log of network security group %s: %w", g.Name, err)
			}
			l.ledgers[g.Name] = n
		}
		l.ledgers[g.Name].set(g.FlowLog)
	}
	for name := range l.ledgers {
		if !on[name] {
			if err := l.retire(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// retire writes what waits and forgets the flows of a group that logs no more.
func (l *Log) retire(name string) error {
	n := l.ledgers[name]
	delete(l.ledgers, name)
	clear(n.flows)
	n.gather()
	return errors.Join(n.flush(l.o.Now()), n.save())
}

// listen takes messages until ctx ends.
func (l *Log) listen(ctx context.Context, s *socket, fn func(syscall.NetlinkMessage), lost func()) {
	for ctx.Err() == nil {
		if _, err := s.take(l.locked(fn), lost); err != nil {
			if ctx.Err() == nil {
				l.o.Logger.Error("a flow log can't be followed any more", "vnet", l.o.Network, "error", err)
			}
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(gatherFor):
		}
	}
}

func (l *Log) locked(fn func(syscall.NetlinkMessage)) func(syscall.NetlinkMessage) {
	return func(m syscall.NetlinkMessage) {
		l.mu.Lock()
		defer l.mu.Unlock()
		fn(m)
	}
}

// decide gives what the rules said about a flow that passed them.
func (l *Log) decide(c conn) (out []decision, known bool) {
	j := l.history.judge(c.mark)
	if j == nil {
		return nil, false
	}
	return j.answer(c.FiveTuple).allowed, true
}

// ended takes the end of a flow.
func (l *Log) ended(m syscall.NetlinkMessage) {
	if m.Header.Type != unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE || len(m.Data) < nl.SizeofNfgenmsg {
		return
	}
	c, ok := parseConn(m.Data[nl.SizeofNfgenmsg:])
	if !ok || c.mark == 0 {
		return
	}
	if c.stop.IsZero() {
		c.stop = l.o.Now()
	}
	decisions, known := l.decide(c)
	if !known {
		l.lost(Lost{UnknownRules: 1})
	}
	for _, d := range decisions {
		if n := l.ledgers[d.nsg]; n != nil {
			n.end(c, d)
		}
	}
}

func (l *Log) delayed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost(Lost{DelayedEnds: 1})
	l.delays = l.o.Now()
}

// reported takes the report of a denied packet. Its number tells how many were lost.
func (l *Log) reported(m syscall.NetlinkMessage) {
	if m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|ulogPacket || len(m.Data) < nl.SizeofNfgenmsg {
		return
	}
	d, ok := parseDenied(m.Data[nl.SizeofNfgenmsg:])
	if missing := d.sequence - l.next; l.counted && missing > 0 && missing < 1<<31 {
		l.lost(Lost{DeniedPackets: uint64(missing)})
	}
	l.next, l.counted = d.sequence+1, true
	if !ok {
		return
	}
	now := l.o.Now()
	if n := l.ledgers[d.rule.NSG]; n != nil {
		n.deny(now, d.FiveTuple, decision{d.rule.NSG, l.current.named(d.rule), d.rule.Direction}, d.bytes)
	}
	if l.current == nil {
		return
	}
	for _, before := range l.current.passed(d.FiveTuple, d.rule.NSG) {
		if n := l.ledgers[before.nsg]; n != nil {
			n.pass(now, d.FiveTuple, before, d.bytes)
		}
	}
}

func (l *Log) lost(what Lost) {
	for _, n := range l.ledgers {
		n.lost.add(what)
	}
}

// settle is how long after an end that found no room others may still come: the kernel
// repeats them ten times a second.
const settle = 5 * time.Second

// tick reads the flows and writes the files when it is time.
func (l *Log) tick(ctx context.Context) {
	ticker := time.NewTicker(min(l.o.FlushEvery, time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		l.mu.Lock()
		err := l.turn()
		if err != nil && !l.failing { // once, not at each tick
			l.o.Logger.Error("a flow log is behind", "vnet", l.o.Network, "error", err)
		}
		l.failing = err != nil
		l.mu.Unlock()
	}
}

func (l *Log) turn() error {
	now := l.o.Now()
	due := map[string]*ledger{}
	for name, n := range l.ledgers {
		if !now.Before(n.due) {
			due[name] = n
		}
	}
	look := len(due) > 0 || l.begun.worthALook()
	var failed []error
	if look {
		defer l.begun.spent(time.Now())
		failed = append(failed, l.look(now, due))
	}
	rest := len(due) > 0 || now.Sub(l.flushed) >= l.o.FlushEvery
	if !look && !rest {
		return nil
	}
	for name, n := range l.ledgers {
		if rest {
			n.gather()
		}
		err := n.flush(now)
		if err == nil && due[name] != nil {
			err = n.save()
		}
		failed = append(failed, err)
	}
	if rest {
		l.flushed = now
	}
	return errors.Join(failed...)
}

// look reads all flows: those that are new in a log begin there, and of a log that is due
// the others go on.
func (l *Log) look(now time.Time, due map[string]*ledger) error {
	failed := l.begun.watch(l.begins)
	whole, err := l.dump(func(c conn, d decision) {
		switch n := l.ledgers[d.nsg]; {
		case n == nil:
		case due[d.nsg] != nil:
			n.live(now, c, d)
		default:
			n.begin(keyOf(c, d.direction), d.rule)
		}
	})
	for _, n := range due {
		n.swept(now, whole && now.Sub(l.delays) >= settle)
	}
	return errors.Join(failed, err)
}

// dump reads all flows that the kernel tracks; whole says that it gave each of them.
func (l *Log) dump(fn func(conn, decision)) (whole bool, err error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: l.requests}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET})
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		if len(msg) < nl.SizeofNfgenmsg {
			return true
		}
		c, ok := parseConn(msg[nl.SizeofNfgenmsg:])
		if !ok || c.mark == 0 || c.dying {
			return true
		}
		decisions, _ := l.decide(c)
		for _, d := range decisions {
			fn(c, d)
		}
		return true
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the flows of virtual network %s: %w", l.o.Network, err)
	}
	return true, nil
}

// Close stops following. The flows go on, and whoever opens the log next goes on with them.
func (l *Log) Close() error {
	l.halt()
	defer l.closeSockets()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.finish()
}

// halt ends the goroutines and takes what has come until then.
func (l *Log) halt() {
	l.stop()
	l.ends.wake()
	l.reports.wake()
	l.begins.wake()
	l.work.Wait()
	_ = l.ends.rest(l.locked(l.ended), l.delayed)
	_ = l.reports.rest(l.locked(l.reported), nil)
}

func (l *Log) finish() error {
	var failed []error
	for _, n := range l.ledgers {
		n.gather()
		failed = append(failed, n.flush(l.o.Now()), n.save())
	}
	return errors.Join(failed...)
}

// Off is Close when nothing is to be logged any more: the kernel stops counting.
func (l *Log) Off() error {
	l.halt()
	defer l.closeSockets()
	l.mu.Lock()
	defer l.mu.Unlock()
	var failed []error
	for name := range l.ledgers {
		failed = append(failed, l.retire(name))
	}
	return errors.Join(append(failed, l.o.Inside(func() error { return setCounting(false) }))...)
}

// Gone is Close when the virtual network is about to be removed: its flows end.
func (l *Log) Gone() error {
	l.halt()
	defer l.closeSockets()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.o.Now()
	_, err := l.dump(func(c conn, d decision) {
		if n := l.ledgers[d.nsg]; n != nil {
			c.stop = now
			n.end(c, d)
		}
	})
	for _, n := range l.ledgers {
		for range missedSweeps {
			n.swept(now, true)
		}
	}
	return errors.Join(err, l.finish())
}

package fleet

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// maxReport bounds one report of a host, in bytes.
const maxReport = 8 << 20

// session is one host's connection.
type session struct {
	conn net.Conn
	info core.Host
	kick chan struct{} // capacity 1: the goal state may have changed
	// problemSince says at which version each of the host's problems came up.
	problemSince map[string]int64

	// before is the version of a goal state that the host came with and that the store had not
	// reached: it is of a time that the store knows nothing of, and confirms nothing. 0: none.
	before int64

	holds *hostapi.Holds                 // the goal state that the host has; nil: unknown
	lost  bool                           // it asks for a complete one
	heard time.Time                      // of its last report, or changes of it
	again map[string]core.ObservedMember // what could not be acted on, by ID
}

// Hosts returns the hosts that are connected now.
func (f *Fleet) Hosts() []core.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []core.Host
	for _, name := range slices.Sorted(maps.Keys(f.hosts)) {
		out = append(out, f.hosts[name].info)
	}
	return out
}

// BumpGoals advances every host's goal state inside a transaction that changes
// resources, and so perhaps networks. Push must follow once it is committed.
func (f *Fleet) BumpGoals(tx store.Tx) error {
	hosts, err := tx.ListHosts()
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if _, err := tx.NextGoalVersion(h.Name); err != nil {
			return err
		}
		if err := tx.MarkNetworks(h.Name); err != nil {
			return err
		}
	}
	return nil
}

// Push sends every host its newest goal state.
func (f *Fleet) Push() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale = true
	f.pushFor("", true)
}

// pushFor tells one host's sender, or everyone's, to look again. The caller holds mu.
func (f *Fleet) pushFor(host string, everyone bool) {
	if !everyone {
		f.push(host)
		return
	}
	for name := range f.hosts {
		f.push(name)
	}
}

// push tells a host's sender to look again. The caller holds mu.
func (f *Fleet) push(host string) {
	if s := f.hosts[host]; s != nil {
		poke(s.kick)
	}
}

// poke fills a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ServeHost speaks with a host until the connection ends, and closes it. A second
// connection of the same host takes the place of the first; another installation that
// uses the name of one with members is refused, since it can't know of their teardown.
func (f *Fleet) ServeHost(ctx context.Context, name string, conn net.Conn) error {
	s := &session{conn: conn, kick: make(chan struct{}, 1), info: core.Host{Name: name, Connected: true, LastSeen: f.opts.Now()}}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(hostapi.Silence))
	var hello hostapi.ToService
	if err := wire.Read(conn, &hello, maxReport); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	if hello.Report != nil {
		s.info.Installation, s.info.Load, s.before = hello.Report.Installation, hello.Report.Load, hello.Report.Version
	}
	s.holds = hello.Holds
	if err := f.enter(ctx, s); err != nil {
		_ = wire.Write(conn, hostapi.ToHost{Refused: err.Error()}) // the connection ends either way
		return err
	}
	if hello.Report != nil {
		f.report(ctx, s, *hello.Report)
	}
	defer f.leave(s)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sender sync.WaitGroup
	sender.Go(func() {
		defer conn.Close() // ends the reader
		if err := f.send(ctx, s); err != nil {
			f.log.Warn("goal states can't be sent", "host", name, "error", err)
		}
	})
	err := f.receive(ctx, s)
	cancel()
	conn.Close()
	sender.Wait()
	return err
}

func (f *Fleet) enter(ctx context.Context, s *session) error {
	stored, err := f.storeHost(ctx, s.info)
	if errs.ClassOf(err) == errs.StorageFull {
		f.log.Warn("a host's state could not be stored", "host", s.info.Name, "error", err)
	} else if err != nil {
		return err
	}
	if err != nil || s.before <= stored {
		s.before = 0
	} else {
		f.log.Warn("a host has a newer goal state than there is: it was forgotten, or the store is of a backup", "host", s.info.Name, "has", s.before, "newest", stored)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.hosts[s.info.Name]; old != nil {
		f.unsee(old)
		old.conn.Close()
	}
	f.hosts[s.info.Name] = s
	for _, l := range f.lives {
		l.attempts = 0 // what could not be placed can be tried again at once
	}
	f.log.Info("host connected", "host", s.info.Name)
	s.kick <- struct{}{}
	f.broadcast()
	return nil
}

// storeHost writes what is known of a host, keeping its goal version, which it returns. It
// refuses another installation under the name of a host that has members.
func (f *Fleet) storeHost(ctx context.Context, h core.Host) (version int64, err error) {
	err = f.opts.Store.Write(ctx, func(tx store.Tx) error {
		hosts, err := tx.ListHosts()
		if err != nil {
			return err
		}
		for _, have := range hosts {
			if have.Name != h.Name {
				continue
			}
			h.GoalVersion = max(h.GoalVersion, have.GoalVersion)
			if have.Installation != "" && have.Installation != h.Installation && f.hasMembers(h.Name) {
				return errs.New(errs.Conflict, "host %s is another machine, or another run directory, and has members there", h.Name).
					WithHint("give this one a --name of its own; or \"sluice delete host %s --force\" if that one is lost", h.Name)
			}
		}
		version = h.GoalVersion
		return tx.PutHost(h)
	})
	return version, err
}

func (f *Fleet) hasMembers(host string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.live {
		if m.Host == host {
			return true
		}
	}
	return false
}

// ForgetHost forgets a host. With force it also ends the members of one that is lost for
// good: their addresses are released for the reason given, on the administrator's word
// alone. record is called in the transaction of each.
func (f *Fleet) ForgetHost(ctx context.Context, name string, force bool, reason string, record func(store.Tx, core.Lease) error) (released int, err error) {
	f.mu.Lock()
	connected := f.hosts[name] != nil
	var mine []*member
	for _, m := range f.live {
		if m.Host == name {
			mine = append(mine, m)
		}
	}
	f.mu.Unlock()
	switch {
	case connected:
		return 0, errs.New(errs.Conflict, "host %s is connected", name).WithHint("stop it first")
	case len(mine) > 0 && !force:
		return 0, errs.New(errs.Conflict, "host %s has %d members whose teardown it has not confirmed", name, len(mine)).
			WithHint("start it again; or, if the machine is lost for good, --force releases their addresses")
	}
	for _, m := range mine {
		if err := f.writeOff(ctx, m, "its host was forgotten", end{reason: reason, record: record}); err != nil {
			return released, err
		}
		released++
	}
	return released, f.opts.Store.Write(ctx, func(tx store.Tx) error { return tx.DeleteHost(name) })
}

func (f *Fleet) leave(s *session) {
	f.mu.Lock()
	current := f.hosts[s.info.Name] == s
	if current {
		f.unsee(s)
		delete(f.hosts, s.info.Name)
	}
	info := s.info
	f.broadcast()
	f.mu.Unlock()
	if !current {
		return
	}
	f.log.Info("host disconnected", "host", info.Name)
	info.Connected = false
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := f.storeHost(ctx, info); err != nil {
		f.log.Warn("a host's state could not be stored", "host", info.Name, "error", err)
	}
}

func (f *Fleet) receive(ctx context.Context, s *session) error {
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(hostapi.Silence))
		var msg hostapi.ToService
		if err := wire.Read(s.conn, &msg, maxReport); err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		f.mu.Lock()
		s.info.LastSeen, s.holds = f.opts.Now(), msg.Holds
		if s.lost = s.lost || msg.Lost; s.lost {
			f.push(s.info.Name)
		}
		f.mu.Unlock()
		switch {
		case msg.Report != nil:
			f.report(ctx, s, *msg.Report)
		case msg.Changes != nil:
			f.changes(ctx, s, *msg.Changes)
		}
	}
}

func key(id string, generation int64) string {
	return id + "/" + strconv.FormatInt(generation, 10)
}

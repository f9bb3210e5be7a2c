package fleet

import (
	"context"
	"net/netip"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/store"
)

// report takes in everything that a host observed. A connection whose place another has
// taken says nothing any more.
func (f *Fleet) report(ctx context.Context, s *session, r core.HostReport) {
	f.mu.Lock()
	if f.hosts[s.info.Name] != s {
		f.mu.Unlock()
		return
	}
	f.unsee(s) // what it does not name is not there
	todo := f.take(s, r)
	f.mu.Unlock()
	f.act(ctx, s, todo)
}

// changes takes in what has changed since a host's last report. What could not be acted on
// then is tried again, as a report would have brought it again.
func (f *Fleet) changes(ctx context.Context, s *session, c hostapi.Changes) {
	f.mu.Lock()
	if f.hosts[s.info.Name] != s || s.heard.IsZero() { // changes of nothing
		f.mu.Unlock()
		return
	}
	for _, g := range c.Gone {
		delete(s.again, g.ID)
		if m := f.live[g.ID]; m != nil && m.Generation == g.Generation && m.seenBy == s {
			m.unsee()
		}
	}
	for _, o := range c.Members {
		delete(s.again, o.ID)
	}
	for _, o := range s.again {
		c.Members = append(c.Members, o)
	}
	if c.SameTunnels {
		c.Tunnels = s.info.Tunnels
	}
	todo := f.take(s, c.HostReport)
	f.mu.Unlock()
	f.act(ctx, s, todo)
}

// unsee forgets that a connection confirms members. The caller holds mu.
func (f *Fleet) unsee(s *session) {
	for _, m := range f.live {
		if m.seenBy == s {
			m.unsee()
		}
	}
}

// unsee notes until when a member was confirmed, by the connection that does so no longer.
// What its host had obtained for it may be somebody else's by now. The caller holds mu.
func (m *member) unsee() {
	m.confirmed, m.seenBy, m.obtained = m.seenBy.heard, nil, netip.Addr{}
}

// confirmed is when a member's host last said that it has it: while it has not said
// otherwise, each of its reports says so. The caller holds mu.
func (f *Fleet) confirmed(m *member) time.Time {
	if m.seenBy != nil {
		return m.seenBy.heard
	}
	return m.confirmed
}

// toStore is what a report asks to be written.
type toStore struct {
	hashes map[*member]string // of join tokens
	gone   []*member
}

// take takes in what a host observed of the members that are named, and of itself. The
// caller holds mu.
func (f *Fleet) take(s *session, r core.HostReport) toStore {
	if r.Version == s.before {
		r.Version = 0
	} else {
		s.before = 0
	}
	s.told(r.Version, r.Problems)
	s.info.NATGateways, s.info.Tunnels, s.info.Load, s.heard = r.NATGateways, r.Tunnels, r.Load, f.opts.Now()
	f.takeImage(s, r.Image)
	s.again = map[string]core.ObservedMember{}
	todo := toStore{hashes: map[*member]string{}}
	for _, o := range r.Members {
		m := f.live[o.ID]
		if m == nil || m.Generation != o.Generation || m.Host != s.info.Name {
			continue
		}
		if o.JoinTokenHash != "" && o.JoinTokenHash != m.joinHash {
			m.joinHash, m.joinStored = o.JoinTokenHash, false
			todo.hashes[m], s.again[m.ID] = o.JoinTokenHash, o
		}
		if m.seenBy = nil; o.Present {
			m.seenBy = s
		}
		f.observe(m, o)
		m.obtained = o.Address
	}
	for m := range f.leaving {
		if r.Complete && m.Host == s.info.Name && r.Version >= m.leavingVersion && m.seenBy != s {
			todo.gone = append(todo.gone, m)
		}
	}
	f.broadcast()
	return todo
}

// act writes what a report asks for.
func (f *Fleet) act(ctx context.Context, s *session, todo toStore) {
	f.storeHashes(ctx, todo.hashes)
	for _, m := range todo.gone {
		if err := f.confirmGone(ctx, m, end{reason: "host " + s.info.Name + " confirmed the teardown", confirmed: true}); err != nil && ctx.Err() == nil {
			f.log.Warn("a teardown could not be stored; the host's next report brings it again", "member", m.ID, "error", err)
		}
	}
	f.adoptAll(ctx) // last: an address that a member has just lost may be one that another has obtained
}

// takeImage notes which program a host starts. With another one, what came to nothing is tried
// again at once. The caller holds mu.
func (f *Fleet) takeImage(s *session, image string) {
	if s.info.Image == image {
		return
	}
	s.info.Image = image
	if image == "" {
		return // the host can't tell now
	}
	for _, l := range f.lives {
		l.attempts, l.stuck = 0, ""
	}
	f.hurry()
}

// observe takes in what a host says of one member. The caller holds mu.
func (f *Fleet) observe(m *member, o core.ObservedMember) {
	m.hostPhases, m.Image = o.Phases, o.Image
	switch {
	case o.Exit != "" && !o.Running && m.State != core.MemberLeaving && m.condemned == "":
		reason := o.Exit
		if o.Wrote != "" && m.ReadyAt.IsZero() { // later its log may quote somebody's statement
			reason += "; it wrote: " + o.Wrote
		}
		f.condemn(m, reason)
		f.log.Warn("member ended", "member", m.ID, "gateway", m.Gateway, "reason", reason)
		f.dirty[m.ID] = true
	case o.Running && m.State == core.MemberPlaced:
		m.State = core.MemberInjected
		if m.injectedAt.IsZero() {
			m.injectedAt = f.opts.Now()
		}
		f.dirty[m.ID] = true
		f.settle(m, "host "+m.Host+" reports it as running")
	}
}

// storeHashes stores the hashes of tokens that a host vouches for, all in one transaction: the
// members may be waiting for it.
func (f *Fleet) storeHashes(ctx context.Context, hashes map[*member]string) {
	if len(hashes) == 0 {
		return
	}
	used := map[*member]bool{}
	err := f.opts.Store.Write(ctx, func(tx store.Tx) error {
		clear(used)
		for m, hash := range hashes {
			if !f.vouched(m, hash) {
				continue
			}
			switch err := tx.SetJoinHash(m.ID, m.Generation, hash); {
			case errs.ClassOf(err) == errs.Conflict:
				used[m] = true
			case err != nil:
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.log.Warn("members' join tokens could not be stored, the host's next report brings them again", "members", len(hashes), "error", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for m, hash := range hashes {
		switch {
		case m.joinHash != hash: // a later connection has another one
		case err != nil:
			m.joinHash = ""
		case used[m] && m.State != core.MemberLeaving && m.condemned == "":
			f.condemn(m, injectedAgain) // it has joined before, with another token: this one can't
		case !used[m]:
			m.joinStored = true
		}
	}
}

// vouched reports whether a member's host still vouches for a token: a connection that was
// replaced may be slow to store what it heard.
func (f *Fleet) vouched(m *member, hash string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return m.joinHash == hash
}

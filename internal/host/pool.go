package host

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

const (
	// refillAfter is how long after the last start the pool is filled again: whoever waits
	// for that start comes first.
	refillAfter = 250 * time.Millisecond
	// retryFill is how long after a failure, or after a blank ended, it is tried again.
	retryFill = 30 * time.Second
)

// pool is what a host has started in advance: blanks, each a sandbox in a namespace of the
// same name. It belongs to a process: blanks end with the one that prepared them.
type pool struct {
	size     int // 0: there is no pool
	network  hostnet.Preparer
	runtime  sandbox.Preparer
	own      map[string]string          // what each runs; they are not to be stopped as another process's
	waiting  []string                   // that nobody has been promised
	promised map[hostnet.PortKey]string // whose network is being made
	calm     time.Time                  // when to fill at the earliest
	retry    time.Duration
	problem  string // why there is none, or was none lately
}

func newPool(opts Options) pool {
	p := pool{own: map[string]string{}, promised: map[hostnet.PortKey]string{}, retry: retryFill}
	var can [2]bool
	p.network, can[0] = opts.Network.(hostnet.Preparer)
	p.runtime, can[1] = opts.Runtime.(sandbox.Preparer)
	if can[0] && can[1] {
		p.size = opts.Pool
	}
	return p
}

// fillPool prepares blanks one after the other, whenever one is lacking and nothing is
// being started.
func (h *Host) fillPool(ctx context.Context) {
	for ctx.Err() == nil {
		wait, lacking := h.untilFill()
		if lacking && wait <= 0 {
			h.addBlank(ctx)
			continue
		}
		var due <-chan time.Time
		if lacking {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-h.fill:
		case <-due:
		}
	}
}

func (h *Host) untilFill() (wait time.Duration, lacking bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Until(h.pool.calm), len(h.pool.waiting) < h.pool.size
}

func (h *Host) addBlank(ctx context.Context) {
	name, image := ident.New("blank"), h.lookAtProgram(ctx) // what it runs is this, or newer
	h.mu.Lock()
	h.pool.own[name] = image
	h.mu.Unlock()
	err := h.prepareBlank(ctx, name)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil && h.old(name):
		h.work.Go(func() { h.endBlank(ctx, name) })
		return
	case err == nil:
		h.pool.waiting = append(h.pool.waiting, name)
		return
	}
	delete(h.pool.own, name)
	h.pool.calm = time.Now().Add(h.pool.retry)
	if ctx.Err() == nil {
		// Without the blank's name: it is the same problem the next time.
		h.pool.problem = "no member can be started in advance: " + strings.ReplaceAll(withHint(err), "sandbox "+name, "a sandbox")
		h.log.Warn("no member could be started in advance, will try again", "error", err, "wait", h.pool.retry)
	}
}

func (h *Host) prepareBlank(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	netns, err := h.pool.network.Prepare(ctx, name)
	if err != nil {
		return err
	}
	if err := h.pool.runtime.Prepare(ctx, name, netns); err != nil {
		if left := h.pool.network.Discard(name); left != nil {
			h.log.Warn("a namespace stays until the next start of this host", "error", left)
		}
		return err
	}
	return nil
}

// promise gives blanks to the members that have no network yet, and returns which have one.
// The caller holds mu.
func (h *Host) promise(ctx context.Context, want map[string]core.GoalMember) map[hostnet.PortKey]string {
	p, wanted := &h.pool, map[hostnet.PortKey]bool{}
	for id, m := range want {
		k := portOf(m).Key()
		wanted[k] = true
		if _, has := h.ports[k]; has || h.boxes[id] != nil || p.promised[k] != "" || len(p.waiting) == 0 || !m.Address.IsValid() {
			continue
		}
		p.promised[k] = p.waiting[0]
		p.waiting = slices.Delete(p.waiting, 0, 1)
		p.calm = time.Now().Add(refillAfter)
		poke(h.fill)
	}
	out := map[hostnet.PortKey]string{}
	for k, name := range p.promised {
		if !wanted[k] {
			delete(p.promised, k)
			h.work.Go(func() { h.endBlank(ctx, name) })
			continue
		}
		out[k] = name
	}
	return out
}

// takePromised returns the blank that a member is to become of, "" if there is none. The
// caller holds mu.
func (h *Host) takePromised(k hostnet.PortKey) string {
	name := h.pool.promised[k]
	delete(h.pool.promised, k)
	if h.pool.size > 0 {
		h.pool.calm = time.Now().Add(refillAfter)
	}
	return name
}

// run makes a sandbox of a blank, or starts one if there is none or it can't be used.
func (h *Host) run(ctx context.Context, blank string, spec sandbox.Spec) error {
	if blank == "" {
		return h.opts.Runtime.Start(ctx, spec)
	}
	err := h.adopt(ctx, blank, spec)
	h.forgetBlank(blank)
	if err == nil || ctx.Err() != nil {
		return err
	}
	h.log.Warn("a member that was started in advance can't be used, another is started", "sandbox", spec.ID, "error", err)
	if err := h.pool.network.Discard(blank); err != nil { // it took none if the port had one
		h.log.Warn("a namespace stays until the next start of this host", "error", err)
	}
	return h.opts.Runtime.Start(ctx, spec)
}

// adopt makes a sandbox of a blank, unless the members' program has changed since that was
// made. If it fails, the blank is gone.
func (h *Host) adopt(ctx context.Context, blank string, spec sandbox.Spec) error {
	if !h.isOld(ctx, blank) {
		return h.pool.runtime.Adopt(ctx, blank, spec)
	}
	if err := h.opts.Runtime.Stop(ctx, blank); err != nil {
		h.log.Warn("what was started in advance could not be removed", "sandbox", blank, "error", err)
	}
	return errs.New(errs.Conflict, "the members' program has changed since sandbox %s was started", blank)
}

// observeBlank takes in a blank's state: one that ended while it waited, or that another
// process left, goes. The caller holds mu.
func (h *Host) observeBlank(ctx context.Context, s sandbox.State, waited bool) {
	p := &h.pool
	switch at := slices.Index(p.waiting, s.ID); {
	case waited && at >= 0 && !s.Running:
		h.log.Warn("a member that was started in advance ended", "sandbox", s.ID, "reason", s.Exit.Reason, "log", s.Exit.LogTail)
		p.waiting = slices.Delete(p.waiting, at, at+1)
		p.calm = time.Now().Add(p.retry) // what ended it may end the next
		p.problem = "a member that was started in advance ended: " + ending(s.Exit)
		poke(h.fill)
	case p.owns(s.ID):
		if waited && s.Running {
			p.problem = "" // it has waited for a while
		}
		return
	}
	p.own[s.ID] = s.Image
	h.work.Go(func() { h.endBlank(ctx, s.ID) })
}

// ending tells how a sandbox ended, with the last of what it wrote.
func ending(e sandbox.Exit) string {
	if last := lastLine(e.LogTail); last != "" {
		return e.Reason + "; it wrote: " + last
	}
	return e.Reason
}

// lastLine returns the last line of a log, cut to a length that fits a message.
func lastLine(log string) string {
	const most = 300
	lines := strings.Split(strings.TrimSpace(log), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if len(last) > most {
		last = last[:most] + "…"
	}
	return strings.ToValidUTF8(last, "?")
}

func (p *pool) owns(name string) bool {
	_, own := p.own[name]
	return own
}

// endBlank removes a blank; what fails is tried again when the sandboxes are next listed.
func (h *Host) endBlank(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := h.opts.Runtime.Stop(ctx, name)
	if err == nil && h.pool.network != nil {
		err = h.pool.network.Discard(name)
	}
	if err != nil {
		h.log.Warn("what was started in advance could not be removed, will try again", "sandbox", name, "error", err)
	}
	h.forgetBlank(name)
}

func (h *Host) forgetBlank(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.pool.own, name)
}

// drainPool ends the blanks when the host does. Nothing else runs by then.
func (h *Host) drainPool(ctx context.Context) {
	names := h.pool.waiting
	for _, name := range h.pool.promised {
		names = append(names, name)
	}
	for _, name := range names {
		h.endBlank(context.WithoutCancel(ctx), name)
	}
}

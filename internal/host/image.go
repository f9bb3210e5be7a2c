package host

import (
	"context"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// program is what new members run, as last looked at.
type program struct {
	image   string // "" if it is not known
	problem string // why it is not
}

// watchProgram looks at the members' program again and again: it is replaced on the disk,
// and nothing announces that.
func (h *Host) watchProgram(ctx context.Context) {
	tick := time.NewTicker(h.opts.Look)
	defer tick.Stop()
	for {
		h.lookAtProgram(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookAtProgram returns the name of what new members run now, "" if it can't be told. If it
// is another than before, the service hears of it, and blanks of the old one go.
func (h *Host) lookAtProgram(ctx context.Context) string {
	im, ok := h.opts.Runtime.(sandbox.Imager)
	if !ok {
		return ""
	}
	h.looking.Lock() // so that what was seen last is what is kept
	defer h.looking.Unlock()
	image, err := im.Image()
	now := program{image, withHint(err)}
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.program
	if now == was {
		return image
	}
	h.program = now
	poke(h.say)
	if err != nil {
		h.log.Warn("it is not known what new members run", "error", err)
		return ""
	}
	h.log.Info("new members run this program", "image", image, "before", was.image)
	h.discardOld(ctx)
	return image
}

// withHint is an error as a host reports it: with what there is to do.
func withHint(err error) string {
	if err == nil {
		return ""
	}
	if hint := errs.As(err).Hint; hint != "" {
		return err.Error() + " (" + hint + ")"
	}
	return err.Error()
}

// discardOld ends the blanks that run another program than a new member would, and has
// others made at once. The caller holds mu.
func (h *Host) discardOld(ctx context.Context) {
	p := &h.pool
	p.problem, p.calm = "", time.Time{} // what was wrong with the old one tells nothing of the new
	p.waiting = slices.DeleteFunc(p.waiting, func(name string) bool {
		if !h.old(name) {
			return false
		}
		h.work.Go(func() { h.endBlank(ctx, name) })
		return true
	})
	poke(h.fill)
}

// old reports whether a blank runs another program than a new member would. The caller
// holds mu.
func (h *Host) old(blank string) bool {
	image := h.pool.own[blank]
	return image != "" && h.program.image != "" && image != h.program.image
}

// isOld looks at the program first: it may have been replaced a moment ago.
func (h *Host) isOld(ctx context.Context, blank string) bool {
	h.lookAtProgram(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.old(blank)
}

package fleet

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// lastUsed is the setting that says when the gateways that are awake were used last, by UID,
// so that one which nobody uses pauses when it is due although the service was restarted.
const lastUsed = "gateways.lastUsed"

// keepUsedEvery is how much of that a crash may lose: a gateway then pauses so much earlier.
const keepUsedEvery = 15 * time.Second

// saveUsed stores when gateways were used last, if that has changed and is due.
func (f *Fleet) saveUsed(due bool) {
	f.mu.Lock()
	now := f.opts.Now()
	used := map[string]time.Time{}
	for uid, l := range f.lives {
		if l.awake {
			used[uid] = l.lastUsed.UTC().Truncate(time.Millisecond)
		}
	}
	for uid := range used {
		_, known := f.used[uid]
		due = due || !known // it was woken
	}
	due = due || now.Sub(f.usedStored).Abs() >= keepUsedEvery
	if !due || maps.EqualFunc(used, f.used, time.Time.Equal) {
		f.mu.Unlock()
		return
	}
	f.used, f.usedStored = used, now
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := f.opts.Store.Write(ctx, func(tx store.Tx) error {
		doc, err := json.Marshal(used)
		if err != nil {
			return err
		}
		return tx.PutSetting(lastUsed, string(doc))
	})
	if err != nil {
		f.log.Warn("it could not be stored when gateways were used last, will try again", "error", err)
		f.mu.Lock()
		for uid := range f.used {
			f.used[uid] = time.Time{}
		}
		f.mu.Unlock()
	}
}

// loadUsed takes over when gateways were used last. What an earlier process did not store
// counts as used now.
func (f *Fleet) loadUsed(tx store.Tx) error {
	used := map[string]time.Time{}
	text, err := tx.Setting(lastUsed)
	switch {
	case errs.ClassOf(err) == errs.NotFound:
	case err != nil:
		return err
	case json.Unmarshal([]byte(text), &used) != nil:
		clear(used)
	}
	now := f.opts.Now()
	for uid, l := range f.lives {
		l.lastUsed = now
		if at, known := used[uid]; known && at.Before(now) {
			l.lastUsed = at
		}
	}
	return nil
}

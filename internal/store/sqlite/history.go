package sqlite

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/store"
)

// defaultHistory is how many changes of one object are returned.
const defaultHistory = 20

const transitionColumns = "at, tenant, of, uid, gateway_uid, from_state, to_state, event, reason"

func scanTransition(row scanner) (core.Transition, error) {
	var t core.Transition
	err := row.Scan(timeColumn{&t.At}, &t.Tenant, &t.Of, &t.UID, &t.GatewayUID, &t.From, &t.To, &t.Event, &t.Reason)
	return t, err
}

// AppendTransitions implements store.History.
func (t *tx) AppendTransitions(ts []core.Transition) error {
	for _, c := range ts {
		_, err := t.exec("store a change of "+c.Of+" "+c.UID, "INSERT INTO transitions ("+transitionColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			nanos(c.At), c.Tenant, c.Of, c.UID, c.GatewayUID, c.From, c.To, c.Event, c.Reason)
		if err != nil {
			return err
		}
	}
	return nil
}

// ListTransitions implements store.History.
func (t *tx) ListTransitions(f store.TransitionFilter) ([]core.Transition, error) {
	last := f.Last
	if last <= 0 {
		last = defaultHistory
	}
	return list(t, "list changes of state", "SELECT "+transitionColumns+` FROM (
			SELECT *, row_number() OVER (PARTITION BY of, uid ORDER BY id DESC) AS nth FROM transitions
			WHERE (?1 = '' OR tenant = ?1) AND (?2 = '' OR of = ?2) AND (?3 = '' OR uid = ?3) AND (?5 = '' OR gateway_uid = ?5)
		) WHERE nth <= ?4 ORDER BY id DESC`, []any{f.Tenant, f.Of, f.UID, last, f.GatewayUID}, scanTransition)
}

// PurgeTransitions implements store.History.
func (t *tx) PurgeTransitions(before time.Time) error {
	_, err := t.exec("purge changes of state", `DELETE FROM transitions WHERE at < ?
		AND NOT (of = 'Gateway' AND EXISTS (SELECT 1 FROM resources r WHERE r.uid = transitions.uid)
			AND id = (SELECT max(id) FROM transitions n WHERE n.of = 'Gateway' AND n.uid = transitions.uid))`, nanos(before))
	return err
}

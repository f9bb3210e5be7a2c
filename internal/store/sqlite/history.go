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
	query, args := transitionQuery(f)
	return list(t, "list changes of state", query, append(args, last), scanTransition)
}

// transitionQuery names only the fields that filter, so that an index serves them; how many of
// each object are wanted is its last argument.
func transitionQuery(f store.TransitionFilter) (query string, args []any) {
	where := "TRUE"
	for _, by := range []struct{ column, value string }{
		{"of", f.Of}, {"uid", f.UID}, {"gateway_uid", f.GatewayUID}, {"tenant", string(f.Tenant)},
	} {
		if by.value != "" {
			where += " AND " + by.column + " = ?"
			args = append(args, by.value)
		}
	}
	return "SELECT " + transitionColumns + ` FROM (
			SELECT *, row_number() OVER (PARTITION BY of, uid ORDER BY id DESC) AS nth FROM transitions WHERE ` + where + `
		) WHERE nth <= ? ORDER BY id DESC`, args
}

// PurgeTransitions implements store.History.
func (t *tx) PurgeTransitions(before time.Time) error {
	_, err := t.exec("purge changes of state", `DELETE FROM transitions WHERE at < ?
		AND NOT (of = 'Gateway' AND EXISTS (SELECT 1 FROM resources r WHERE r.uid = transitions.uid)
			AND id = (SELECT max(id) FROM transitions n WHERE n.of = 'Gateway' AND n.uid = transitions.uid))`, nanos(before))
	return err
}

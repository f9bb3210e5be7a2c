package sqlite

import (
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// PutHost implements store.Hosts. The version of a goal state never goes back, and only
// MarkNetworks says when networks changed.
func (t *tx) PutHost(h core.Host) error {
	problems, err := jsonText(h.Problems)
	if err != nil {
		return errs.New(errs.Internal, "store host %s: %w", h.Name, err)
	}
	_, err = t.exec("store host "+h.Name, `
		INSERT INTO hosts (name, connected, goal_version, seen_version, last_seen, problems, installation) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET connected = excluded.connected,
			goal_version = max(goal_version, excluded.goal_version),
			seen_version = excluded.seen_version, last_seen = excluded.last_seen, problems = excluded.problems,
			installation = excluded.installation`,
		h.Name, h.Connected, h.GoalVersion, h.SeenVersion, nanos(h.LastSeen), problems, h.Installation)
	return err
}

// ListHosts implements store.Hosts, by name.
func (t *tx) ListHosts() ([]core.Host, error) {
	return list(t, "list hosts", "SELECT name, connected, goal_version, seen_version, last_seen, problems, installation, networks_version FROM hosts ORDER BY name", nil,
		func(row scanner) (core.Host, error) {
			var h core.Host
			err := row.Scan(&h.Name, &h.Connected, &h.GoalVersion, &h.SeenVersion, timeColumn{&h.LastSeen}, jsonColumn[string]{&h.Problems}, &h.Installation, &h.NetworksVersion)
			return h, err
		})
}

// DeleteHost implements store.Hosts. A foreign key is not needed: members name their
// host for the record.
func (t *tx) DeleteHost(name string) error {
	n, err := t.exec("delete host "+name, `DELETE FROM hosts WHERE name = ?1
		AND NOT EXISTS (SELECT 1 FROM members WHERE host = ?1 AND state <> 'gone')`, name)
	if err == nil && n == 0 {
		return errs.New(errs.Conflict, "host %s does not exist, or has members", name)
	}
	return err
}

func (t *tx) NextGoalVersion(host string) (int64, error) {
	if !t.write {
		return 0, errs.New(errs.Internal, "a Read can't write")
	}
	var version int64
	err := t.row("advance the goal state of host "+host, `
		INSERT INTO hosts (name, connected, goal_version, seen_version, last_seen, problems) VALUES (?, 0, 1, 0, 0, '[]')
		ON CONFLICT (name) DO UPDATE SET goal_version = goal_version + 1 RETURNING goal_version`, []any{host}, &version)
	return version, err
}

// MarkNetworks implements store.Hosts.
func (t *tx) MarkNetworks(host string) error {
	_, err := t.exec("note that the networks of host "+host+" change", "UPDATE hosts SET networks_version = goal_version WHERE name = ?", host)
	return err
}

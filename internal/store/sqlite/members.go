package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

const memberColumns = `id, tenant, generation, gateway, gateway_uid, vnet, vnet_uid, subnet, host,
	address, tunnel_address, state, reason, cpus, memory_mib, created_at, ready_at`

func scanMember(row scanner) (core.Member, error) {
	var m core.Member
	err := row.Scan(&m.ID, &m.Tenant, &m.Generation, &m.Gateway, &m.GatewayUID, &m.VNet, &m.VNetUID, &m.Subnet, &m.Host,
		addrColumn{&m.Address}, addrColumn{&m.TunnelAddress}, &m.State, &m.Reason, &m.Size.CPUs, &m.Size.MemoryMiB,
		timeColumn{&m.CreatedAt}, timeColumn{&m.ReadyAt})
	return m, err
}

// goalOf lists what the goal state has of a member's row: what stands in memberColumns and is
// not here does not concern its host.
func goalOf(row string) string {
	return fmt.Sprintf(`(%[1]s.state IN ('placed', 'injected', 'ready'), %[1]s.generation, %[1]s.tenant, %[1]s.gateway, %[1]s.vnet_uid,
		%[1]s.subnet, %[1]s.host, %[1]s.address, %[1]s.tunnel_address, %[1]s.cpus, %[1]s.memory_mib)`, row)
}

// PutMember implements store.Members. A join hash is of one generation: another one
// forgets it.
func (t *tx) PutMember(m core.Member) error {
	var gone time.Time
	if m.State == core.MemberGone {
		gone = t.store.now()
	}
	_, err := t.exec("store member "+m.ID, `
		INSERT INTO members (`+memberColumns+`, gone_at, goal_version)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, coalesce((SELECT h.goal_version FROM hosts h WHERE h.name = ?), 0))
		ON CONFLICT (id) DO UPDATE SET tenant = excluded.tenant, generation = excluded.generation,
			gateway = excluded.gateway, gateway_uid = excluded.gateway_uid,
			vnet = excluded.vnet, vnet_uid = excluded.vnet_uid, subnet = excluded.subnet, host = excluded.host,
			address = excluded.address, tunnel_address = excluded.tunnel_address,
			state = excluded.state, reason = excluded.reason, cpus = excluded.cpus, memory_mib = excluded.memory_mib,
			created_at = excluded.created_at, ready_at = excluded.ready_at,
			gone_at = iif(excluded.gone_at <> 0 AND gone_at <> 0, gone_at, excluded.gone_at),
			goal_version = iif(`+goalOf("excluded")+" = "+goalOf("members")+`, goal_version, excluded.goal_version),
			join_hash = iif(generation = excluded.generation, join_hash, NULL),
			join_used = iif(generation = excluded.generation, join_used, 0)`,
		m.ID, m.Tenant, m.Generation, m.Gateway, m.GatewayUID, m.VNet, m.VNetUID, m.Subnet, m.Host,
		address(m.Address), address(m.TunnelAddress), m.State, m.Reason, m.Size.CPUs, m.Size.MemoryMiB,
		nanos(m.CreatedAt), nanos(m.ReadyAt), nanos(gone), m.Host)
	if isUnique(err) {
		return t.tunnelConflict(m)
	}
	return err
}

func (t *tx) tunnelConflict(m core.Member) error {
	var other string
	if err := t.row("read the holder of a tunnel address",
		"SELECT id FROM members WHERE host = ? AND tunnel_address = ? AND state <> 'gone'",
		[]any{m.Host, address(m.TunnelAddress)}, &other); err != nil {
		return err
	}
	return errs.New(errs.Conflict, "member %s can't have the tunnel address %s on host %s: it is member %s's",
		m.ID, m.TunnelAddress, m.Host, other)
}

func (t *tx) GetMember(id string) (core.Member, error) {
	return one(t, "member "+id, "SELECT "+memberColumns+" FROM members WHERE id = ?", []any{id}, scanMember)
}

func (t *tx) ListMembers(tenant core.TenantID, gone bool) ([]core.Member, error) {
	return list(t, "list members", "SELECT "+memberColumns+` FROM members
		WHERE (?1 = '' OR tenant = ?1) AND (?2 OR state <> 'gone') ORDER BY created_at DESC, id DESC`, []any{tenant, gone}, scanMember)
}

// ChangedMembers implements store.Members.
func (t *tx) ChangedMembers(host string, since int64) ([]core.Member, error) {
	return list(t, "list what has changed on host "+host, "SELECT "+memberColumns+" FROM members WHERE host = ? AND goal_version > ?", []any{host, since}, scanMember)
}

// SetJoinHash implements store.Members. A stale generation changes nothing.
func (t *tx) SetJoinHash(id string, generation int64, hash string) error {
	if hash == "" {
		return errs.New(errs.Internal, "member %s: an empty join hash", id)
	}
	n, err := t.exec("store the join hash of member "+id,
		"UPDATE members SET join_hash = ? WHERE id = ? AND generation = ? AND (join_used = 0 OR join_hash = ?)", hash, id, generation, hash)
	if err != nil || n > 0 {
		return err
	}
	m, err := t.GetMember(id)
	if err != nil || m.Generation != generation {
		return err
	}
	return errs.New(errs.Conflict, "member %s of generation %d has joined already, with another token", id, generation)
}

// UseJoinHash implements store.Members. A member that is gone joins no more.
func (t *tx) UseJoinHash(id, hash string) (core.Member, error) {
	n, err := t.exec("use the join hash of member "+id,
		"UPDATE members SET join_used = 1 WHERE id = ? AND join_hash = ? AND join_used = 0 AND state <> 'gone'", id, hash)
	if err != nil {
		return core.Member{}, err
	}
	m, err := t.GetMember(id)
	if err != nil || n == 1 {
		return m, err
	}
	return core.Member{}, t.joinRefused(m, hash)
}

// joinRefused says why a hash could not be used.
func (t *tx) joinRefused(m core.Member, hash string) error {
	var stored sql.NullString
	var used bool
	if err := t.row("read the join hash of member "+m.ID, "SELECT join_hash, join_used FROM members WHERE id = ?", []any{m.ID}, &stored, &used); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return errs.New(errs.NotFound, "there is no member %s", m.ID)
		}
		return err
	}
	switch {
	case !stored.Valid || stored.String != hash:
		return errs.New(errs.NotFound, "member %s has no such join token", m.ID)
	case used:
		return errs.New(errs.Conflict, "member %s used its join token already", m.ID)
	}
	return errs.New(errs.Conflict, "member %s is %s and can't join", m.ID, m.State)
}

func (t *tx) PurgeMembers(goneBefore time.Time) error {
	_, err := t.exec("purge members", "DELETE FROM members WHERE state = 'gone' AND gone_at < ?", nanos(goneBefore))
	return err
}

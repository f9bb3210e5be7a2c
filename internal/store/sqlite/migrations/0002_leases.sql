-- A lease says for whom and on which host it is held, and until when that host has
-- confirmed it. The reason is that of its end.
ALTER TABLE leases ADD COLUMN gateway TEXT NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN renewed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN reason TEXT NOT NULL DEFAULT '';

UPDATE leases SET
    gateway    = coalesce((SELECT m.gateway FROM members m WHERE m.id = leases.member), ''),
    host       = coalesce((SELECT m.host FROM members m WHERE m.id = leases.member), ''),
    renewed_at = acquired_at,
    expires_at = acquired_at;

CREATE INDEX leases_reusable ON leases (reusable_at) WHERE state = 'quarantined';

-- An address changes its owner only by way of a quarantine that is over.
CREATE TRIGGER leases_owner BEFORE UPDATE ON leases
WHEN OLD.tenant <> NEW.tenant OR OLD.vnet_uid <> NEW.vnet_uid OR OLD.address <> NEW.address
    OR OLD.member <> NEW.member OR OLD.generation <> NEW.generation
BEGIN SELECT RAISE(ABORT, 'a lease keeps its address and its owner'); END;

CREATE TRIGGER leases_ended BEFORE UPDATE ON leases
WHEN OLD.state = 'quarantined' AND NEW.state = 'held'
BEGIN SELECT RAISE(ABORT, 'a lease that has ended is not held again'); END;

CREATE TRIGGER leases_held BEFORE DELETE ON leases
WHEN OLD.state = 'held'
BEGIN SELECT RAISE(ABORT, 'a lease that is held ends in quarantine'); END;

-- The audit log is appended to. What is older than the time that is kept goes, once that
-- time is written down.
ALTER TABLE audit ADD COLUMN why TEXT NOT NULL DEFAULT '';

CREATE INDEX audit_time ON audit (at);

CREATE TRIGGER audit_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_delete BEFORE DELETE ON audit
WHEN OLD.at >= coalesce((SELECT CAST(value AS INTEGER) FROM settings WHERE name = 'audit.kept-since'), 0)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

-- Times are nanoseconds since 1970 in UTC, 0 for none. Addresses are text.

CREATE TABLE resources (
    uid        TEXT    NOT NULL PRIMARY KEY CHECK (uid <> ''),
    tenant     TEXT    NOT NULL CHECK (tenant <> ''),
    kind       TEXT    NOT NULL CHECK (kind <> ''),
    name       TEXT    NOT NULL CHECK (name <> ''),
    version    INTEGER NOT NULL CHECK (version >= 1),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    spec       TEXT    NOT NULL CHECK (json_valid(spec)),
    UNIQUE (tenant, kind, name),
    UNIQUE (tenant, uid)
) STRICT;

CREATE TABLE secrets (
    tenant    TEXT NOT NULL,
    owner_uid TEXT NOT NULL,
    name      TEXT NOT NULL CHECK (name <> ''),
    sealed    BLOB NOT NULL CHECK (length(sealed) > 0),
    PRIMARY KEY (tenant, owner_uid, name),
    FOREIGN KEY (tenant, owner_uid) REFERENCES resources (tenant, uid) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE members (
    id             TEXT    NOT NULL PRIMARY KEY CHECK (id <> ''),
    tenant         TEXT    NOT NULL CHECK (tenant <> ''),
    generation     INTEGER NOT NULL,
    gateway        TEXT    NOT NULL,
    gateway_uid    TEXT    NOT NULL,
    vnet           TEXT    NOT NULL,
    vnet_uid       TEXT    NOT NULL,
    subnet         TEXT    NOT NULL,
    host           TEXT    NOT NULL,
    address        TEXT    NOT NULL,
    tunnel_address TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('placed', 'injected', 'ready', 'leaving', 'gone')),
    reason         TEXT    NOT NULL,
    cpus           REAL    NOT NULL,
    memory_mib     INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    ready_at       INTEGER NOT NULL,
    gone_at        INTEGER NOT NULL,
    join_hash      TEXT    CHECK (join_hash <> ''),
    join_used      INTEGER NOT NULL DEFAULT 0 CHECK (join_used IN (0, 1)),
    CHECK ((state = 'gone') = (gone_at <> 0))
) STRICT;

CREATE UNIQUE INDEX members_tunnel ON members (host, tunnel_address) WHERE state <> 'gone' AND tunnel_address <> '';
CREATE INDEX members_tenant ON members (tenant, created_at);
CREATE INDEX members_gone ON members (gone_at) WHERE state = 'gone';

-- One row, and so one owner, for each address of a network.
CREATE TABLE leases (
    tenant      TEXT    NOT NULL CHECK (tenant <> ''),
    vnet_uid    TEXT    NOT NULL CHECK (vnet_uid <> ''),
    address     TEXT    NOT NULL CHECK (address <> ''),
    vnet        TEXT    NOT NULL,
    subnet      TEXT    NOT NULL,
    member      TEXT    NOT NULL CHECK (member <> ''),
    generation  INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('held', 'quarantined')),
    acquired_at INTEGER NOT NULL,
    reusable_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, vnet_uid, address),
    CHECK (state = 'quarantined' OR reusable_at = 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
    name         TEXT    NOT NULL PRIMARY KEY CHECK (name <> ''),
    connected    INTEGER NOT NULL CHECK (connected IN (0, 1)),
    goal_version INTEGER NOT NULL,
    seen_version INTEGER NOT NULL,
    last_seen    INTEGER NOT NULL,
    problems     TEXT    NOT NULL CHECK (json_valid(problems)),
    installation TEXT    NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;

CREATE TABLE queries (
    id         TEXT    NOT NULL PRIMARY KEY CHECK (id <> ''),
    tenant     TEXT    NOT NULL CHECK (tenant <> ''),
    user       TEXT    NOT NULL,
    source     TEXT    NOT NULL,
    gateway    TEXT    NOT NULL,
    sql        TEXT    NOT NULL,
    class      TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled', 'interrupted')),
    started_at INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    member     TEXT    NOT NULL,
    address    TEXT    NOT NULL,
    rows       INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    phases     TEXT    NOT NULL CHECK (json_valid(phases)),
    error_class TEXT   NOT NULL DEFAULT '',
    error_step TEXT    NOT NULL,
    error      TEXT    NOT NULL
) STRICT;

CREATE INDEX queries_time ON queries (tenant, started_at);
CREATE INDEX queries_source ON queries (tenant, source, started_at);
CREATE INDEX queries_running ON queries (id) WHERE state = 'running';
CREATE INDEX queries_purge ON queries (started_at);

CREATE TABLE tokens (
    hash   BLOB NOT NULL PRIMARY KEY CHECK (length(hash) > 0),
    tenant TEXT NOT NULL CHECK (tenant <> ''),
    name   TEXT NOT NULL,
    role   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    tenant TEXT    NOT NULL,
    who    TEXT    NOT NULL,
    act    TEXT    NOT NULL,
    object TEXT    NOT NULL,
    note   TEXT    NOT NULL
) STRICT;

CREATE INDEX audit_tenant ON audit (tenant, id);

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Changes of state of gateways and members, each with what caused it.
CREATE TABLE transitions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    tenant      TEXT    NOT NULL CHECK (tenant <> ''),
    of          TEXT    NOT NULL CHECK (of IN ('Gateway', 'Member')),
    uid         TEXT    NOT NULL CHECK (uid <> ''),
    gateway_uid TEXT    NOT NULL,
    from_state  TEXT    NOT NULL,
    to_state    TEXT    NOT NULL CHECK (to_state <> ''),
    event       TEXT    NOT NULL CHECK (event <> ''),
    reason      TEXT    NOT NULL
) STRICT;

CREATE INDEX transitions_object ON transitions (of, uid, id);
CREATE INDEX transitions_time ON transitions (at);

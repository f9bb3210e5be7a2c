-- In which goal state of its host a member, and in which one networks, changed last: what is
-- newer than what the host has is all that it is sent.
ALTER TABLE members ADD COLUMN goal_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hosts ADD COLUMN networks_version INTEGER NOT NULL DEFAULT 0;

CREATE INDEX members_changed ON members (host, goal_version);

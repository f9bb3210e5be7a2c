-- How a query waited, on which member it ran before, and what stands for its SQL.
ALTER TABLE queries ADD COLUMN retried TEXT NOT NULL DEFAULT '';
ALTER TABLE queries ADD COLUMN queued_behind INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queries ADD COLUMN sql_hash TEXT NOT NULL DEFAULT '';

// Package postgres is the connector for PostgreSQL and what speaks its protocol.
//
// It owns everything between an adbc.Database and the wire: dialling by steps, a pool
// per credential, the extended protocol with binary results, and their decoding into
// Arrow columns. It does not own name resolution (connector.Options) nor the tunnel.
// Only connector/all, and tests, import it; members call it through package connector.
//
// # How a query runs
//
// A statement that was described before is one round trip: BEGIN READ ONLY, Parse,
// Describe, Bind, Execute and ROLLBACK in one write, answered in one. The first time, a
// Parse and Describe goes ahead, since the formats in which the columns are asked for
// depend on their types. Descriptions are kept per database; nothing is kept in the
// server's session, so nothing there can be tampered with: BEGIN is sent as text each time.
//
// A read-only source runs each statement in a transaction of its own, READ ONLY and
// rolled back. With readOnly: false a statement is a transaction of its own, committed
// if it succeeds; several parameter rows are one transaction.
//
// A result is read ahead into a buffer that the connection borrows while it is used: a
// small one, and a large one once that has been full. Out of the large one, rows are
// decoded by the column (wire, block); the library's row reader does the rest: the
// first row, rows larger than the buffer, and everything that is not a row.
//
// # What a session keeps
//
// A rollback undoes what a query did to its session: settings, temporary tables, cursors,
// LISTEN. It leaves prepared statements, advisory locks and cached plans: the session's
// past. DISCARD ALL undoes those, and costs the server more than a short query does.
// So a session passes from one user to another only after DISCARD ALL, which then goes
// ahead of the query, in the same write. The same user's queries may follow each other
// after the rollback alone, while the past is younger than 100 ms; older, it is discarded
// as another user's is. A connection that has been idle with a past for 100 ms is reset
// then. The user is a name that the service gives with each request
// (connector.UserAware); queries without one are each another user's, and are followed by
// DISCARD ALL at once, as are those on a writable source, those that failed, and those
// whose text speaks of advisory locks or PREPARE. After what not even DISCARD ALL brings
// back (setseed, LOAD) the connection is closed.
//
// # Types
//
//	bool, int2, int4, int8, float4, float8   bool, int16, int32, int64, float32, float64
//	oid                                       uint32
//	numeric(p,s)                              decimal128, or decimal256 for p > 38
//	numeric without precision, or p > 76      utf8, the exact value as PostgreSQL prints it
//	text, varchar, char, name, json, jsonb    utf8
//	uuid                                      utf8, which every client can show
//	bytea                                     binary
//	date, time                                date32, time64[us]
//	timestamp, timestamptz                    timestamp[us], timestamp[us, UTC]
//	interval                                  month_day_nano
//	arrays of these                           list of the element's type
//	everything else                           utf8, as PostgreSQL prints it
//
// Each field carries the metadata "postgres.type". A domain is its base type.
//
// Some values have no counterpart in the Arrow type of their column: NaN in a
// decimal, infinite dates and timestamps and those after the year 294246, intervals of
// more than 292 years of microseconds, the time 24:00:00, arrays of several dimensions
// or with a lower bound other than 1, text that is not UTF-8 because the query
// changed client_encoding. Such a column comes as utf8 (the last case: binary), with
// the metadata "postgres.text" saying why. If the first such value comes after rows
// have gone out, the query ends in an error that names column and value, and the
// column comes as text when the query is run again. No value is ever changed.
package postgres

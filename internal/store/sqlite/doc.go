// Package sqlite keeps the service's state in one SQLite file.
//
// It owns the schema and its migrations, durability (write-ahead log, synced at each
// commit), and the translation of SQLite's errors into classes. It does not own what
// the rows mean: store.Store is the contract, storetest the proof. The program that
// wires the service opens it; nobody else imports it.
//
// There is one connection that writes and a few that read. Reads don't wait for the
// writer. A Write inside a Write would wait for itself: don't.
package sqlite

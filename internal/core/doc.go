// Package core holds Sluice's domain types and identifiers.
//
// It owns the words that every other package speaks: resources that users
// declare, members and leases that the service makes of them, and the goal state
// that a host must make true. It has no behaviour beyond parsing and printing its
// own values, does no I/O, and imports the standard library only. Any package may
// import it.
package core

// Package service is what a VNet service does: it keeps resources, authenticates,
// places members, hands goal states to hosts, and passes queries to members and
// their results back without decoding them.
//
// Its front ends, httpapi/ and flightsql/, are the only callers of its Frontend
// methods; the host stream and the tunnel listener reach it through hosts.go.
package service

// Package gateway is what runs inside a member: it takes the service's requests from
// the tunnel, runs them on a data source through a connector, and streams the
// answers back as Arrow.
//
// It owns the member's side of memberapi (query, prepare, metadata, test, probe), the
// databases that are open, name resolution through the VNet's resolver, and the life
// of the process from Boot to drain. It does not own connectors, which it is given as
// a registry; nor the tunnel and the identity, which it only runs; nor the process's
// confinement (confine/). It imports nothing of the service or the host, and
// cmd/sluice-gateway is its only caller.
//
// A result ends whole or not at all: the end-of-stream marker is written only after
// the connector's reader came to its end without an error and everything was handed
// to the connection.
package gateway

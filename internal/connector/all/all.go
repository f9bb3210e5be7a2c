// Package all is the explicit registry of connectors: what a member can talk to.
//
// cmd/sluice-gateway is its only caller besides tests.
package all

import (
	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/connector/postgres"
)

// All lists every connector, by type.
func All() []connector.Connector {
	return []connector.Connector{postgres.New()}
}

// Lookup finds the connector of a type.
func Lookup(typ string) (connector.Connector, bool) {
	for _, c := range All() {
		if c.Descriptor().Type == typ {
			return c, true
		}
	}
	return nil, false
}

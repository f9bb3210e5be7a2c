// Package all is the registry of connectors: an explicit list, so that what a member
// contains can be read here. Members import it, and nothing else does; the service and
// the CLI know the types of data source from package catalog.
package all

import (
	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/connector/postgres"
)

// All returns every connector, by type.
func All() []connector.Connector {
	return []connector.Connector{postgres.New()}
}

// Lookup finds the connector for a type of data source.
func Lookup(typ string) (connector.Connector, bool) {
	for _, c := range All() {
		if c.Descriptor().Type == typ {
			return c, true
		}
	}
	return nil, false
}

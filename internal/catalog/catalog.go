// Package catalog describes the types of data source that Sluice knows: parameters,
// their meaning and defaults, and the kinds of credentials.
//
// It is data, without the connectors themselves, so that the service and the CLI can
// validate and explain a data source while only members contain the code that talks
// to one. A connector's package returns its entry from here.
package catalog

import "github.com/sluice-gateway/sluice/internal/core"

// Descriptor describes a type of data source.
type Descriptor struct {
	Type        string                `json:"type"` // what a DataSource names
	Title       string                `json:"title"`
	DefaultPort uint16                `json:"defaultPort"`
	Parameters  []Parameter           `json:"parameters"`
	Credentials []core.CredentialKind `json:"credentials"`
}

// Parameter describes one parameter of a data source.
type Parameter struct {
	Name     string   `json:"name"`
	Doc      string   `json:"doc"`
	Required bool     `json:"required,omitempty"`
	Default  string   `json:"default,omitempty"`
	Values   []string `json:"values,omitempty"` // the values allowed, empty for any
}

// Postgres is PostgreSQL and what speaks its protocol.
var Postgres = Descriptor{
	Type: "postgres", Title: "PostgreSQL", DefaultPort: 5432,
	Parameters: []Parameter{
		{Name: "host", Doc: "name or address, as the gateway's network sees it", Required: true},
		{Name: "port", Doc: "TCP port", Default: "5432"},
		{Name: "database", Doc: "database to connect to", Required: true},
		{Name: "tls", Doc: "disable; require: encrypt, trust any certificate; verify-ca: and check who signed it; verify-full: and the name in it",
			Default: "verify-full", Values: []string{"disable", "require", "verify-ca", "verify-full"}},
		{Name: "tlsCA", Doc: "PEM certificates to trust in place of the public ones"},
		{Name: "connectTimeout", Doc: "bound on reaching and signing in to the server", Default: "10s"},
		{Name: "applicationName", Doc: "shown in pg_stat_activity", Default: "sluice"},
		{Name: "options", Doc: "server settings at sign-in, as -c name=value"},
	},
	Credentials: []core.CredentialKind{core.CredentialBasic, core.CredentialAnonymous},
}

// All lists every type, by name.
func All() []Descriptor { return []Descriptor{Postgres} }

// Lookup finds a type by name.
func Lookup(name string) (Descriptor, bool) {
	for _, d := range All() {
		if d.Type == name {
			return d, true
		}
	}
	return Descriptor{}, false
}

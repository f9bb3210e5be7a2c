package httpapi

import (
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/service"
)

// Kind is a kind of object that the API shows.
type Kind struct {
	Name     string // as the service and documents name it: "VirtualNetwork"
	Plural   string // as paths and commands name it: "virtualnetworks"
	Declared bool   // users make and delete it
}

// deletable reports whether DELETE makes sense for the kind, be it by force alone.
func (k Kind) deletable() bool {
	return k.Declared || k.Name == service.KindHost || k.Name == service.KindLease || k.Name == service.KindLink
}

// Kinds lists every kind, in the order in which help shows them.
func Kinds() []Kind {
	return []Kind{
		{string(core.KindVirtualNetwork), "virtualnetworks", true},
		{string(core.KindNetworkSecurityGroup), "networksecuritygroups", true},
		{string(core.KindApplicationSecurityGroup), "applicationsecuritygroups", true},
		{string(core.KindServiceTag), "servicetags", true},
		{string(core.KindNATGateway), "natgateways", true},
		{string(core.KindRouteTable), "routetables", true},
		{string(core.KindPrivateDNSZone), "privatednszones", true},
		{string(core.KindPrivateEndpoint), "privateendpoints", true},
		{string(core.KindGateway), "gateways", true},
		{service.KindMember, "members", false},
		{string(core.KindDataSource), "datasources", true},
		{service.KindHost, "hosts", false},
		{service.KindLease, "leases", false},
		{service.KindLink, "links", false},
		{service.KindQuery, "queries", false},
		{service.KindAudit, "audits", false},
	}
}

// LookupKind finds a kind by what users type: singular or plural, in any case.
func LookupKind(word string) (Kind, bool) {
	for _, k := range Kinds() {
		if strings.EqualFold(word, k.Name) || strings.EqualFold(word, k.Plural) {
			return k, true
		}
	}
	return Kind{}, false
}

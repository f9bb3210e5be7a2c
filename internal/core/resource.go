package core

import "time"

// Kind names a type of resource, as users write it after "kind:".
type Kind string

// The kinds of resource that users declare.
const (
	KindVirtualNetwork           Kind = "VirtualNetwork"
	KindNetworkSecurityGroup     Kind = "NetworkSecurityGroup"
	KindNATGateway               Kind = "NATGateway"
	KindRouteTable               Kind = "RouteTable"
	KindApplicationSecurityGroup Kind = "ApplicationSecurityGroup"
	KindServiceTag               Kind = "ServiceTag"
	KindPrivateDNSZone           Kind = "PrivateDNSZone"
	KindPrivateEndpoint          Kind = "PrivateEndpoint"
	KindGateway                  Kind = "Gateway"
	KindDataSource               Kind = "DataSource"
)

// Kinds lists the kinds that users declare, in the order in which resources that
// stand on each other are shown.
func Kinds() []Kind {
	return []Kind{
		KindVirtualNetwork, KindNetworkSecurityGroup, KindApplicationSecurityGroup, KindServiceTag, KindNATGateway, KindRouteTable, KindPrivateDNSZone,
		KindPrivateEndpoint, KindGateway, KindDataSource,
	}
}

// Resource is a declared object: one of the pointer types *VirtualNetwork,
// *NetworkSecurityGroup, *ApplicationSecurityGroup, *ServiceTag, *NATGateway, *RouteTable, *PrivateDNSZone, *PrivateEndpoint,
// *Gateway, *DataSource. The JSON of a resource is its fields; kind stands beside them on
// the wire and in files and is not a field of the struct.
type Resource interface {
	Kind() Kind
	ResourceName() string
}

// New returns an empty resource of a kind, or nil for a kind that users don't declare.
func New(k Kind) Resource {
	switch k {
	case KindVirtualNetwork:
		return &VirtualNetwork{}
	case KindNetworkSecurityGroup:
		return &NetworkSecurityGroup{}
	case KindApplicationSecurityGroup:
		return &ApplicationSecurityGroup{}
	case KindServiceTag:
		return &ServiceTag{}
	case KindNATGateway:
		return &NATGateway{}
	case KindRouteTable:
		return &RouteTable{}
	case KindPrivateDNSZone:
		return &PrivateDNSZone{}
	case KindPrivateEndpoint:
		return &PrivateEndpoint{}
	case KindGateway:
		return &Gateway{}
	case KindDataSource:
		return &DataSource{}
	}
	return nil
}

// Stored is a resource as the store keeps it.
type Stored struct {
	Tenant    TenantID
	UID       string // unique for ever: a resource deleted and made again has another
	Version   int64  // counts the changes of this resource, from 1
	CreatedAt time.Time
	UpdatedAt time.Time
	Spec      Resource
}

// Change says what an apply did, or would do, to one resource.
type Change string

// The changes of an apply.
const (
	Created   Change = "created"
	Updated   Change = "updated"
	Unchanged Change = "unchanged"
	Deleted   Change = "deleted"
)

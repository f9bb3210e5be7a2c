// Package validate judges the whole set of one tenant's resources, as it would stand
// after a change: names, prefixes, limits, and what refers to what. It also fills in
// the documented defaults and the addresses of private endpoints.
//
// It is pure: no I/O, no clock, no state; the same set gives the same answer. It does
// not parse (package config) and knows neither the store nor hosts: that a delegated
// subnet is in use by running members, for one, the service judges itself. The service
// calls Defaults, AssignAddresses and Set, in this order; before it deletes a resource it
// asks DeleteBlockers.
//
// Each error has the class Invalid, Object ("VirtualNetwork/corp") and Field
// ("subnets[1].prefix"). Its message is the reason alone: who shows it puts the object
// and the field before it.
package validate

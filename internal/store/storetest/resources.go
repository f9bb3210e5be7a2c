package storetest

import (
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// everyKind is one resource of each kind with every field set.
func everyKind() []core.Resource {
	no := false
	return []core.Resource{
		&core.DataSource{Name: "ds", Gateway: "gw", Type: "postgres", Parameters: map[string]string{"host": "h"}, ReadOnly: &no,
			Credentials: core.Credentials{Kind: core.CredentialBasic, Username: "ü"}},
		&core.Gateway{Name: "gw", VNet: "v", Subnet: "s", Members: core.MemberRange{Min: 1, Max: 2}, AutoPause: core.Duration(time.Minute),
			Size: core.MemberSize{CPUs: 0.5, MemoryMiB: 100}},
		&core.NATGateway{Name: "nat", VNet: "v", PublicAddresses: []string{"host"}, IdleTimeout: core.Duration(4 * time.Minute)},
		&core.NetworkSecurityGroup{Name: "nsg", Rules: []core.SecurityRule{{Name: "r", Priority: 100, Direction: core.Inbound, Access: core.Deny,
			Protocol: core.ProtocolTCP, Source: []string{"Any"}, SourcePorts: []string{"1"}, Destination: []string{"10.0.0.0/8"}, DestinationPorts: []string{"2-3"}}}},
		&core.PrivateDNSZone{Name: "zone", VNets: []string{"v"}},
		&core.PrivateEndpoint{Name: "ep", VNet: "v", Subnet: "s", Address: netip.MustParseAddr("10.0.0.4"), Target: "h:1", DNSName: "a.zone"},
		&core.VirtualNetwork{Name: "v", AddressSpace: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			Subnets: []core.Subnet{{Name: "s", Prefix: netip.MustParsePrefix("10.0.0.0/24"), Delegation: "d/e", NSG: "nsg", NATGateway: "nat"}}},
	}
}

func resources() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"resources of every kind come back whole, by kind and name": func(h *harness) {
			var want []core.Stored
			for i, r := range everyKind() {
				want = append(want, core.Stored{Tenant: tenant, UID: "u-" + r.ResourceName(), Version: int64(i + 1),
					CreatedAt: now(), UpdatedAt: now().Add(time.Nanosecond), Spec: r})
			}
			h.write(func(tx store.Tx) error {
				for i := range want { // in another order than they are listed in
					if err := tx.PutResource(want[len(want)-1-i]); err != nil {
						return err
					}
				}
				return nil
			})
			h.read(func(tx store.Tx) error {
				got, err := tx.ListResources(tenant, "")
				h.same(want, got)
				for _, w := range want {
					one, err := tx.GetResource(tenant, w.Spec.Kind(), w.Spec.ResourceName())
					if err != nil {
						return err
					}
					h.same(w, one)
				}
				return err
			})
		},
		"resources are listed by kind": func(h *harness) {
			zone := core.Stored{Tenant: tenant, UID: "z", Version: 1, Spec: &core.PrivateDNSZone{Name: "a"}}
			h.write(func(tx store.Tx) error {
				for _, r := range []core.Stored{gateway("b"), gateway("a"), zone} {
					if err := tx.PutResource(r); err != nil {
						return err
					}
				}
				return nil
			})
			h.read(func(tx store.Tx) error {
				got, err := tx.ListResources(tenant, core.KindGateway)
				h.same([]core.Stored{gateway("a"), gateway("b")}, got)
				return err
			})
		},
		"PutResource updates": func(h *harness) {
			h.write(put(gateway("g")))
			changed := gateway("g")
			changed.Version, changed.UpdatedAt = 2, now().Add(time.Hour)
			changed.Spec = &core.Gateway{Name: "g", VNet: "other"}
			h.write(put(changed))
			h.read(func(tx store.Tx) error {
				got, err := tx.ListResources(tenant, "")
				h.same([]core.Stored{changed}, got)
				return err
			})
		},
		"a resource keeps its UID": func(h *harness) {
			h.write(put(gateway("g")))
			other := gateway("g")
			other.UID = "another"
			h.refused(errs.Conflict, put(other), "Gateway/g", "another")
		},
		"a UID is one resource's": func(h *harness) {
			h.write(put(gateway("g")))
			other := gateway("g2")
			other.UID = "uid-g"
			h.refused(errs.Conflict, put(other), "Gateway/g2", "uid-g", "Gateway/g")
		},
	}
}

func resourcesApart() map[string]func(h *harness) {
	return map[string]func(h *harness){
		"a deleted resource is gone, and its name free": func(h *harness) {
			h.write(put(gateway("g")))
			h.write(func(tx store.Tx) error { return tx.DeleteResource(tenant, core.KindGateway, "g") })
			h.missing(func(tx store.Tx) error { _, err := tx.GetResource(tenant, core.KindGateway, "g"); return err })
			h.refused(errs.NotFound, func(tx store.Tx) error { return tx.DeleteResource(tenant, core.KindGateway, "g") }, "Gateway/g")
			again := gateway("g")
			again.UID = "new"
			h.write(put(again))
		},
		"tenants don't see each other's resources": func(h *harness) {
			other := gateway("g")
			other.Tenant, other.UID = "t0", "u2"
			h.write(put(gateway("g")))
			h.write(put(other))
			h.read(func(tx store.Tx) error {
				got, err := tx.ListResources(tenant, "")
				h.same([]core.Stored{gateway("g")}, got)
				ids, _ := tx.ListTenants()
				h.same([]core.TenantID{"t0", tenant}, ids)
				return err
			})
			h.write(func(tx store.Tx) error { return tx.DeleteResource("t0", core.KindGateway, "g") })
			h.read(func(tx store.Tx) error { _, err := tx.GetResource(tenant, core.KindGateway, "g"); return err })
			h.missing(func(tx store.Tx) error { _, err := tx.GetResource("t0", core.KindGateway, "g"); return err })
		},
		"a password in the clear is refused": func(h *harness) {
			r := core.Stored{Tenant: tenant, UID: "u", Version: 1, Spec: &core.DataSource{Name: "d", Credentials: core.Credentials{Password: core.NewSecret("s3cret")}}}
			err := h.store.Write(h.ctx(), put(r))
			h.fails(err, errs.Internal, "DataSource/d", "Password")
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				h.Error("the message shows it")
			}
		},
	}
}

func secrets() map[string]func(h *harness) {
	seal := func(owner, name, value string) func(store.Tx) error {
		return func(tx store.Tx) error { return tx.PutSecret(tenant, owner, name, []byte(value)) }
	}
	return map[string]func(h *harness){
		"a secret is kept and replaced": func(h *harness) {
			h.write(put(gateway("g")))
			for _, v := range []string{"one\x00\xff", "two"} {
				h.write(seal("uid-g", "password", v))
				h.read(func(tx store.Tx) error {
					got, err := tx.GetSecret(tenant, "uid-g", "password")
					h.same([]byte(v), got)
					return err
				})
			}
		},
		"a secret goes with its resource": func(h *harness) {
			h.write(put(gateway("g")))
			h.write(seal("uid-g", "password", "x"))
			h.write(func(tx store.Tx) error { return tx.DeleteResource(tenant, core.KindGateway, "g") })
			h.missing(func(tx store.Tx) error { _, err := tx.GetSecret(tenant, "uid-g", "password"); return err })
			h.write(put(gateway("g"))) // the same UID again: nothing of it may come back
			h.missing(func(tx store.Tx) error { _, err := tx.GetSecret(tenant, "uid-g", "password"); return err })
		},
		"a secret outlives an update of its resource": func(h *harness) {
			h.write(put(gateway("g")))
			h.write(seal("uid-g", "password", "x"))
			h.write(put(gateway("g")))
			h.read(func(tx store.Tx) error { _, err := tx.GetSecret(tenant, "uid-g", "password"); return err })
		},
		"a secret has an owner of its tenant": func(h *harness) {
			h.refused(errs.NotFound, seal("nobody", "password", "x"), "nobody")
			h.write(put(gateway("g")))
			h.refused(errs.NotFound, func(tx store.Tx) error { return tx.PutSecret("t2", "uid-g", "password", []byte("x")) })
			h.write(seal("uid-g", "password", "x"))
			h.missing(func(tx store.Tx) error { _, err := tx.GetSecret("t2", "uid-g", "password"); return err })
			h.missing(func(tx store.Tx) error { _, err := tx.GetSecret(tenant, "uid-g", "other"); return err })
		},
	}
}

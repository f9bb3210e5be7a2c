package validate

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	defaultMembers   = 1
	defaultAutoPause = core.Duration(30 * time.Minute)
	defaultCPUs      = 2
	defaultMemoryMiB = 8192
)

// Defaults fills in what a resource leaves out. Doing it twice changes nothing more.
func Defaults(r core.Resource) {
	switch r := r.(type) {
	case *core.VirtualNetwork:
		for i := range r.Uplinks {
			if r.Uplinks[i].TUN != "" {
				setDefault(&r.Uplinks[i].Addressing.Mode, core.AddressingStatic)
			}
		}
		if len(r.DNS.Servers) > 0 {
			setDefault(&r.DNS.Timeout, core.DefaultDNSTimeout)
		}
	case *core.PrivateDNSZone:
		if len(r.Records) > 0 {
			setDefault(&r.TTL, core.DefaultRecordTTL)
		}
	case *core.NetworkSecurityGroup:
		if r.FlowLog.Enabled {
			r.FlowLog = r.FlowLog.WithDefaults()
		}
	case *core.NATGateway:
		setDefault(&r.IdleTimeout, minIdleTimeout)
	case *core.Gateway:
		setDefault(&r.Members.Max, max(r.Members.Min, defaultMembers))
		setDefault(&r.AutoPause, defaultAutoPause)
		setDefault(&r.Size.CPUs, defaultCPUs)
		setDefault(&r.Size.MemoryMiB, defaultMemoryMiB)
	case *core.DataSource:
		setDefault(&r.Credentials.Kind, core.CredentialAnonymous)
		if r.ReadOnly == nil {
			readOnly := true
			r.ReadOnly = &readOnly
		}
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

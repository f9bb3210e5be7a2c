package policy

import (
	"fmt"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

// manyRules is an NSG as large as it may be: most rules name a source and a port or a
// range, every anyPort-th names no port.
func manyRules(n, anyPort int) core.NetworkSecurityGroup {
	g := core.NetworkSecurityGroup{Name: "gateways"}
	for i := range n {
		r := core.SecurityRule{
			Name: fmt.Sprintf("rule-%d", i), Priority: 100 + i, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolTCP,
			Destination: []string{fmt.Sprintf("10.%d.%d.0/24", i%7+30, i%250)}, DestinationPorts: []string{fmt.Sprint(1000 + 7*i)},
		}
		if i%3 == 0 {
			r.DestinationPorts = append(r.DestinationPorts, fmt.Sprintf("%d-%d", 20000+i*10, 20000+i*10+40))
		}
		if anyPort > 0 && i%anyPort == 0 {
			r.DestinationPorts = nil
		}
		g.Rules = append(g.Rules, r)
	}
	return g
}

// BenchmarkCompile compiles 1,000 rules.
func BenchmarkCompile(b *testing.B) {
	for name, anyPort := range map[string]int{"ports": 0, "some for any port": 20, "half for any port": 2} {
		b.Run(name, func(b *testing.B) {
			in := corpInput()
			in.VNet.NSGs[0] = manyRules(1000, anyPort)
			for b.Loop() {
				if _, err := CompileVNet(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkEvaluate asks 1,000 rules about a flow that meets the last.
func BenchmarkEvaluate(b *testing.B) {
	v := corpVNet()
	v.NSGs[0] = manyRules(1000, 20)
	e := NewEvaluator(v, corpResolvers())
	f := Flow{Source: addr("10.20.0.4"), Destination: addr("10.20.1.4"), Protocol: core.ProtocolTCP, DestinationPort: 5432, SourcePort: 40000}
	for b.Loop() {
		if !e.Evaluate(f).Allowed {
			b.Fatal("denied")
		}
	}
}

package fake_test

import (
	"errors"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/hostnet/fake"
	"github.com/sluice-gateway/sluice/internal/hostnet/hostnettest"
)

func TestConformance(t *testing.T) {
	hostnettest.Run(t, func(t *testing.T) hostnettest.Machine {
		m := fake.NewMachine()
		return func() hostnet.Network { return fake.New(m) }
	})
}

func TestFailuresOnDemand(t *testing.T) {
	m := fake.NewMachine()
	n := fake.New(m)
	if err := n.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	cfg := hostnet.Config{VNets: []core.GoalVNet{hostnettest.VNet("red")}, Ports: []hostnet.Port{hostnettest.Port("red", 1)}}
	broken := errors.New("broken")
	m.Fail("member m-1", broken)
	if s, err := n.Set(t.Context(), cfg); err != nil || len(s.Ports) != 0 || len(s.Problems) != 1 || !errors.Is(s.Problems[0].Err, broken) {
		t.Errorf("a port that fails: %v, %v", s, err)
	}
	m.Fail("member m-1", nil)
	if s, err := n.Set(t.Context(), cfg); err != nil || len(s.Ports) != 1 || len(m.Ports()) != 1 || m.Sets() != 2 {
		t.Errorf("a port that fails no more: %v, %v", s, err)
	}
}

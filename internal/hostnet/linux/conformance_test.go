package linux

import (
	"context"
	"testing"

	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/hostnet/hostnettest"
)

func TestConformance(t *testing.T) {
	hostnettest.Run(t, func(t *testing.T) hostnettest.Machine {
		l := newLab(t)
		t.Cleanup(func() {
			if err := l.up0().CleanUp(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return func() hostnet.Network { return l.up0() }
	})
}

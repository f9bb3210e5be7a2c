package service

import (
	"context"
	"fmt"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/store"
)

// gatewayRef finds a gateway.
func (s *Service) gatewayRef(ctx context.Context, t core.TenantID, name string) (fleet.GatewayRef, error) {
	sn, err := s.snap(ctx, t)
	if err != nil {
		return fleet.GatewayRef{}, err
	}
	gw, err := sn.find(core.KindGateway, name)
	if err != nil {
		return fleet.GatewayRef{}, errs.As(err).WithHint("\"sluice get gateways\" lists them")
	}
	return fleet.GatewayRef{Tenant: t, Name: name, UID: gw.UID}, nil
}

// Wake implements Frontend.
func (s *Service) Wake(ctx context.Context, gateway string) error {
	return s.onGateway(ctx, "wake", gateway, func(ref fleet.GatewayRef) error {
		return s.opts.Fleet.Wake(ctx, ref, "woken by an administrator")
	})
}

// Pause implements Frontend.
func (s *Service) Pause(ctx context.Context, gateway string) error {
	return s.onGateway(ctx, "pause", gateway, func(ref fleet.GatewayRef) error {
		return s.opts.Fleet.Pause(ctx, ref, "paused by an administrator")
	})
}

// Restart implements Frontend.
func (s *Service) Restart(ctx context.Context, gateway string) error {
	return s.onGateway(ctx, "restart", gateway, func(ref fleet.GatewayRef) error {
		if err := s.opts.Fleet.Pause(ctx, ref, "restarted by an administrator"); err != nil {
			return err
		}
		return s.opts.Fleet.Wake(ctx, ref, "restarted by an administrator")
	})
}

// onGateway runs an administrator's act on a gateway and keeps an audit entry of it.
func (s *Service) onGateway(ctx context.Context, act, gateway string, do func(fleet.GatewayRef) error) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	ref, err := s.gatewayRef(ctx, p.Tenant, gateway)
	if err != nil {
		return err
	}
	note := "done"
	err = do(ref)
	if err != nil {
		note = fmt.Sprintf("failed: %v", err)
	}
	auditErr := s.opts.Store.Write(context.WithoutCancel(ctx), func(tx store.Tx) error {
		return s.audit(tx, p, act, objectName(core.KindGateway, gateway), note, "")
	})
	if auditErr != nil {
		s.log.Error("an audit entry could not be written", "act", act, "gateway", gateway, "error", auditErr)
	}
	return err
}

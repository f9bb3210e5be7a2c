package storetest

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

func transition(of, uid, to string, at time.Time) core.Transition {
	return core.Transition{At: at, Tenant: tenant, Of: of, UID: uid, GatewayUID: "g1", From: "Paused", To: to, Event: "wake requested", Reason: "a query"}
}

func histories() map[string]func(h *harness) {
	appended := func(ts ...core.Transition) func(store.Tx) error {
		return func(tx store.Tx) error { return tx.AppendTransitions(ts) }
	}
	listed := func(h *harness, f store.TransitionFilter, want ...core.Transition) {
		h.Helper()
		h.read(func(tx store.Tx) error {
			got, err := tx.ListTransitions(f)
			h.same(want, got)
			return err
		})
	}
	changed := func(uid, to string, at time.Time) core.Transition { return transition("Gateway", uid, to, at) }
	return map[string]func(h *harness){
		"changes of state come back newest first, so many of each object": func(h *harness) {
			a, b, c := changed("g1", "Waking", now()), changed("g1", "Running", now()), changed("g1", "Paused", now().Add(-time.Hour))
			other, member := changed("g2", "Waking", now()), transition("Member", "m-1", "ready", now())
			other.Tenant = "t2"
			h.write(appended(a, b))
			h.write(appended(other, c, member))
			h.write(appended())
			listed(h, store.TransitionFilter{}, member, c, other, b, a)
			listed(h, store.TransitionFilter{Tenant: tenant}, member, c, b, a)
			listed(h, store.TransitionFilter{Of: "Gateway", Last: 1}, c, other)
			listed(h, store.TransitionFilter{UID: "g1", Last: 2}, c, b)
			listed(h, store.TransitionFilter{Of: "Member"}, member)
			stranger := member
			stranger.UID, stranger.GatewayUID = "m-2", "g2"
			h.write(appended(stranger))
			listed(h, store.TransitionFilter{Of: "Member", GatewayUID: "g1"}, member)
			listed(h, store.TransitionFilter{Of: "Member", GatewayUID: "g2"}, stranger)
			listed(h, store.TransitionFilter{UID: "nothing"})
		},
		"old changes of state go, but the last of a gateway that exists": func(h *harness) {
			kept := gateway("bi")
			h.write(put(kept))
			old, last := changed(kept.UID, "Waking", now()), changed(kept.UID, "Running", now())
			gone, member := changed("g2", "Paused", now()), transition("Member", "m-1", "gone", now())
			h.write(appended(old, last, gone, member))
			h.write(func(tx store.Tx) error { return tx.PurgeTransitions(now()) })
			listed(h, store.TransitionFilter{}, member, gone, last, old)
			h.write(func(tx store.Tx) error { return tx.PurgeTransitions(now().Add(time.Second)) })
			listed(h, store.TransitionFilter{}, last)
		},
		"a change that says nothing is refused": func(h *harness) {
			for _, bad := range []core.Transition{{}, {At: now(), Tenant: tenant, Of: "Host", UID: "h", To: "x", Event: "e"}} {
				h.refused(errs.Internal, appended(bad))
			}
			listed(h, store.TransitionFilter{})
		},
	}
}

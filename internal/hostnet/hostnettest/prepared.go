package hostnettest

import (
	"slices"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

func prepare(t *testing.T, n hostnet.Network, name string) (path string) {
	t.Helper()
	path, err := n.(hostnet.Preparer).Prepare(bounded(t), name)
	if err != nil || path == "" {
		t.Fatalf("Prepare(%s) = %q, %v", name, path, err)
	}
	return path
}

func isPrepared(t *testing.T, n hostnet.Network, name string) bool {
	t.Helper()
	items, err := n.Inventory(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(items, func(i hostnet.Item) bool { return i.Why == "prepared "+name })
}

func testPrepared(t *testing.T, m Machine) {
	n := up(t, m)
	vnets := []core.GoalVNet{VNet("red")}
	a, b := Port("red", 1), Port("red", 2)
	for _, name := range []string{"one", "two", "three"} {
		prepare(t, n, name)
	}
	if _, err := n.(hostnet.Preparer).Prepare(bounded(t), "one"); errs.ClassOf(err) != errs.Conflict {
		t.Errorf("preparing one twice: %v", err)
	}
	set(t, n, config(vnets))
	for _, name := range []string{"one", "two", "three"} {
		if !isPrepared(t, n, name) {
			t.Errorf("a Set has removed %s", name)
		}
	}
	cfg := config(vnets, a, b)
	cfg.Prepared = map[hostnet.PortKey]string{a.Key(): "one", b.Key(): "unknown"}
	first := set(t, n, cfg)
	wantPorts(t, first, a, b)
	wantGone(t, n, "prepared one")
	// A port that has its namespace takes no other.
	cfg.Prepared = map[hostnet.PortKey]string{a.Key(): "two"}
	if again := set(t, n, cfg); again.Ports[a.Key()] != first.Ports[a.Key()] || !isPrepared(t, n, "two") {
		t.Errorf("the port moved to %s", again.Ports[a.Key()])
	}
	for _, name := range []string{"two", "one", "never"} {
		if err := n.(hostnet.Preparer).Discard(name); err != nil {
			t.Errorf("Discard(%s): %v", name, err)
		}
	}
	wantGone(t, n, "prepared two")
	wantPorts(t, set(t, n, cfg), a, b)
	wantPorts(t, set(t, n, config(vnets, b)), b)
	wantGone(t, n, a.Member)
	if !isPrepared(t, n, "three") {
		t.Error("three is gone, and nobody took it")
	}
}

// testPreparedByAnother: what a process prepared is of no use to the next one; the port
// that took a namespace keeps it.
func testPreparedByAnother(t *testing.T, m Machine) {
	vnets := []core.GoalVNet{VNet("red")}
	a := Port("red", 1)
	n := up(t, m)
	prepare(t, n, "taken")
	prepare(t, n, "left")
	cfg := config(vnets, a)
	cfg.Prepared = map[hostnet.PortKey]string{a.Key(): "taken"}
	before := set(t, n, cfg)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = up(t, m)
	prepare(t, n, "own")
	after := set(t, n, config(vnets, a))
	wantPorts(t, after, a)
	if before.Ports[a.Key()] != after.Ports[a.Key()] {
		t.Errorf("the port moved from %s to %s", before.Ports[a.Key()], after.Ports[a.Key()])
	}
	wantGone(t, n, "prepared left", "prepared taken")
	if !isPrepared(t, n, "own") {
		t.Error("its own is gone")
	}
}

package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	_ "modernc.org/sqlite"

	"github.com/sluice-gateway/sluice/internal/core"
)

// TestPromise1NoAddressTwice has five gateways fight for the three addresses of a /29,
// which rest for a millisecond only, while service, host and members are killed. The
// confirmed teardown is then all that keeps an address from two members at once.
func TestPromise1NoAddressTwice(t *testing.T) {
	busy.take(t)
	l := newLab(t, sharedPG(t), "--quarantine", "1ms")
	fighters := smallSubnet(l)
	watch := watchAddresses(t, l.corp)
	var wg sync.WaitGroup
	var woken atomic.Int64
	enough := func() bool { return woken.Load() >= 3 && watch.samples.Load() >= 20 && watch.busiest.Load() >= 2 }
	ctx, cancel := chaosContext(18*time.Second, enough)
	defer cancel()
	for _, name := range fighters {
		wg.Go(func() {
			for ctx.Err() == nil {
				if fight(ctx, l, name) {
					woken.Add(1)
				}
			}
		})
	}
	m := newMonkey(l, seeded(t))
	for ctx.Err() == nil {
		m.pause(2000)
		m.strike()
	}
	wg.Wait()
	l.Ready()
	for _, name := range fighters {
		l.Must("gateway", "pause", name)
	}
	worksAgain(t, l.api, 90*time.Second)
	checkSettled(t, l)
	watch.end()
	t.Logf("%d wakes, strikes %v, %d samples, at most %d addresses at once", woken.Load(), m.strikes, watch.samples.Load(), watch.busiest.Load())
	if !enough() {
		t.Error("too little happened for this test to mean anything")
	}
}

// fight wakes a gateway and pauses it again. Who finds no address free tries again at
// once, so that an address that is released a moment too early is taken in that moment.
func fight(ctx context.Context, l *lab, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	if l.api.Gateway(ctx, "wake", name) != nil {
		time.Sleep(3 * time.Millisecond)
		return false
	}
	_ = l.api.Gateway(ctx, "pause", name) // the next turn does it if this one can't
	return true
}

// smallSubnet narrows the gateways' subnet to three addresses, and makes gateways that
// share it. It returns their names.
func smallSubnet(l *lab) []string {
	l.rewrite("network.yaml", "prefix: 10.20.0.0/24", "prefix: 10.20.0.0/29")
	l.applyExample()
	var doc strings.Builder
	var names []string
	for i := range 5 {
		name := fmt.Sprintf("fighter-%d", i)
		names = append(names, name)
		fmt.Fprintf(&doc, "---\nkind: Gateway\nname: %s\nvnet: corp\nsubnet: gateways\n", name)
	}
	l.Apply(doc.String())
	return names
}

// addressWatch samples who has which address.
type addressWatch struct {
	samples atomic.Int64 // how often it looked
	busiest atomic.Int64 // the most addresses that a host had at once
	end     func()
}

// watchAddresses samples, until its end, who has which address: on the host, and in the
// service's store. Any address twice fails the test.
func watchAddresses(t *testing.T, c *corp) *addressWatch {
	t.Helper()
	store, err := sql.Open("sqlite", "file:"+c.Data+"/sluice.db?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	w := &addressWatch{}
	go func() {
		defer close(ended)
		defer store.Close()
		for read := time.Now(); ; {
			if holders, err := storeHolders(store); err == nil {
				onHost := hostHolders(c)
				reportTwice(t, "the store", holders)
				reportTwice(t, "the host", onHost)
				w.samples.Add(1)
				w.busiest.Store(max(w.busiest.Load(), int64(len(onHost))))
				read = time.Now()
			} else if time.Since(read) > time.Minute { // whoever writes may have died, or its disk be full
				t.Errorf("read the store: %v", err)
				return
			}
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	stop := sync.OnceFunc(func() { close(done) })
	w.end = func() { stop(); <-ended }
	t.Cleanup(w.end)
	return w
}

func reportTwice(t *testing.T, where string, holders map[string][]string) {
	for address, who := range holders {
		if len(who) > 1 {
			t.Errorf("%s: address %s is held by %s", where, address, strings.Join(who, " and "))
		}
	}
}

// storeHolders reads who has which address: the members that are not gone, and the
// leases that are held by somebody else than such a member.
func storeHolders(db *sql.DB) (map[string][]string, error) {
	rows, err := db.Query(`
		select vnet_uid || ' ' || address, id from members where state <> 'gone'
		union
		select vnet_uid || ' ' || address, member from leases where state = 'held'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string][]string{}
	for rows.Next() {
		var address, who string
		if err := rows.Scan(&address, &who); err != nil {
			return nil, err
		}
		out[address] = append(out[address], who)
	}
	return out, rows.Err()
}

// hostHolders asks the kernel which namespaces of members have which address: those
// that have a name, and those that a process of a member is in.
func hostHolders(c *corp) map[string][]string {
	paths := map[uint64]string{}
	for _, p := range c.spaces("m") {
		if ino, ok := inode(p); ok {
			paths[ino] = p
		}
	}
	for id, pid := range c.containers() {
		p := fmt.Sprintf("/proc/%d/ns/net", pid)
		if ino, ok := inode(p); ok && paths[ino] == "" && ino != ownSpace() {
			paths[ino] = p + " (" + id + ")"
		}
	}
	out := map[string][]string{}
	for _, p := range paths {
		path, _, _ := strings.Cut(p, " ")
		for _, a := range ethAddresses(path) {
			out[a] = append(out[a], filepath.Base(p)+" of "+p)
		}
	}
	return out
}

func ownSpace() uint64 {
	ino, _ := inode("/proc/self/ns/net")
	return ino
}

// ethAddresses lists the addresses of eth0 in a namespace, which may be going away.
func ethAddresses(path string) []string {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		return nil
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range addrs {
		out = append(out, a.IP.String())
	}
	return out
}

// checkSettled compares what the service says with what the machine has, once it has
// come to rest: exactly the members that it lists exist, each with its lease.
func checkSettled(t *testing.T, l *lab) {
	t.Helper()
	why := ""
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if why = disagreement(l); why == "" {
			return
		}
	}
	t.Errorf("members, leases, containers and namespaces don't come to agree: %s", why)
}

func disagreement(l *lab) string {
	members, err := listObjects[core.Member](l.api, "members")
	if err != nil {
		return err.Error()
	}
	leases, err := listObjects[core.Lease](l.api, "leases")
	if err != nil {
		return err.Error()
	}
	held := map[string]bool{}
	for _, lease := range leases {
		if lease.State == core.LeaseHeld {
			held[fmt.Sprintf("%s-%d %s", lease.Member, lease.Generation, lease.Address)] = true
		}
	}
	containers := l.containers()
	for _, m := range members {
		id := fmt.Sprintf("%s-%d", m.ID, m.Generation)
		switch {
		case m.State != core.MemberReady:
			return "member " + id + " is " + string(m.State)
		case !held[id+" "+m.Address.String()]:
			return "member " + id + " holds no lease on " + m.Address.String()
		case containers[id] == 0:
			return "member " + id + " has no container"
		}
	}
	if n := len(members); len(held) != n || len(containers) != n || len(l.spaces("m")) != n {
		return fmt.Sprintf("%d members, %d leases held, %d containers, %d namespaces", n, len(held), len(containers), len(l.spaces("m")))
	}
	return ""
}

func inode(path string) (uint64, bool) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return statInode(fi), true
}

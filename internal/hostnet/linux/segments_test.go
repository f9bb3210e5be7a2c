package linux

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// TestSegments sends a stream over each way and looks at the size of what the kernel
// carried: large within the machine, and never cut into single packets on the way out.
func TestSegments(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	g := corp("u1")
	m := member(g, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{g}, Ports: []hostnet.Port{m}}), m)
	v := n.vnets["u1"]
	relay, err := n.TunnelListener()
	if err != nil {
		t.Fatal(err)
	}
	outside, err := openSpace("sluicetest-" + l.instance + "-w")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.close()
	world, err := outside.listenTCP(l.ctx(), labWorldAddr+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	for _, c := range []struct {
		name     string
		server   *net.TCPListener
		through  string // the namespace that counts
		comment  string
		from, to int // bytes that a packet has on average
	}{
		{"tunnel", relay.(*net.TCPListener), n.tunnel.at.path, "to the relay", 70_000, 524_280},
		{"way out", world, v.at.path, "a member, from its own MAC and address", 30_000, 65_536},
	} {
		t.Run(c.name, func(t *testing.T) {
			stream(t, at, c.server, 256<<20)
			if size := averageSize(t, c.through, c.comment); size < c.from || size > c.to {
				t.Errorf("%d bytes a packet, want %d to %d", size, c.from, c.to)
			}
		})
	}
}

// stream sends bytes from a namespace to a listener.
func stream(t *testing.T, from string, to *net.TCPListener, n int64) {
	t.Helper()
	client, err := dialIn(t, from, to.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := to.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 1<<20)
		for left := n; left > 0; left -= int64(len(buf)) {
			if _, err := client.Write(buf); err != nil {
				return // the reader misses it
			}
		}
		client.(*net.TCPConn).CloseWrite()
	}()
	server.SetDeadline(time.Now().Add(time.Minute))
	if got, err := io.Copy(io.Discard, server); err != nil || got != n {
		t.Fatalf("%d bytes came, want %d: %v", got, n, err)
	}
}

// averageSize reads the busiest counter with a comment.
func averageSize(t *testing.T, path, comment string) int {
	t.Helper()
	best := 0
	list := regexp.MustCompile(fmt.Sprintf(`counter packets (\d+) bytes (\d+) accept comment "%s"`, regexp.QuoteMeta(comment)))
	for _, m := range list.FindAllStringSubmatch(nft(t, path, "list ruleset"), -1) {
		packets, _ := strconv.Atoi(m[1])
		if bytes, _ := strconv.Atoi(m[2]); packets > 0 {
			best = max(best, bytes/packets)
		}
	}
	return best
}

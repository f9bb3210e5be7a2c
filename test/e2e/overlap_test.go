package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// twin is a network with the same prefixes, addresses and names as its twin; only the
// names of the resources and the database behind the endpoint differ.
func twin(name, target, port string) string {
	return fmt.Sprintf(`---
kind: VirtualNetwork
name: %[1]s
addressSpace: [10.20.0.0/16]
subnets:
  - {name: gateways, prefix: 10.20.0.0/24, delegation: sluice/gateways}
  - {name: data, prefix: 10.20.1.0/24}
---
kind: PrivateDNSZone
name: %[1]s.internal
vnets: [%[1]s]
---
kind: PrivateEndpoint
name: db-%[1]s
vnet: %[1]s
subnet: data
address: 10.20.1.4
target: %[2]s
dnsName: db.%[1]s.internal
---
kind: Gateway
name: gw-%[1]s
vnet: %[1]s
subnet: gateways
members: {min: 0, max: 1}
---
kind: DataSource
name: db-%[1]s
gateway: gw-%[1]s
type: postgres
parameters: {host: 10.20.1.4, port: %[3]s, database: orders, tls: disable}
credentials: {kind: basic, username: report, password: %[4]q}
`, name, target, port, password)
}

// forward accepts connections and splices them to an address, until the test ends.
func forward(t *testing.T, l net.Listener, target string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { splice(ctx, in, target) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
}

// splice copies both ways until either side ends, or ctx.
func splice(ctx context.Context, in net.Conn, target string) {
	defer in.Close()
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() {
		in.Close()
		out.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			in.Close()
			out.Close()
		})
	}
	wg.Wait()
}

// TestTwoNetworksWithTheSamePrefixes runs queries in both at once: same subnets, same
// leased address, same endpoint address and port, different databases.
func TestTwoNetworksWithTheSamePrefixes(t *testing.T) {
	busy.take(t)
	red, blue := sharedPG(t), startPG(t)
	port := fmt.Sprint(red.Port)
	l, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c := prepareCorp(t, t, red)
	forward(t, l, fmt.Sprintf("127.0.0.1:%d", blue.Port))
	for colour, pg := range map[string]*testpg.Server{"red": red, "blue": blue} {
		pg.Exec(t, fmt.Sprintf("drop table if exists whose; create table whose (v text); grant select on whose to report; insert into whose values ('%s')", colour))
	}
	c.Up()
	c.Apply(twin("red", "127.0.0.1:"+port, port) + twin("blue", "127.0.0.2:"+port, port))

	var wg sync.WaitGroup
	for _, colour := range []string{"red", "blue"} {
		wg.Go(func() {
			for range 5 {
				r := c.Sluice("query", "-s", "db-"+colour, "-o", "csv", "select v from whose")
				if want := "v\r\n" + colour + "\r\n"; r.Exit != 0 || r.Out != want {
					t.Errorf("%s: %+v", colour, r)
				}
			}
		})
	}
	wg.Wait()
	held := c.leased()
	if len(held) != 2 || held[0].Address != held[1].Address || held[0].VNet == held[1].VNet {
		t.Errorf("want one address leased in each network, got %+v", held)
	}
	for colour, other := range map[string]string{"red": "blue", "blue": "red"} {
		c.Must("check", "-g", "gw-"+colour, "--to", "db."+colour+".internal:"+port)
		if r := c.Sluice("check", "-g", "gw-"+colour, "--to", "db."+other+".internal:"+port); r.Exit != 1 {
			t.Errorf("%s knows a name of %s's private zone: %+v", colour, other, r)
		}
	}
}

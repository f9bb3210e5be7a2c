package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/nettest"
)

// besideTheAttacker adds to the battlefield: a second member to the network without rules,
// and a data source that the attacker's neighbour queries.
const besideTheAttacker = `
kind: Gateway
name: twin-two
vnet: twin
subnet: gateways
---
kind: DataSource
name: orders-two
gateway: corp-two
type: postgres
parameters: {host: 10.20.1.4, port: %d, database: orders, tls: disable}
credentials: {kind: basic, username: report, password: %q}
`

// field is the battlefield of the tests below. Of each network, one member attacks and the
// other must not notice.
type field struct {
	*battlefield
	twinTwo core.Member
}

// TestIsolation attacks from inside members' namespaces with all that root can do there:
// frames of any content, floods, and as many connections as it can get. Each attack has a
// control beside it that differs from it in the forged thing alone, and passes.
func TestIsolation(t *testing.T) {
	busy.take(t)
	b := newBattlefield(t)
	b.Apply(fmt.Sprintf(besideTheAttacker, b.PG.Port, b.PG.Password))
	f := &field{battlefield: b, twinTwo: b.memberOf(t, b.Client(), "twin-two")}
	for _, attack := range []struct {
		name string
		try  func(*field, *testing.T)
	}{
		{"frames on the lease's interface", (*field).framesOnEth},
		{"frames on the tunnel's interface", (*field).framesOnTun},
		{"ARP", (*field).arpTricks},
		{"abstract sockets", (*field).abstractSockets},
		{"connections to the relay", (*field).relayConnections},
		{"half-open connections to the relay", (*field).relayHalfOpen},
		{"connections to a private endpoint", (*field).endpointConnections},
		{"half-open connections to a private endpoint", (*field).endpointHalfOpen},
		{"UDP flows between members", (*field).udpBetweenMembers},
		{"UDP flows through the NAT gateway", (*field).udpThroughNAT},
		{"questions to the resolver", (*field).questionsToTheResolver},
	} {
		t.Run(attack.name, func(t *testing.T) {
			view := *b
			view.corp = b.on(t)
			attack.try(&field{battlefield: &view, twinTwo: f.twinTwo}, t)
		})
		if got := b.value("select 1"); got != "1" {
			t.Errorf("after %s, the attacker's own gateway answers %q", attack.name, got)
		}
	}
}

// neighbourWorks runs a query through the neighbour's gateway.
func (f *field) neighbourWorks(t *testing.T, when string) {
	t.Helper()
	r := f.Sluice("query", "-s", "orders-two", "-o", "csv", "select 2 as two")
	if r.Exit != 0 || r.Out != "two\r\n2\r\n" {
		t.Errorf("%s, the neighbour's query: %+v", when, r)
	}
}

// abstractSockets dials a socket of the host that has no path, and so no file's rights:
// the network namespace alone keeps members away from it.
func (f *field) abstractSockets(t *testing.T) {
	name := "@sluice-e2e-" + f.Instance()
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveEcho(l)
	call := func() error {
		c, err := net.DialTimeout("unix", name, 5*time.Second)
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := call(); err != nil {
		t.Fatalf("the host itself can't reach it: %v", err)
	}
	if err := nettest.In(f.memberSpace(f.attacker), call); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("from a member's namespace: %v, want a refusal", err)
	}
}

// greets makes a TLS handshake with the service through the relay: in TLS 1.3 it is over for
// the client before the service asks for its certificate.
func (f *field) greets(m core.Member) error {
	return nettest.In(f.memberSpace(m), func() error {
		d := net.Dialer{Timeout: 10 * time.Second}
		d.SetMultipathTCP(false)
		c, err := d.Dial("tcp4", relayAddress)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
	})
}

// crowd is connections that are held open.
type crowd struct {
	open    []net.Conn
	refused int
}

// gather opens n connections from a namespace and keeps those that are not reset.
func gather(t *testing.T, space, addr string, n int) *crowd {
	t.Helper()
	c := &crowd{}
	err := nettest.In(space, func() error {
		d := net.Dialer{Timeout: 10 * time.Second}
		d.SetMultipathTCP(false)
		for range n {
			conn, err := d.Dial("tcp4", addr)
			if errors.Is(err, unix.ECONNRESET) {
				c.refused++
				continue
			}
			if err != nil {
				return err
			}
			c.open = append(c.open, conn)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("dial %s: %v", addr, err)
	}
	t.Cleanup(c.disperse)
	return c
}

// sift takes out the connections that were reset meanwhile.
func (c *crowd) sift() {
	var kept []net.Conn
	for _, conn := range c.open {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			kept = append(kept, conn)
			continue
		}
		conn.Close()
		c.refused++
	}
	c.open = kept
}

func (c *crowd) disperse() {
	for _, conn := range c.open {
		conn.Close()
	}
	c.open = nil
}

// relayConnections asks for more connections than a member may have.
func (f *field) relayConnections(t *testing.T) {
	const most, more = 128, 40
	c := gather(t, f.memberSpace(f.attacker), relayAddress, most+more)
	eventually(t, 60*time.Second, "those past the limit are reset", func() bool {
		c.sift()
		return c.refused >= more
	})
	if len(c.open) > most {
		t.Errorf("%d connections are open, the limit is %d", len(c.open), most)
	}
	// Whichever bound is met first: the relay's, or that of handshakes that don't end.
	eventually(t, 60*time.Second, "the host's log says that a member is over its limit", func() bool {
		log := f.Proc("up").Log.String()
		return strings.Contains(log, "over the member's limit") || strings.Contains(log, "one address has too many connections")
	})
	if err := f.greets(f.neighbour); err != nil {
		t.Errorf("the neighbour's handshake with the service: %v", err)
	}
	f.neighbourWorks(t, "while the relay refuses a member")
	c.disperse()
	eventually(t, 60*time.Second, "the relay takes the member's connections again", func() bool { return f.greets(f.attacker) == nil })
}

// endpointConnections asks for more of a private endpoint's connections than a member may
// have of it.
func (f *field) endpointConnections(t *testing.T) {
	const most, more = 256, 40
	endpoint := fmt.Sprintf("10.20.1.7:%d", f.echo)
	c := gather(t, f.memberSpace(f.twin), endpoint, most+more)
	eventually(t, 60*time.Second, "those past the limit are reset", func() bool {
		c.sift()
		return c.refused >= more
	})
	if len(c.open) != most {
		t.Errorf("%d connections are open, the limit is %d", len(c.open), most)
	}
	if err := echoes(f.memberSpace(f.twinTwo), endpoint); err != nil {
		t.Errorf("the neighbour, meanwhile: %v", err)
	}
	c.disperse()
	eventually(t, 60*time.Second, "the endpoint takes the member's connections again", func() bool {
		return echoes(f.memberSpace(f.twin), endpoint) == nil
	})
}

// echoes sends a byte to a server that gives it back.
func echoes(space, addr string) error {
	return nettest.In(space, func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		d.SetMultipathTCP(false)
		c, err := d.Dial("tcp4", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	})
}

package linux

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// nearLAN is a network of the host's own, with a neighbour that believes 203.0.113.0/24
// to be near; the administrator has the host answer for one address of it already.
func nearLAN(l *lab) string {
	l.t.Helper()
	lan := l.space("near")
	l.ip(l.host, "link", "add", "near0", "type", "veth", "peer", "name", "near0", "netns", filepath.Base(lan))
	l.ip(l.host, "addr", "add", "203.0.113.1/24", "dev", "near0")
	l.ip(l.host, "link", "set", "near0", "up")
	l.ip(lan, "addr", "add", "203.0.113.20/24", "dev", "near0")
	l.ip(lan, "link", "set", "near0", "up")
	l.ip(l.host, "neigh", "add", "proxy", "203.0.113.77", "dev", "near0")
	serveIn(l.t, lan, "203.0.113.20:80", "near")
	return lan
}

// proxies lists what the lab's host answers ARP for.
func (l *lab) proxies() (out []string) {
	l.t.Helper()
	for line := range strings.Lines(l.ip(l.host, "neigh", "show", "proxy")) {
		f := strings.Fields(line)
		out = append(out, f[2]+" "+f[0])
	}
	slices.Sort(out)
	return out
}

func TestNATAnswersARPOnTheHostsNetworks(t *testing.T) {
	t.Parallel()
	const admins = "near0 203.0.113.77"
	for name, end := range map[string]func(*testing.T, *lab, *Network, hostnet.Config){
		"the NAT gateway is deleted": func(_ *testing.T, l *lab, n *Network, cfg hostnet.Config) {
			cfg.VNets[0].NATGateways = nil
			cfg.VNets[0].Subnets = slices.Clone(cfg.VNets[0].Subnets)
			for i := range cfg.VNets[0].Subnets {
				cfg.VNets[0].Subnets[i].NATGateway = ""
			}
			l.set(n, cfg)
			n.reaper.wait()
		},
		"a crash, and cleanup": func(t *testing.T, l *lab, n *Network, _ hostnet.Config) {
			if err := errorsOf(n.Close(), again(t, l).CleanUp(l.ctx())); err != nil {
				t.Error(err)
			}
		},
		"a crash, the loss of its interface, and a start without the network": func(t *testing.T, l *lab, n *Network, _ hostnet.Config) {
			link := n.names.natHostLink("u1-egress")
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			l.ip(l.host, "link", "del", link)
			next := l.up()
			l.set(next, hostnet.Config{})
			next.reaper.wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			lan := nearLAN(l)
			delay := l.sysctl(proxyDelayKey("near0"))
			net := corp("u1")
			net.NATGateways[0].PublicAddresses = []string{"203.0.113.8/31", "192.0.2.7"} // the last lies on no network of the host
			m := member(net, 1, 1)
			cfg := hostnet.Config{VNets: []core.GoalVNet{net}, Ports: []hostnet.Port{m}}
			n := l.up()
			at := portOf(t, l.set(n, cfg), m)
			want := []string{admins, "near0 203.0.113.8", "near0 203.0.113.9"}
			if diff := cmp.Diff(want, l.proxies()); diff != "" {
				t.Error(diff)
			}
			l.ip(lan, "link", "set", "near0", "down") // the host loses the carrier
			l.ip(lan, "link", "set", "near0", "up")
			mac := strings.Fields(l.ip(l.host, "-o", "link", "show", "dev", "near0"))
			mine := mac[slices.Index(mac, "link/ether")+1]
			wantARP(t, l, lan, map[string]string{"203.0.113.8": mine, "203.0.113.9": mine, "203.0.113.10": ""})
			cfg.VNets[0].NATGateways[0].PublicAddresses = []string{"203.0.113.9", "192.0.2.7"}
			l.set(n, cfg)
			if diff := cmp.Diff([]string{admins, "near0 203.0.113.9"}, l.proxies()); diff != "" {
				t.Error("after one address less:", diff)
			}
			cfg.VNets[0].NATGateways[0].PublicAddresses = []string{"203.0.113.9"}
			l.set(n, cfg)
			l.ip(lan, "neigh", "flush", "all")
			wantGreeting(t, at, "203.0.113.20:80", "near 203.0.113.9")
			items, err := n.Inventory(l.ctx())
			if text := fmt.Sprint(items); err != nil || !contains(text, "ARP answer near0 203.0.113.9 a public address") || strings.Contains(text, "203.0.113.77") {
				t.Errorf("%v: the inventory is not right about ARP answers: %s", err, text)
			}

			other := l.otherInstallation()
			if err := other.CleanUp(l.ctx()); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{admins, "near0 203.0.113.9"}, l.proxies()); diff != "" {
				t.Error("after another installation's cleanup:", diff)
			}

			end(t, l, n, cfg)
			if diff := cmp.Diff([]string{admins}, l.proxies()); diff != "" {
				t.Error("at the end:", diff)
			}
			if now := l.sysctl(proxyDelayKey("near0")); now != delay {
				t.Errorf("proxy_delay is %s at the end and was %s", now, delay)
			}
		})
	}
}

// otherInstallation is one beside the lab's, on the same host.
func (l *lab) otherInstallation() *Network {
	l.t.Helper()
	o := l.options()
	o.Instance, o.StateDir = random(4), l.t.TempDir()
	n, err := New(o)
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

// TestNATAnswersARPWhereTheHostJoinsLater: the network is one of the host's only later.
func TestNATAnswersARPWhereTheHostJoinsLater(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	net := corp("u1")
	net.NATGateways[0].PublicAddresses = []string{"203.0.113.9"}
	cfg := hostnet.Config{VNets: []core.GoalVNet{net}}
	n := l.up(func(o *Options) { o.VerifyEvery = -1 })
	l.set(n, cfg)
	if got := l.proxies(); len(got) != 0 {
		t.Errorf("ARP is answered for an address that is not near: %v", got)
	}
	nearLAN(l)
	l.set(n, cfg)
	if diff := cmp.Diff([]string{"near0 203.0.113.77", "near0 203.0.113.9"}, l.proxies()); diff != "" {
		t.Error(diff)
	}
	l.ip(l.host, "addr", "add", "172.31.9.1/24", "dev", "near0") // without any the kernel forgets all answers
	l.ip(l.host, "addr", "del", "203.0.113.1/24", "dev", "near0")
	l.set(n, cfg)
	if diff := cmp.Diff([]string{"near0 203.0.113.77"}, l.proxies()); diff != "" {
		t.Error("after the host left that network:", diff)
	}
}

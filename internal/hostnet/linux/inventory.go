package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// Inventory implements hostnet.Network. It asks the kernel, not this process's memory.
func (n *Network) Inventory(ctx context.Context) ([]hostnet.Item, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	names, err := namespaces(n.names.prefix())
	if err != nil {
		return nil, err
	}
	var items []hostnet.Item
	for _, name := range names {
		found, err := inventorySpace(name)
		if err != nil {
			return nil, fmt.Errorf("looking into namespace %s: %w", name, err)
		}
		items = append(items, found...)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	found, err := n.inventoryHost()
	if err != nil {
		return nil, err
	}
	uplinks, err := n.inventoryUplinks()
	if err != nil {
		return nil, err
	}
	return append(append(append(items, found...), uplinks...), n.inventoryListeners()...), nil
}

// Left implements hostnet.Network. A port has a namespace of its own, and an interface
// in that of all tunnels and in that of one virtual network; which one is not known.
func (n *Network) Left(ctx context.Context, ports []hostnet.PortKey) ([]hostnet.PortKey, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	outer, release, err := n.outerSpaces()
	if err != nil {
		return nil, err
	}
	defer release()
	var left []hostnet.PortKey
	for _, k := range ports {
		exists := isNamespace(filepath.Join(netnsDir, n.names.member(k)))
		for i := 0; i < len(outer) && !exists; i++ {
			for _, link := range []string{portLink(k), tunnelLink(k)} {
				_, err := outer[i].nl.LinkByName(link)
				if err != nil && !gone(err) {
					return nil, fmt.Errorf("looking for interface %s in namespace %s: %w", link, outer[i].name, err)
				}
				exists = exists || err == nil
			}
		}
		if exists {
			left = append(left, k)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// outerSpaces opens the namespaces in which ports have their outer ends.
func (n *Network) outerSpaces() (spaces []*space, release func(), err error) {
	have := map[string]*space{}
	for uid, v := range n.vnets {
		have[n.names.vnet(uid)] = v.at
	}
	if n.tunnel != nil {
		have[n.names.tunnel()] = n.tunnel.at
	}
	var opened []*space
	release = func() {
		for _, s := range opened {
			s.close()
		}
	}
	all, err := namespaces(n.names.prefix())
	for _, name := range all {
		s := have[name]
		if s == nil && (name == n.names.tunnel() || strings.HasPrefix(name, n.names.prefix()+"v-")) {
			if s, err = openSpace(name); errors.Is(err, os.ErrNotExist) {
				err = nil
				continue
			}
			if err != nil {
				break
			}
			opened = append(opened, s)
		}
		if s != nil {
			spaces = append(spaces, s)
		}
	}
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("looking for what is left of members: %w", err)
	}
	return spaces, release, nil
}

// Others counts the namespaces that hosts with other run directories made on this
// machine, by the beginning of their names.
func (n *Network) Others() (map[string]int, error) {
	all, err := namespaces("sluice-")
	if err != nil {
		return nil, err
	}
	others := map[string]int{}
	for _, name := range all {
		parts := strings.SplitN(name, "-", 3)
		if prefix := parts[0] + "-" + parts[1] + "-"; len(parts) == 3 && prefix != n.names.prefix() {
			others[prefix]++
		}
	}
	return others, nil
}

func inventorySpace(name string) ([]hostnet.Item, error) {
	s, err := openSpace(name)
	if errors.Is(err, os.ErrNotExist) {
		return []hostnet.Item{{Type: "namespace", Name: name, Why: "left half-made by a crash"}}, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.inventory(name, func(string) bool { return true }, nil)
}

// inventory lists a namespace's own interfaces and tables. What each is for stands in
// the aliases that the kernel keeps.
func (s *space) inventory(name string, own func(link string) bool, tables func(string) bool) ([]hostnet.Item, error) {
	list, err := retryDump(s.nl.LinkList)
	if err != nil {
		return nil, err
	}
	var items []hostnet.Item
	why := ""
	for _, l := range list {
		if l.Attrs().Name == "lo" {
			why = l.Attrs().Alias
		}
	}
	if name != "" {
		items = append(items, hostnet.Item{Type: "namespace", Name: name, Why: why})
	}
	for _, l := range list {
		at := l.Attrs()
		if l.Type() != "veth" || !own(at.Name) {
			continue
		}
		about := at.Alias
		if about == "" {
			about = why
		}
		items = append(items, hostnet.Item{Type: "veth", Name: within(name, at.Name), Why: about})
	}
	rules, err := newRuleset(s)
	if err != nil {
		return nil, err
	}
	defer rules.close()
	found, err := rules.tables()
	for _, t := range found {
		if tables == nil || tables(t) {
			items = append(items, hostnet.Item{Type: "nftables table", Name: within(name, t), Why: why})
		}
	}
	return items, err
}

func within(space, name string) string {
	if space == "" {
		return name
	}
	return space + "/" + name
}

func (n *Network) inventoryHost() ([]hostnet.Item, error) {
	host, err := openHost(n.opts.HostNS)
	if err != nil {
		return nil, err
	}
	defer host.close()
	items, err := host.inventory("", n.isHostLink, func(t string) bool { return t == n.names.hostTable() || t == n.names.bridgeTable() })
	if err != nil {
		return nil, err
	}
	for i := range items {
		if items[i].Name == n.names.bridgeTable() {
			items[i].Why = "keeps the host itself out of reach of uplinks on its bridges"
		} else if items[i].Why == "" {
			items[i].Why = "NAT gateways of this installation"
		}
	}
	answers, err := n.inventoryAnswers(host)
	if err != nil {
		return nil, err
	}
	items = append(items, answers...)
	entries, err := n.mem.load()
	for _, key := range sortedKeys(entries) {
		items = append(items, hostnet.Item{
			Type: "sysctl", Name: "net/" + key, Why: "NAT gateways; it was " + entries[key].Was,
		})
	}
	return items, err
}

// inventoryListeners lists the sockets of this process.
func (n *Network) inventoryListeners() []hostnet.Item {
	var items []hostnet.Item
	add := func(addr, why string) { items = append(items, hostnet.Item{Type: "listener", Name: addr, Why: why}) }
	if n.tunnel != nil {
		add(within(n.names.tunnel(), n.tunnel.listener.Addr().String()), "tunnels of all members")
	}
	for _, uid := range sortedKeys(n.vnets) {
		v := n.vnets[uid]
		space := n.names.vnet(uid)
		for _, id := range sortedKeys(v.endpoints) {
			add(within(space, v.endpoints[id].addr.String()), "PrivateEndpoint "+v.endpoints[id].name)
		}
		for _, a := range v.resolvers() {
			if v.dns[a] != nil {
				add(within(space, fmt.Sprintf("%s:%d", a, dnsPort)), "resolver of VirtualNetwork "+v.goal.Name)
			}
		}
	}
	return slices.Clip(items)
}

// CleanUp implements hostnet.Network. It ends this Network, if it is up.
func (n *Network) CleanUp(ctx context.Context) error {
	if err := checkMachine(); err != nil {
		return err
	}
	if err := n.Close(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	failed := []error{n.cleanUplinks(ctx), n.cleanHost(ctx)}
	names, err := namespaces(n.names.prefix())
	failed = append(failed, err)
	for _, name := range names {
		if !n.holdsLent(name) {
			failed = append(failed, dropName(name))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return machineError("removing what this installation made", err)
	}
	return nil
}

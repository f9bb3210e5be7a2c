package linux

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// prepared holds the namespaces that this process made for ports to come, by the name
// that the caller gave. One that is being made is there without its space.
type prepared struct {
	mu     sync.Mutex
	spaces map[string]*space
	closed bool
}

// preparedJob names the removal of a prepared namespace's name for the reaper.
func preparedJob(name string) string { return "prepared " + name }

// Prepare implements hostnet.Preparer. The namespace is as a member's, but for interfaces.
func (n *Network) Prepare(ctx context.Context, name string) (path string, err error) {
	if err := ctx.Err(); err != nil {
		return "", errs.As(err)
	}
	if !n.prepared.reserve(name) {
		return "", errs.New(errs.Conflict, "the namespace %s was prepared already, or the host's networking is closed", name)
	}
	s, made, err := ensureSpace(n.names.blank(name), "prepared "+shorten(name, 160), memberValues())
	if err == nil && !made {
		s.close()
		err = errs.New(errs.Conflict, "the namespace %s was prepared by another process", name)
	}
	if err != nil {
		n.prepared.take(name)
		return "", machineError("preparing a namespace", err)
	}
	if !n.prepared.put(name, s) {
		s.close()
		return "", errNotUp()
	}
	return s.path, nil
}

// Discard implements hostnet.Preparer.
func (n *Network) Discard(name string) error {
	s := n.prepared.take(name)
	if s == nil {
		return nil
	}
	s.close()
	if err := dropName(s.name); err != nil {
		return machineError("removing a prepared namespace", err)
	}
	return nil
}

// takePrepared makes the namespace that was prepared for a port the port's: it gets the
// port's name before it loses its own, so that it can be found whatever happens. Nil: there
// is none, or the port has a namespace.
func (n *Network) takePrepared(p *port) (*space, error) {
	name := n.names.member(p.spec.Key())
	path := filepath.Join(netnsDir, name)
	if p.prepared == "" || isNamespace(path) {
		return nil, nil
	}
	s := n.prepared.take(p.prepared)
	if s == nil {
		return nil, nil
	}
	err := s.loopbackUp(portWhy(p.spec.Key()))
	if err == nil {
		err = bindName(fmt.Sprintf("/proc/self/fd/%d", s.file.Fd()), path)
	}
	if err != nil {
		if !n.prepared.put(p.prepared, s) {
			s.close()
		}
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	old := s.name
	s.name, s.path = name, path
	n.reaper.later(preparedJob(old), func() { n.warn("removing the name of a prepared namespace", dropName(old)) })
	return s, nil
}

// reserve says whether nothing of that name is there yet.
func (p *prepared) reserve(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.spaces[name]; ok || p.closed {
		return false
	}
	p.spaces[name] = nil
	return true
}

func (p *prepared) put(name string, s *space) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.spaces[name] = s
	return true
}

func (p *prepared) take(name string) *space {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.spaces[name]
	delete(p.spaces, name)
	return s
}

// keep adds the names on the machine to those that a sweep leaves alone.
func (p *prepared) keep(names map[string]bool, of names) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.spaces {
		names[of.blank(name)] = true
	}
}

// close gives up the handles; the kernel keeps the namespaces for a later sweep.
func (p *prepared) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for name, s := range p.spaces {
		if s != nil {
			s.close()
		}
		delete(p.spaces, name)
	}
}

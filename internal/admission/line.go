// Package admission decides which of the queries that wait for a gateway is served next,
// and which of its members serves it.
//
// It is pure data: no clock, no lock, no goroutine. A Line holds the queries of one class at
// one gateway: whoever has the fewest running comes first, by user and then by the user's
// data sources; where these are equal whoever was served longest ago; first in, first out
// within. Choose picks the member that has the least to do for its speed. The fleet is the
// only caller.
package admission

import (
	"fmt"
	"slices"
)

// Flow says whose query it is: queries of one user to one data source keep their order.
type Flow struct{ User, Source string }

// Limits bound how many may wait: in all, and of one user.
type Limits struct{ Total, PerUser int }

// FullError says that no more may wait.
type FullError struct {
	Waiting, Limit int
	OfUser         bool // it is the user's own limit
}

// Error implements error.
func (e *FullError) Error() string {
	if e.OfUser {
		return fmt.Sprintf("%d queries of this user wait already, which is the limit", e.Waiting)
	}
	return fmt.Sprintf("%d queries wait already, which is the limit", e.Waiting)
}

// Line is those who wait and those who are being served. The zero value is empty.
type Line[T any] struct {
	users   map[string]*user[T]
	waiting []*user[T] // those with someone in the line, in the order in which they came
	turn    uint64     // counts those who were served
	length  int
}

// user is one user's part of a line.
type user[T any] struct {
	turns
	shares  map[string]*Share[T]
	waiting []*Share[T] // as Line.waiting
	length  int
}

// Share is one flow's part of a line.
type Share[T any] struct {
	turns
	of   *user[T]
	line []*Ticket[T]
}

// turns is how much of the gateway somebody has had.
type turns struct {
	running int
	last    uint64 // the turn in which they were served last
}

func (t turns) before(o turns) bool {
	return t.running < o.running || t.running == o.running && t.last < o.last
}

// Ticket is a place in a line.
type Ticket[T any] struct {
	Value T
	share *Share[T]
}

// maxIdle is how many users are remembered who have nothing running and nothing waiting.
// Whoever is forgotten counts as one who was never served.
const maxIdle = 256

// Len returns how many wait.
func (l *Line[T]) Len() int { return l.length }

// Begin counts a query that is served without waiting. Done must follow.
func (l *Line[T]) Begin(f Flow) *Share[T] {
	s := l.share(f)
	l.serve(s)
	return s
}

// Done ends a query that Begin or Next counted.
func (l *Line[T]) Done(s *Share[T]) {
	s.running--
	s.of.running--
}

// Enter puts somebody at the end of their flow.
func (l *Line[T]) Enter(f Flow, v T, lim Limits) (*Ticket[T], error) {
	if l.length >= lim.Total {
		return nil, &FullError{Waiting: l.length, Limit: lim.Total}
	}
	s := l.share(f)
	u := s.of
	if u.length >= lim.PerUser {
		return nil, &FullError{Waiting: u.length, Limit: lim.PerUser, OfUser: true}
	}
	t := &Ticket[T]{Value: v, share: s}
	if u.length == 0 {
		l.waiting = append(l.waiting, u)
	}
	if len(s.line) == 0 {
		u.waiting = append(u.waiting, s)
	}
	s.line = append(s.line, t)
	u.length++
	l.length++
	return t, nil
}

// OthersWait reports whether anybody waits but a user.
func (l *Line[T]) OthersWait(name string) bool {
	u := l.users[name]
	return l.length > 0 && (u == nil || u.length < l.length)
}

// Leave takes out somebody who gave up. It reports whether they were still in the line.
func (l *Line[T]) Leave(t *Ticket[T]) bool {
	at := slices.Index(t.share.line, t)
	if at < 0 {
		return false
	}
	l.remove(t.share, at)
	return true
}

// Next takes out whoever is served next; Done must follow. It returns nil for an empty line.
func (l *Line[T]) Next() (*Ticket[T], *Share[T]) {
	if l.length == 0 {
		return nil, nil
	}
	u := l.waiting[0]
	for _, o := range l.waiting[1:] {
		if o.before(u.turns) {
			u = o
		}
	}
	s := u.waiting[0]
	for _, o := range u.waiting[1:] {
		if o.before(s.turns) {
			s = o
		}
	}
	t := s.line[0]
	l.remove(s, 0)
	l.serve(s)
	return t, s
}

// Drain takes everybody out, in the order in which they would be served.
func (l *Line[T]) Drain() []T {
	out := l.Order()
	for _, u := range l.waiting {
		for _, s := range u.waiting {
			s.line = nil
		}
		u.waiting, u.length = nil, 0
	}
	l.waiting, l.length = nil, 0
	return out
}

// Order lists those who wait in the order in which they would be served if nothing that
// runs came to an end and nobody else came.
func (l *Line[T]) Order() []T {
	c := l.Clone()
	out := make([]T, 0, c.length)
	for t, _ := c.Next(); t != nil; t, _ = c.Next() {
		out = append(out, t.Value)
	}
	return out
}

// Clone returns a copy of those who wait, to look at.
func (l *Line[T]) Clone() *Line[T] {
	c := &Line[T]{turn: l.turn, length: l.length}
	for _, u := range l.waiting {
		copied := &user[T]{turns: u.turns, length: u.length}
		for _, s := range u.waiting {
			copied.waiting = append(copied.waiting, &Share[T]{turns: s.turns, of: copied, line: slices.Clone(s.line)})
		}
		c.waiting = append(c.waiting, copied)
	}
	return c
}

func (l *Line[T]) serve(s *Share[T]) {
	l.turn++
	s.running++
	s.last = l.turn
	s.of.running++
	s.of.last = l.turn
}

func (l *Line[T]) remove(s *Share[T], at int) {
	u := s.of
	s.line = slices.Delete(s.line, at, at+1)
	u.length--
	l.length--
	if len(s.line) == 0 {
		s.line = nil
		u.waiting = without(u.waiting, s)
	}
	if u.length == 0 {
		l.waiting = without(l.waiting, u)
	}
}

func without[E comparable](list []E, e E) []E {
	return slices.DeleteFunc(list, func(o E) bool { return o == e })
}

// share finds, or makes, a flow's part.
func (l *Line[T]) share(f Flow) *Share[T] {
	u := l.users[f.User]
	if u == nil {
		l.forget()
		u = &user[T]{shares: map[string]*Share[T]{}}
		if l.users == nil {
			l.users = map[string]*user[T]{}
		}
		l.users[f.User] = u
	}
	s := u.shares[f.Source]
	if s == nil {
		s = &Share[T]{of: u}
		if len(u.shares) >= maxIdle {
			for name, o := range u.shares {
				if o.running == 0 && len(o.line) == 0 {
					delete(u.shares, name)
				}
			}
		}
		u.shares[f.Source] = s
	}
	return s
}

// forget drops idle users when there are many.
func (l *Line[T]) forget() {
	if len(l.users) < maxIdle {
		return
	}
	for name, u := range l.users {
		if u.running == 0 && u.length == 0 {
			delete(l.users, name)
		}
	}
}

// Package lifecycle is the state machines of gateways and of their members: states,
// events and allowed transitions as data, and which event follows from what is the case.
//
// It is pure: facts in, events and states out. The fleet observes the facts, applies
// the events and keeps each change with its time and reason; nothing else calls it.
package lifecycle

// Event is what makes a gateway or a member change its state.
type Event string

// Transition is one allowed change of state.
type Transition[S ~string] struct {
	From  S
	Event Event
	To    S
}

// Machine is all allowed changes of state of one kind of object. For a state and an event
// there is at most one.
type Machine[S ~string] []Transition[S]

// Next returns the state that follows, or false if the event is not allowed there.
func (m Machine[S]) Next(from S, e Event) (S, bool) {
	for _, t := range m {
		if t.From == from && t.Event == e {
			return t.To, true
		}
	}
	return from, false
}

// event returns the event that leads from one state to another.
func (m Machine[S]) event(from, to S) (Event, bool) {
	for _, t := range m {
		if t.From == from && t.To == to {
			return t.Event, true
		}
	}
	return "", false
}

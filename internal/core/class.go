package core

import "time"

// Classes are the limits of a gateway's query classes.
type Classes struct {
	Interactive ClassLimits `json:"interactive,omitzero"`
	Refresh     ClassLimits `json:"refresh,omitzero"`
}

// ClassLimits bound the queries of one class. A zero field means the class's default.
type ClassLimits struct {
	// Concurrency is how many queries one member runs at once.
	Concurrency int `json:"concurrency,omitempty"`
	// MaxRows ends a query whose result has more rows, with an error; Unlimited is allowed.
	MaxRows int64 `json:"maxRows,omitempty"`
	// Timeout bounds a query from its arrival to its last byte.
	Timeout Duration `json:"timeout,omitempty"`
	// Queue is how many queries may wait for a slot, QueuePerUser how many of one user.
	Queue        int `json:"queue,omitempty"`
	QueuePerUser int `json:"queuePerUser,omitempty"`
	// Stall is for how long a client may take nothing of its result.
	Stall Duration `json:"stall,omitempty"`
}

// Unlimited is the MaxRows of a class without a row limit.
const Unlimited = -1

// DefaultLimits returns what holds for a class where its gateway says nothing else.
func DefaultLimits(c QueryClass) ClassLimits {
	if c == ClassRefresh {
		return ClassLimits{
			Concurrency: 8, MaxRows: Unlimited, Timeout: Duration(2 * time.Hour),
			Queue: 400, QueuePerUser: 200, Stall: Duration(10 * time.Minute),
		}
	}
	return ClassLimits{
		Concurrency: 15, MaxRows: 1_000_000, Timeout: Duration(4 * time.Minute),
		Queue: 4000, QueuePerUser: 2000, Stall: Duration(2 * time.Minute),
	}
}

// Limits returns the gateway's limits of a class, defaults included.
func (g *Gateway) Limits(c QueryClass) ClassLimits {
	l := g.Classes.Interactive
	if c == ClassRefresh {
		l = g.Classes.Refresh
	}
	def := DefaultLimits(c)
	return ClassLimits{
		Concurrency: orElse(l.Concurrency, def.Concurrency), MaxRows: orElse(l.MaxRows, def.MaxRows),
		Timeout: orElse(l.Timeout, def.Timeout), Queue: orElse(l.Queue, def.Queue),
		QueuePerUser: orElse(l.QueuePerUser, min(def.QueuePerUser, orElse(l.Queue, def.Queue))), Stall: orElse(l.Stall, def.Stall),
	}
}

func orElse[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

package validate

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	// A member has 64 connections to the service; what is not a query needs some as well.
	maxConcurrency  = 30
	maxQueue        = 100_000
	minClassTimeout = core.Duration(time.Second)
	minStall        = core.Duration(100 * time.Millisecond)
)

// classLimits checks the limits of one query class, defaults included.
func (c *checker) classLimits(path string, l core.ClassLimits) {
	if l.Concurrency < 1 || l.Concurrency > maxConcurrency {
		c.bad(path+".concurrency", "%d is not from 1 to %d", l.Concurrency, maxConcurrency).
			WithHint("more members run more queries: members.max")
	}
	if l.MaxRows < 1 && l.MaxRows != core.Unlimited {
		c.bad(path+".maxRows", "%d is neither a number of rows nor %d, which is no limit", l.MaxRows, core.Unlimited)
	}
	if l.Timeout != core.Never && l.Timeout < minClassTimeout {
		c.bad(path+".timeout", "%s is below %s", l.Timeout, minClassTimeout).WithHint("write never for no limit")
	}
	if l.Queue < 1 || l.Queue > maxQueue {
		c.bad(path+".queue", "%d is not from 1 to %d", l.Queue, maxQueue)
	}
	if l.QueuePerUser < 1 || l.QueuePerUser > l.Queue {
		c.bad(path+".queuePerUser", "%d is not from 1 to queue, which is %d", l.QueuePerUser, l.Queue)
	}
	if l.Stall != core.Never && l.Stall < minStall {
		c.bad(path+".stall", "%s is below %s", l.Stall, minStall).WithHint("write never for no limit")
	}
}

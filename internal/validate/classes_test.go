package validate_test

import (
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

func TestClasses(t *testing.T) {
	limits := func(l core.ClassLimits) func(*world) {
		return func(w *world) { w.gw.Classes.Refresh = l }
	}
	o := "Gateway/corp-bi classes.refresh."
	run(t, map[string]testCase{
		"defaults":             {limits(core.ClassLimits{}), ""},
		"all":                  {limits(core.ClassLimits{Concurrency: 30, MaxRows: 5, Timeout: core.Never, Queue: 10, QueuePerUser: 10, Stall: core.Never}), ""},
		"a small queue alone":  {limits(core.ClassLimits{Queue: 2}), ""},
		"concurrency":          {limits(core.ClassLimits{Concurrency: 31}), o + "concurrency: 31 is not from 1 to 30"},
		"negative concurrency": {limits(core.ClassLimits{Concurrency: -1}), o + "concurrency: -1 is not from 1 to 30"},
		"rows":                 {limits(core.ClassLimits{MaxRows: -2}), o + "maxRows: -2 is neither a number of rows nor -1, which is no limit"},
		"time":                 {limits(core.ClassLimits{Timeout: core.Duration(time.Millisecond)}), o + "timeout: 1ms is below 1s"},
		"queue":                {limits(core.ClassLimits{Queue: -1, QueuePerUser: 1}), o + "queue: -1 is not from 1 to 100000\n" + o + "queuePerUser: 1 is not from 1 to queue, which is -1"},
		"queue of a user":      {limits(core.ClassLimits{Queue: 5, QueuePerUser: 6}), o + "queuePerUser: 6 is not from 1 to queue, which is 5"},
		"stall":                {limits(core.ClassLimits{Stall: 1}), o + "stall: 1ns is below 100ms"},
	})
}

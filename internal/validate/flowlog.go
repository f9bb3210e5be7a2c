package validate

import (
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// What a flow log may be set to.
const (
	minFlowInterval  = 10 * time.Second
	maxFlowInterval  = time.Hour
	maxRetentionDays = 365
	minFlowMiB       = 16
	maxFlowMiB       = 1 << 20
)

// flowLog checks what is stated; zero is the default.
func (c *checker) flowLog(field string, f core.FlowLog) {
	if d := time.Duration(f.Interval); d != 0 && (d < minFlowInterval || d > maxFlowInterval || d%time.Second != 0) {
		c.bad(field+".interval", "%s is not an interval of a flow log: whole seconds, from %s to %s", f.Interval, core.Duration(minFlowInterval), core.Duration(maxFlowInterval))
	}
	if n := f.RetentionDays; n < 0 || n > maxRetentionDays {
		c.bad(field+".retentionDays", "%d is not a number of days from 1 to %d", n, maxRetentionDays)
	}
	if n := f.MaxMiB; n != 0 && (n < minFlowMiB || n > maxFlowMiB) {
		c.bad(field+".maxMiB", "%d is not a size of a flow log: %d to %d MiB", n, minFlowMiB, maxFlowMiB)
	}
}

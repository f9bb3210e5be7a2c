package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/client"
)

// waitFlags say whether, and for how long, a change waits until hosts have acted on it.
type waitFlags struct {
	wait   time.Duration
	noWait bool
}

func (f *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.wait, "wait", 10*time.Second, "for how long to wait until the hosts that run members have acted on it")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "do not wait for hosts")
	cmd.MarkFlagsMutuallyExclusive("wait", "no-wait")
}

func (f *waitFlags) wanted() bool { return !f.noWait && f.wait > 0 }

// sayWaits is after how long a change says what it waits for.
const sayWaits = time.Second

// waiting says what is waited for, unless the function that it returns is called soon.
func (a *app) waiting(f waitFlags) (over func()) {
	var said sync.WaitGroup
	said.Add(1)
	notice := time.AfterFunc(sayWaits, func() {
		defer said.Done()
		fmt.Fprintf(a.Err, "waiting until the hosts have acted on it, for at most %s (--no-wait does not)\n", f.wait)
	})
	return func() {
		if !notice.Stop() {
			said.Wait()
		}
	}
}

// tell says what is not well with hosts after a change.
func (a *app) tell(hosts []client.HostActing, f waitFlags) {
	for _, h := range hosts {
		switch {
		case !h.Connected:
			fmt.Fprintf(a.Err, "warning: host %s is not connected; it acts on this once it is back\n", h.Host)
		case !h.Acted:
			fmt.Fprintf(a.Err, "warning: host %s has not acted on it within %s; until it has, what was before holds there\n", h.Host, f.wait)
		}
		for _, p := range h.Problems {
			fmt.Fprintf(a.Err, "warning: host %s: %s\n", h.Host, p)
		}
	}
}

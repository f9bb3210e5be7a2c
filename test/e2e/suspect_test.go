package e2e

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
)

// TestAMemberThatHangsIsSuspectFirst stops one of two members for a while: the other gets the
// queries long before the first is given up, and once it goes on it has its share again.
func TestAMemberThatHangsIsSuspectFirst(t *testing.T) {
	waiting.take(t)
	c := newCorp(t)
	c.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 2, max: 2}")
	c.applyExample()
	api := c.Client()
	state := func(id string) core.MemberState {
		for _, m := range objects[core.Member](t, api, "members") {
			if m.ID == id {
				return m.State
			}
		}
		return core.MemberGone
	}
	both := func() bool {
		all := objects[core.Member](t, api, "members")
		return len(all) == 2 && all[0].State == core.MemberReady && all[1].State == core.MemberReady
	}
	eventually(t, 60*time.Second, "two members", both)
	hung, other := objects[core.Member](t, api, "members")[0], objects[core.Member](t, api, "members")[1]
	pid := c.pidOf(t, hung)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	defer goOn()
	eventually(t, 60*time.Second, "it is suspect", func() bool { return state(hung.ID) == core.MemberSuspect })
	for range 10 {
		if id := c.ranOn(t, api); id != other.ID {
			t.Errorf("a query ran on %s, want %s", id, other.ID)
		}
	}
	goOn()
	eventually(t, 60*time.Second, "it is ready again, the same one", func() bool { return state(hung.ID) == core.MemberReady })
	eventually(t, 60*time.Second, "it has its share", func() bool { return c.ranOn(t, api) == hung.ID })
}

// ranOn runs a short query and says on which member: the first by ID, if both are as good.
func (c *corp) ranOn(t *testing.T, api *client.Client) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	mark := fmt.Sprintf("short %d", time.Now().UnixNano())
	if err := tryQuery(ctx, api, "select 1 -- "+mark); err != nil {
		t.Fatalf("a short query: %v", err)
	}
	var q core.Query
	eventually(t, 60*time.Second, "its record", func() bool {
		q = c.recordOf(t, api, mark)
		return q.State == core.QuerySucceeded
	})
	return q.Member
}

package e2e

import "testing"

func TestQuery(t *testing.T) {
	c := sharedCorp(t)
	if got := c.value("select 1 as one"); got != "1" {
		t.Errorf("got %q", got)
	}
}

package service

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
)

func TestRecordedSQL(t *testing.T) {
	for _, tt := range []struct {
		how       RecordSQL
		text, sum string
	}{
		{"", "select 1", ""},
		{RecordFull, "select 1", ""},
		{RecordHash, "", "sha256:"},
		{RecordNone, "", ""},
	} {
		s := &Service{opts: Options{RecordSQL: tt.how}}
		text, sum := s.recorded("select 1")
		if text != tt.text || !strings.HasPrefix(sum, tt.sum) || (sum == "") != (tt.sum == "") {
			t.Errorf("%q keeps %q and %q", tt.how, text, sum)
		}
		if _, other := s.recorded("select 2"); other == sum && sum != "" {
			t.Errorf("%q: two statements have the hash %s", tt.how, sum)
		}
	}
}

// TestSinkGetsEachEndOnce: whatever the store does, the file has each query once.
func TestSinkGetsEachEndOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var mu sync.Mutex
	got := map[string]int{}
	l := newQueryLog(r.svc.opts.Store, r.svc.log, 0, nil, func(records []core.Query) error {
		mu.Lock()
		defer mu.Unlock()
		for _, q := range records {
			got[q.ID+" "+string(q.State)]++
		}
		return context.DeadlineExceeded // that one write failed says nothing of the next
	})
	for _, id := range []string{"a", "b", "c"} {
		q := core.Query{ID: id, Tenant: core.DefaultTenant, State: core.QueryRunning}
		l.put(q)
		q.State = core.QuerySucceeded
		l.put(q)
		l.flush()
	}
	l.close()
	for _, want := range []string{"a succeeded", "b succeeded", "c succeeded"} {
		if got[want] != 1 {
			t.Errorf("%q came %d times", want, got[want])
		}
	}
	if len(got) != 3 {
		t.Errorf("the sink got %v", got)
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
)

// newCorpWith is newCorp with limits of the gateway's interactive class.
func newCorpWith(t *testing.T, limits string) *corp {
	t.Helper()
	c := prepareCorp(t, t, sharedPG(t))
	c.rewrite("gateway.yaml", "autoPause: 30m", "autoPause: 30m\nclasses: {interactive: "+limits+"}")
	c.rewrite("gateway.yaml", "members: {min: 0, max: 2}", "members: {min: 0, max: 1}")
	c.Up()
	c.applyExample()
	if got := c.value("select 1"); got != "1" {
		t.Fatalf("the gateway gives %q", got)
	}
	return c
}

// recordOf finds the newest query with a mark; the zero value if there is none.
func (c *corp) recordOf(t *testing.T, api *client.Client, mark string) core.Query {
	t.Helper()
	for _, q := range objects[core.Query](t, api, "queries") {
		if strings.Contains(q.SQL, mark) {
			return q
		}
	}
	return core.Query{}
}

// post asks over HTTP, with nothing between.
func (c *corp) post(ctx context.Context, t *testing.T, sql string) *http.Response {
	t.Helper()
	body := fmt.Sprintf(`{"source":%q,"sql":%q}`, source, sql)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.HTTP+"/v1/query", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// TestQueriesWaitTheirTurn fills the one slot and the one place of a gateway, and looks at
// what clients of each kind are told, and at cancelling what waits and what runs.
func TestQueriesWaitTheirTurn(t *testing.T) {
	busy.take(t)
	c := newCorpWith(t, "{concurrency: 1, queue: 1}")
	api := c.Client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	runs, waits := "turn runs "+c.Instance(), "turn waits "+c.Instance()
	ends := make(chan error, 2)
	ask := func(mark string) { ends <- tryQuery(ctx, api, "select pg_sleep(100) -- "+mark) }
	go ask(runs)
	eventually(t, 60*time.Second, "the first runs", func() bool { return c.activity(runs) == 1 })
	go ask(waits)
	eventually(t, 60*time.Second, "the second waits in the first place", func() bool {
		q := c.recordOf(t, api, waits)
		return q.State == core.QueryQueued && q.QueuePosition == 1
	})
	if out := c.Must("queries"); !strings.Contains(out, "queued") || !strings.Contains(out, "PLACE") {
		t.Errorf("\"sluice queries\" does not show it:\n%s", out)
	}

	wantFailure(t, c.query("select 3"), 1, "takes no more interactive queries now", "classes.interactive.queue ")
	if resp := c.post(ctx, t, "select 3"); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("HTTP: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	cl, fctx := c.flightClient()
	_, err := cl.Prepare(fctx, "select 3")
	st, retry := status.Convert(err), false
	for _, d := range st.Details() {
		_, is := d.(*errdetails.RetryInfo)
		retry = retry || is
	}
	if st.Code() != codes.ResourceExhausted || !retry {
		t.Errorf("Flight SQL: %v, RetryInfo %v", err, retry)
	}
	if got := c.value("select 4", "--class", "refresh"); got != "4" {
		t.Errorf("the other class gives %q", got)
	}

	c.Must("queries", "cancel", c.recordOf(t, api, waits).ID)
	<-ends
	wantRecord(t, c, waits, "cancelled")
	if n := c.activity(waits); n != 0 {
		t.Errorf("a query that only waited is at the server")
	}
	c.Must("queries", "cancel", c.recordOf(t, api, runs).ID)
	<-ends
	wantGone(t, c, runs)
	wantRecord(t, c, runs, "cancelled")
	if got := c.value("select 5"); got != "5" {
		t.Errorf("afterwards the slot gives %q", got)
	}
}

func TestRowLimitIsAnError(t *testing.T) {
	busy.take(t)
	c := newCorpWith(t, "{maxRows: 1000}")
	if got := len(c.rows("select generate_series(1, 1000)")); got != 1000 {
		t.Errorf("%d rows at the limit", got)
	}
	wantFailure(t, c.query("select generate_series(1, 1001)"), 1, "more rows than the limit of 1000")
	if got := len(c.rows("select generate_series(1, 1001)", "--class", "refresh")); got != 1001 {
		t.Errorf("refresh gives %d rows", got)
	}
}

// TestAStalledClientIsCutAndSlowsNobody: clients that read a little and then nothing.
func TestAStalledClientIsCutAndSlowsNobody(t *testing.T) {
	waiting.take(t)
	c := newCorpWith(t, "{stall: 3s}")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	mark := func(i int) string { return fmt.Sprintf("stalled %d %s", i, c.Instance()) }
	const stalled = 5
	for i := range stalled {
		resp := c.post(ctx, t, slowRows(mark(i)))
		if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	wantSwift(t, 20, func() {
		if got := c.value("select 1"); got != "1" {
			t.Errorf("beside stalled clients the gateway gives %q", got)
		}
	})
	for i := range stalled {
		wantGone(t, c, mark(i))
		rec := wantRecord(t, c, mark(i), "cancelled")
		if !strings.Contains(rec.Error, "took nothing of the result for 3s") {
			t.Errorf("the record says %q", rec.Error)
		}
	}
}

// wantSwift runs a short query so many times beside clients that stall. A busy machine may
// hold up one or another; clients would hold up all of them.
func wantSwift(t *testing.T, times int, query func()) {
	t.Helper()
	var slow []time.Duration
	for range times {
		begun := time.Now()
		query()
		if d := time.Since(begun); d > 5*time.Second {
			slow = append(slow, d)
		}
	}
	if len(slow) > times/10 {
		t.Errorf("beside stalled clients short queries took %v", slow)
	}
}

// TestAMemberDiesBeforeTheAnswer: the query is run again on another one.
func TestAMemberDiesBeforeTheAnswer(t *testing.T) {
	busy.take(t)
	c := newCorpWith(t, "{concurrency: 5}")
	api := c.Client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	mark := "dies " + c.Instance()
	first := onlyMember(t, api)
	end := make(chan error, 1)
	go func() { end <- tryQuery(ctx, api, "select pg_sleep(4) -- "+mark) }()
	eventually(t, 60*time.Second, "it runs", func() bool { return c.activity(mark) == 1 })
	if err := syscall.Kill(c.pidOf(t, first), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-end; err != nil {
		t.Fatalf("the query failed: %v", err)
	}
	q := c.recordOf(t, api, mark)
	if q.State != core.QuerySucceeded || q.Member == first.ID || !strings.Contains(q.Retried, first.ID) {
		t.Errorf("record %+v, want another member than %s, and that one named as lost", q, first.ID)
	}
}

// TestASourceThatIsDownFailsFast, and so it says, until it is back.
func TestASourceThatIsDownFailsFast(t *testing.T) {
	busy.take(t)
	pg := startPG(t)
	c := newCorpOn(t, pg)
	if got := c.value("select 1"); got != "1" {
		t.Fatalf("the gateway gives %q", got)
	}
	pg.Stop(t)
	for range 8 {
		c.query("select 1")
	}
	wantFailure(t, c.query("select 1"), 1, "not tried now", "datasource test orders")
	if out := c.Must("get", "datasources"); !strings.Contains(out, "Down") && !strings.Contains(out, "Trying") {
		t.Errorf("its state is not shown:\n%s", out)
	}
	pg.Restart(t)
	c.Must("datasource", "test", source)
	if got := c.value("select 2"); got != "2" {
		t.Errorf("once it is back the gateway gives %q", got)
	}
}

// TestQueryLogFile: the file has the record of each query, and no statement where none is kept.
func TestQueryLogFile(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	file := filepath.Join(c.Dir, "queries.jsonl")
	c.Up("--query-log", file, "--query-sql", "hash")
	c.applyExample()
	if got := c.value("select 4711"); got != "4711" {
		t.Fatalf("the gateway gives %q", got)
	}
	var line struct {
		SQL, SQLHash, State, Member string
		Rows                        int64
		PhasesMS                    map[string]float64
	}
	eventually(t, 60*time.Second, "the query is in the file", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.HasSuffix(string(text), "\n") && json.Unmarshal(text, &line) == nil
	})
	if line.SQL != "" || !strings.HasPrefix(line.SQLHash, "sha256:") || line.State != "succeeded" || line.Member == "" || line.Rows != 1 || line.PhasesMS["executed"] <= 0 {
		t.Errorf("the line says %+v", line)
	}
	if out := c.Must("queries"); strings.Contains(out, "4711") || !strings.Contains(out, line.SQLHash) {
		t.Errorf("the query log shows more, or less, than the hash:\n%s", out)
	}
}

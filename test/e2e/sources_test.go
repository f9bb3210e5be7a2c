package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/testport"
)

// dataSource is the document of another data source of the example's gateway.
func dataSource(name, host string, port int, database, user, secret string) string {
	return fmt.Sprintf(`---
kind: DataSource
name: %s
gateway: corp-bi
type: postgres
parameters: {host: %q, port: %d, database: %q, tls: disable}
credentials: {kind: basic, username: %q, password: %q}
`, name, host, port, database, user, secret)
}

// closedPort is a port of the machine's loopback on which nobody listens.
func closedPort(t *testing.T) int {
	t.Helper()
	port, err := testport.Free()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestSourcesThatCantBeUsed checks the errors of sources that are wrong, away or out
// of reach: each says at which step, what and why, and none takes long.
func TestSourcesThatCantBeUsed(t *testing.T) {
	waiting.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Up()
	port, dead := c.PG.Port, closedPort(t)
	c.rewrite("network.yaml", fmt.Sprintf(`destinationPorts: ["%d"]`, port), fmt.Sprintf(`destinationPorts: ["%d", "%d"]`, port, dead))
	c.applyExample()
	const host = "orders.corp.internal"
	c.Apply(fmt.Sprintf(`---
kind: PrivateEndpoint
name: dead
vnet: corp
subnet: data
address: 10.20.1.9
target: 127.0.0.1:%d
dnsName: dead.corp.internal
`, dead) +
		dataSource("wrong-password", host, port, "orders", "report", "wrong") +
		dataSource("wrong-user", host, port, "orders", "nobody-here", password) +
		dataSource("wrong-database", host, port, "ordres", "report", password) +
		dataSource("no-server", "dead.corp.internal", dead, "orders", "report", password) +
		dataSource("nobody-there", "10.20.1.77", port, "orders", "report", password) +
		dataSource("unknown-name", "oders.corp.internal", port, "orders", "report", password) +
		dataSource("denied-port", host, 9999, "orders", "report", password))
	c.Must("gateway", "wake", gateway)

	for _, tc := range []struct {
		source string
		exit   int
		texts  []string
	}{
		{"wrong-password", 1, []string{"sign-in", "28P01", "report", "password authentication failed"}},
		{"wrong-user", 1, []string{"sign-in", "28P01", "nobody-here"}},
		{"wrong-database", 1, []string{"3D000", `"ordres"`}},
		{"no-server", 1, []string{"dead.corp.internal", fmt.Sprintf("private endpoint dead stands for 127.0.0.1:%d", dead), "hint: "}},
		{"nobody-there", 1, []string{"connect", "10.20.1.77", "no private endpoint holds 10.20.1.77 in subnet data"}},
		{"unknown-name", 1, []string{"resolve", "oders.corp.internal", "10.20.0."}},
		{"denied-port", 1, []string{"connect", host, "denied by rule gateways/deny-rest-of-vnet (4000)", "outbound", "hint: ", "sluice check"}},
		{"no-such-source", 3, []string{"DataSource/no-such-source", "sluice get datasources"}},
	} {
		t.Run(tc.source, func(t *testing.T) {
			c := c.on(t)
			begun := time.Now()
			wantFailure(t, c.Sluice("query", "-s", tc.source, "select 1"), tc.exit, tc.texts...)
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("took %v to say so", took)
			}
		})
	}
	if got := c.value("select 1"); got != "1" {
		t.Errorf("the good source after the bad ones: %q", got)
	}
}

// TestStatementsThatFail checks the errors of statements on a source that works.
func TestStatementsThatFail(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	c.PG.Exec(t, "create table if not exists read_only_check (a int); grant all on read_only_check to report")
	for _, tc := range []struct {
		name, sql string
		texts     []string
	}{
		{"syntax", "select 1 +\nfrom where", []string{"42601", "syntax error", "12"}},
		{"table", "select * from no_such_table", []string{"42P01", "no_such_table"}},
		{"write", "insert into read_only_check values (1)", []string{"25006", "read-only transaction", "readOnly"}},
		{"ddl", "create table sneaky (a int)", []string{"25006"}},
		{"two statements", "select 1; drop table read_only_check", []string{"42601", "multiple commands"}},
		{"commit", "commit", nil},
		{"division", "select 1/0", []string{"22012", "division by zero"}},
		{"empty", "", []string{"no SQL"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := c.on(t)
			r := c.query(tc.sql)
			exit := 1
			switch tc.name {
			case "empty":
				exit = 2
			case "commit":
				exit = r.Exit // refused or without effect: what counts is checked below
			}
			if tc.name != "commit" {
				wantFailure(t, r, exit, tc.texts...)
			}
		})
	}
	if got := c.PG.Value(t, "select count(*) from read_only_check"); got != "0" {
		t.Errorf("a read-only source let %s rows through", got)
	}
	if got := c.PG.Value(t, "select count(*) from pg_class where relname = 'sneaky'"); got != "0" {
		t.Error("a read-only source let a table be created")
	}
}

// slowRows is a result that goes on for as long as its reader wants, with a mark to
// find it by in the server's sessions.
func slowRows(mark string) string {
	// In the select list the function gives its rows one by one; behind FROM the server
	// would gather them all first.
	return "select generate_series(1, 2000000000) as i, repeat('x', 200) as filler -- " + mark
}

// TestTheSourceDiesInTheMiddleOfAResult crashes the database server while rows flow.
func TestTheSourceDiesInTheMiddleOfAResult(t *testing.T) {
	busy.take(t)
	pg := startPG(t)
	c := newCorpOn(t, pg)
	for _, output := range []string{"csv", "json", "arrow"} {
		cmd := c.Command("query", "-s", source, "-o", output, slowRows("dies "+output))
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, stdout, 8<<20); err != nil {
			t.Fatalf("%s: no rows before the crash: %v\n%s", output, err, stderr.String())
		}
		pg.Stop(t)
		timer := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
		if !timer.Stop() {
			t.Errorf("%s: the query went on for 60 s after its server had died", output)
		}
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("%s: exit status %d, want 1", output, code)
		}
		for _, text := range []string{"error: ", "not the whole result", "connection"} {
			if !strings.Contains(stderr.String(), text) {
				t.Errorf("%s: standard error lacks %q:\n%s", output, text, stderr.String())
			}
		}
		begun := time.Now()
		r := c.query("select 1")
		if took := time.Since(begun); r.Exit != 1 || !strings.Contains(r.Err, "connect") || took > 20*time.Second {
			t.Errorf("%s: a query while the server is away: %v, %+v", output, took, r)
		}
		pg.Restart(t)
		if got := c.value("select 2"); got != "2" {
			t.Errorf("%s: after the server came back: %q", output, got)
		}
	}
}

// wantGone checks that no session at the server still runs a statement with the mark.
func wantGone(t *testing.T, c *corp, mark string) {
	t.Helper()
	eventually(t, 60*time.Second, "the statement left the server: "+mark, func() bool { return c.activity(mark) == 0 })
}

// wantRecord waits until the record of the query with the mark has ended as expected.
func wantRecord(t *testing.T, c *corp, mark, state string) record {
	t.Helper()
	var found record
	eventually(t, 60*time.Second, "the query log says "+state+" of "+mark, func() bool {
		for _, r := range c.records() {
			if strings.Contains(r.SQL, mark) {
				found = r
				return r.State == state
			}
		}
		return false
	})
	return found
}

func TestTheClientGoesAway(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	t.Run("in the middle of a result", func(t *testing.T) {
		c := c.on(t)
		const mark = "leaves in the middle"
		ctx, cancel := context.WithCancel(t.Context())
		resp := c.httpQuery(ctx, c.Token(), mediaCSV, slowRows(mark))
		if _, err := io.CopyN(io.Discard, resp.Body, 4<<20); err != nil {
			t.Fatal(err)
		}
		if c.activity(mark) != 1 {
			t.Fatal("the statement does not run at the server")
		}
		cancel()
		wantGone(t, c, mark)
		wantRecord(t, c, mark, "cancelled")
	})
	t.Run("before the first row", func(t *testing.T) {
		c := c.on(t)
		const mark = "leaves before"
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for c.activity(mark) == 0 && ctx.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
			cancel()
		}()
		req := c.Client()
		_, err := req.Query(ctx, queryOf("select pg_sleep(60) -- "+mark), mediaCSV)
		if err == nil || !errors.Is(err, context.Canceled) {
			t.Errorf("the client's own error: %v", err)
		}
		wantGone(t, c, mark)
		wantRecord(t, c, mark, "cancelled")
	})
	t.Run("stalls, then leaves", func(t *testing.T) {
		c := c.on(t)
		const mark = "stalls and leaves"
		ctx, cancel := context.WithCancel(t.Context())
		resp := c.httpQuery(ctx, c.Token(), mediaArrow, slowRows(mark))
		if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // every buffer on the way is full by now
		cancel()
		wantGone(t, c, mark)
		wantRecord(t, c, mark, "cancelled")
	})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run("command line, "+sig.String(), func(t *testing.T) {
			c := c.on(t)
			mark := "command line " + sig.String()
			cmd := c.Command("query", "-s", source, "-o", "csv", slowRows(mark))
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := bufio.NewReader(stdout).Discard(1 << 20); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Process.Signal(sig)
			_, _ = io.Copy(io.Discard, stdout)
			if err := cmd.Wait(); err == nil {
				t.Error("the command succeeded")
			}
			wantGone(t, c, mark)
			wantRecord(t, c, mark, "cancelled")
		})
	}
}

func TestTimeouts(t *testing.T) {
	waiting.take(t)
	c := sharedCorp(t)
	for name, sql := range map[string]string{
		"before the first row":      "select pg_sleep(60) -- ",
		"in the middle of a result": slowRows(""),
		"with trickling rows":       "select i, pg_sleep(0.1) from generate_series(1, 1000) i -- ",
	} {
		t.Run(name, func(t *testing.T) {
			c := c.on(t)
			mark := "timeout " + name
			begun := time.Now()
			wantFailure(t, c.query(sql+mark, "--timeout", "2s"), 124, "time")
			// The member's bound is up to 250 ms shorter, so that its error, which names the step, comes first.
			if took := time.Since(begun); took < 1700*time.Millisecond || took > 20*time.Second {
				t.Errorf("a time-out of 2 s came after %v", took)
			}
			wantGone(t, c, mark)
			if rec := wantRecord(t, c, mark, "failed"); rec.Error == "" || rec.ErrorStep == "" {
				t.Errorf("the query log does not say why: %+v", rec)
			}
		})
	}
}

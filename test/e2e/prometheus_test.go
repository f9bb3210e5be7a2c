package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prom is a real Prometheus that scrapes an installation and has its alerts.
type prom struct{ url string }

// debian returns the path of a program of the package prometheus.
func debian(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%v: \"make deps\" installs it", err)
	}
	return path
}

func startProm(t *testing.T, c *corp) *prom {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", closedPort(t))
	rules, err := filepath.Abs("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{global: {scrape_interval: 1s, evaluation_interval: 1s}, rule_files: [%q], scrape_configs: [
  {job_name: sluice, authorization: {credentials: %q}, static_configs: [{targets: [%q]}]}]}`, rules, c.Token(), c.HTTP)
	file := filepath.Join(c.Dir, "prometheus.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(debian(t, "prometheus"), "--config.file="+file, "--storage.tsdb.path="+filepath.Join(c.Dir, "tsdb"), "--web.listen-address="+addr, "--log.level=warn")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of prometheus:\n%s", log.String())
		}
	})
	p := &prom{"http://" + addr}
	eventually(t, 60*time.Second, "Prometheus has scraped the service", func() bool { return len(p.eval(t, `up{job="sluice"} == 1`)) == 1 })
	return p
}

// get reads an answer of Prometheus's API; nothing while it starts.
func (p *prom) get(t *testing.T, path string, data any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode == http.StatusServiceUnavailable {
		return
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s: %s %s %v", path, resp.Status, answer.Error, err)
	}
}

// series is a result of an expression.
type series struct {
	Metric map[string]string
	Value  [2]any
}

func (p *prom) eval(t *testing.T, expr string) []series {
	t.Helper()
	var out struct{ Result []series }
	p.get(t, "/api/v1/query?query="+url.QueryEscape(expr), &out)
	return out.Result
}

// expressions are those of the dashboard, by panel and target, with its variables replaced.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	doc, err := os.ReadFile("../../deploy/grafana/sluice.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(doc, &board); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q has a variable that Grafana would replace and this test does not: %s", p.Title, expr)
			}
			out[p.Title+" "+target.RefID] = expr
		}
	}
	if len(out) < 15 {
		t.Errorf("the dashboard has %d expressions", len(out))
	}
	return out
}

// TestDashboardAndAlertsOnARealPrometheus: it scrapes an installation that has had a wake, queries,
// and a data source that went away; each panel has data, and each alert can be evaluated.
func TestDashboardAndAlertsOnARealPrometheus(t *testing.T) {
	waiting.take(t)
	pg := startPG(t)
	c := newCorpOn(t, pg)
	p := startProm(t, c)
	queries := func(n int, sql string) (failed int) {
		for range n {
			if c.query(sql).Exit != 0 {
				failed++
			}
		}
		return failed
	}
	if failed := queries(5, "select 1"); failed > 0 {
		t.Fatalf("%d queries failed", failed)
	}
	eventually(t, 60*time.Second, "it has scraped them", func() bool {
		return len(p.eval(t, `sluice_query_seconds_count{class="interactive"} >= 5`)) == 1
	})
	if failed := queries(5, "select 1") + queries(2, "select 1/0"); failed != 2 {
		t.Fatalf("%d queries failed", failed)
	}
	pg.Stop(t)
	queries(6, "select 1")

	t.Run("panels", func(t *testing.T) {
		for name, expr := range expressions(t) {
			eventually(t, 90*time.Second, "panel "+name+" has data: "+expr, func() bool {
				for _, s := range p.eval(t, expr) {
					if s.Value[1] != "NaN" {
						return true
					}
				}
				return false
			})
		}
	})
	t.Run("values", func(t *testing.T) {
		for _, expr := range []string{
			`sum(sluice_queries_total{state="succeeded"}) == 10`, `sluice_queries_total{step="execute"} == 2`, `sluice_datasource_down == 1`,
			`sluice_members{state="ready"} == 1`, `sluice_transitions_total{event="wake requested", to="Waking"} == 1`,
			`sluice_tunnel_bytes_total{direction="to_service"} > 1000`, `sluice_tunnel_bytes_total{direction="to_member"} > 1000`, `sluice_tunnel_connections > 0`,
			`sum(rate(sluice_queries_total{state="succeeded"}[5m])) > 0`,
		} {
			eventually(t, 60*time.Second, expr, func() bool { return len(p.eval(t, expr)) == 1 })
		}
	})
	t.Run("alerts", func(t *testing.T) {
		var out struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError, State string }
			}
		}
		state := map[string]string{}
		eventually(t, 60*time.Second, "the data source's alert is on its way", func() bool {
			p.get(t, "/api/v1/rules", &out)
			for _, g := range out.Groups {
				for _, r := range g.Rules {
					if r.Health == "err" {
						t.Fatalf("alert %s: %s", r.Name, r.LastError)
					}
					state[r.Name] = r.State
				}
			}
			return state["SluiceDataSourceDown"] == "pending" || state["SluiceDataSourceDown"] == "firing"
		})
		for _, quiet := range []string{"SluiceServiceDown", "SluiceNoHost", "SluiceGatewayFailed", "SluiceQueueFull", "SluiceNATDown", "SluiceTunnelRefused"} {
			if state[quiet] != "inactive" {
				t.Errorf("alert %s is %q", quiet, state[quiet])
			}
		}
	})
	t.Run("host status", func(t *testing.T) {
		status := c.Must("host", "status", "--run-dir", c.Run)
		if !regexp.MustCompile(`(?m)^tunnel +` + c.onlyMember().ID + ` +[1-9]\d* connections to the service, `).MatchString(status) {
			t.Errorf("it lacks the member's tunnel:\n%s", status)
		}
	})
	t.Run("promtool", func(t *testing.T) {
		req, err := http.NewRequest(http.MethodGet, "http://"+c.HTTP+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.Token())
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		cmd := exec.Command(debian(t, "promtool"), "check", "metrics")
		cmd.Stdin = resp.Body
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	})
}

// TestAlertRules runs the examples that say when each alert fires.
func TestAlertRules(t *testing.T) {
	busy.take(t)
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command(debian(t, "promtool"), args...)
		cmd.Dir = "../../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

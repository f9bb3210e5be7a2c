package service

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// exposed lists the metrics that GET /metrics may show: name → labels.
func exposed(t *testing.T) map[string]string {
	t.Helper()
	r := newRig(t)
	all := make(chan *prometheus.Desc, 1000)
	for _, c := range r.svc.metrics.own {
		c.Describe(all)
	}
	close(all)
	out := map[string]string{}
	form := regexp.MustCompile(`fqName: "([^"]*)".*variableLabels: \{([^}]*)\}`)
	for d := range all {
		m := form.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s: not understood", d)
		}
		out[m[1]] = m[2]
	}
	return out
}

// TestMetricsAreDocumented holds docs/metrics.md to what there is, and the dashboard and the alerts to both.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(sluice_[a-z_]+)` \\|([^|]*)\\|").FindAllStringSubmatch(string(doc), -1) {
		if _, twice := documented[m[1]]; twice {
			t.Errorf("%s is documented twice", m[1])
		}
		documented[m[1]] = strings.NewReplacer("`", "", " ", "").Replace(m[2])
	}
	have := exposed(t)
	if diff := cmp.Diff(have, documented); diff != "" {
		t.Errorf("what is exposed (-) and docs/metrics.md (+) differ:\n%s", diff)
	}
	board, err := os.ReadFile("../../deploy/grafana/sluice.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(board) {
		t.Error("the dashboard is not JSON")
	}
	alerts, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	used := regexp.MustCompile(`sluice_[a-z_]+`).FindAllString(string(board)+string(alerts), -1)
	if len(used) < 10 {
		t.Errorf("the dashboard and the alerts use %d metrics", len(used))
	}
	for _, name := range used {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if _, ok := have[base]; !ok {
			t.Errorf("the dashboard or the alerts use %s, which there is not", name)
		}
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"
)

// quantity is a value as the table shows it.
type quantity struct {
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Of    string  `json:"of,omitempty"` // what was measured, for the side that is compared to
}

// row is one line of the table.
type row struct {
	Figure  string    `json:"figure"`
	This    quantity  `json:"this"`
	Against *quantity `json:"against,omitempty"`
	Ratio   *float64  `json:"ratio,omitempty"`
	Goal    string    `json:"goal,omitempty"`
	Met     *bool     `json:"met,omitempty"`
	Runs    int       `json:"runs"`
}

// against completes a row with what it is compared to.
func (r row) against(q quantity, ratio float64) row {
	r.Against, r.Ratio = &q, &ratio
	return r
}

// goal completes a row with what is to be reached.
func (r row) goal(text string, met bool) row {
	r.Goal, r.Met = text, &met
	return r
}

// result is what a benchmark found.
type result struct {
	Rows    []row     `json:"figures"`
	Samples []*series `json:"samples"`
}

// report is a result with what one needs to judge it.
type report struct {
	Name       string    `json:"name"`
	Begun      time.Time `json:"begun"`
	Seconds    float64   `json:"seconds"`
	LoadBefore string    `json:"loadBefore"`
	Machine    facts     `json:"machine"`
	Scale      scale     `json:"scale"`
	result
}

func (r report) write(dir string) error {
	doc, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Name+".json"), append(doc, '\n'), 0o644)
}

func printTable(w io.Writer, rows []row) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FIGURE\tTHIS\tAGAINST\tRATIO\tGOAL\tMET\tRUNS")
	for _, r := range rows {
		against, ratio, met := "", "", ""
		if r.Against != nil {
			against = r.Against.String() + " " + r.Against.Of
		}
		if r.Ratio != nil {
			ratio = number(*r.Ratio)
		}
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*r.Met]
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", r.Figure, r.This, against, ratio, r.Goal, met, r.Runs)
	}
	_ = tw.Flush() // to a terminal: nobody could be told
}

// String implements fmt.Stringer.
func (q quantity) String() string { return number(q.Value) + " " + q.Unit }

// number shows three digits that count.
func number(v float64) string {
	digits := 2
	switch a := math.Abs(v); {
	case a >= 100:
		digits = 0
	case a >= 10:
		digits = 1
	case a < 1:
		digits = 3
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

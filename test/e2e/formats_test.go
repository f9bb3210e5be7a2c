package e2e

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// The media types of results.
const (
	mediaJSON    = "application/json"
	mediaCSV     = "text/csv"
	mediaArrow   = "application/vnd.apache.arrow.stream"
	mediaParquet = "application/vnd.apache.parquet"
)

// breaking gives half a million rows and then an error; breakingLate three times as
// many, more than one row group of a Parquet file.
const (
	breaking     = "select i as n, 1000/(500000-i) as q from generate_series(1,1000000) i"
	breakingLate = "select i as n, 1000/(1500000-i) as q from generate_series(1,2000000) i"
)

// httpQuery posts a query over TCP, as curl would, of the class that has no row limit.
func (c *corp) httpQuery(ctx context.Context, token, accept, sql string) *http.Response {
	c.t.Helper()
	body, _ := json.Marshal(map[string]string{"source": source, "sql": sql, "class": "refresh"})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.HTTP+"/v1/query", bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatalf("POST /v1/query: %v", err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// fetch is httpQuery for a query that must succeed.
func (c *corp) fetch(accept, sql string) []byte {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp := c.httpQuery(ctx, c.Token(), accept, sql)
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s as %s: status %d, %v\n%.2000s", sql, accept, resp.StatusCode, err, body)
	}
	if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, accept) {
		c.t.Errorf("content type %q, want %q", got, accept)
	}
	return body
}

// readArrow reads a whole Arrow IPC stream: its schema, its batches, and whether it
// ended with the end-of-stream marker.
func readArrow(r io.Reader) (*arrow.Schema, []arrow.RecordBatch, error) {
	var raw bytes.Buffer
	rd, err := ipc.NewReader(io.TeeReader(r, &raw))
	if err != nil {
		return nil, nil, err
	}
	defer rd.Release()
	var out []arrow.RecordBatch
	for rd.Next() {
		b := rd.RecordBatch()
		b.Retain()
		out = append(out, b)
	}
	if err := rd.Err(); err != nil && !errors.Is(err, io.EOF) {
		return rd.Schema(), out, err
	}
	if !bytes.HasSuffix(raw.Bytes(), []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}) {
		return rd.Schema(), out, errors.New("the stream has no end-of-stream marker")
	}
	return rd.Schema(), out, nil
}

// jsonResult is a result in JSON.
type jsonResult struct {
	Columns []struct{ Name, Type string }
	Rows    [][]any
}

func readJSON(t testing.TB, body []byte) jsonResult {
	t.Helper()
	var out jsonResult
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		t.Fatalf("JSON: %v\n%.500s", err, body)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Fatalf("JSON: more after the document: %v", err)
	}
	return out
}

func TestTheFourFormats(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	const rows = 20000
	sql := fmt.Sprintf("select i as id, 'name, \"' || i as label, nullif(i %% 3, 0) as part from generate_series(1,%d) i order by 1", rows)
	check := func(t *testing.T, form string, n int, first, last string) {
		t.Helper()
		if n != rows {
			t.Errorf("%s: %d rows, want %d", form, n, rows)
		}
		if want := `name, "1`; first != want {
			t.Errorf("%s: first label %q, want %q", form, first, want)
		}
		if want := fmt.Sprintf(`name, "%d`, rows); last != want {
			t.Errorf("%s: last label %q, want %q", form, last, want)
		}
	}
	t.Run("csv", func(t *testing.T) {
		c := c.on(t)
		all, err := csv.NewReader(bytes.NewReader(c.fetch(mediaCSV, sql))).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		check(t, "csv", len(all)-1, all[1][1], all[len(all)-1][1])
		if all[3][2] != "" || all[4][2] != "1" {
			t.Errorf("null and 1 came as %q and %q", all[3][2], all[4][2])
		}
	})
	t.Run("json", func(t *testing.T) {
		c := c.on(t)
		res := readJSON(t, c.fetch(mediaJSON, sql))
		check(t, "json", len(res.Rows), res.Rows[0][1].(string), res.Rows[len(res.Rows)-1][1].(string))
		if res.Rows[2][2] != nil {
			t.Errorf("null came as %v", res.Rows[2][2])
		}
		if got := fmt.Sprint(res.Columns); got != "[{id int32} {label utf8} {part int32}]" {
			t.Errorf("columns: %s", got)
		}
	})
	t.Run("arrow", func(t *testing.T) {
		c := c.on(t)
		schema, batches, err := readArrow(bytes.NewReader(c.fetch(mediaArrow, sql)))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, b := range batches {
			n += int(b.NumRows())
		}
		lastBatch := batches[len(batches)-1]
		check(t, "arrow", n, batches[0].Column(1).ValueStr(0), lastBatch.Column(1).ValueStr(int(lastBatch.NumRows())-1))
		if got, _ := schema.Field(0).Metadata.GetValue("postgres.type"); got != "int4" {
			t.Errorf("the field's metadata names the type %q, want int4", got)
		}
	})
	t.Run("parquet", func(t *testing.T) {
		c := c.on(t)
		pf, err := file.NewParquetReader(bytes.NewReader(c.fetch(mediaParquet, sql)))
		if err != nil {
			t.Fatal(err)
		}
		defer pf.Close()
		rd, err := pqarrow.NewFileReader(pf, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
		if err != nil {
			t.Fatal(err)
		}
		table, err := rd.ReadTable(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer table.Release()
		labels := table.Column(1).Data().Chunks()
		last := labels[len(labels)-1]
		check(t, "parquet", int(table.NumRows()), labels[0].ValueStr(0), last.ValueStr(last.Len()-1))
		parts := table.Column(2).Data().Chunk(0).(*array.Int32)
		if !parts.IsNull(2) || parts.Value(3) != 1 {
			t.Errorf("null and 1 came as %s and %s", parts.ValueStr(2), parts.ValueStr(3))
		}
	})
}

// routes is one request for each route that must not answer without a token.
var routes = []struct{ method, path, body string }{
	{"POST", "/v1/query", `{"source":"orders","sql":"select 1"}`},
	{"GET", "/v1/query", ""},
	{"GET", "/v1/queries", ""},
	{"POST", "/v1/apply", `{"resources":[]}`},
	{"POST", "/v1/check", `{"gateway":"corp-bi","host":"10.20.1.4","port":5432,"dry":true}`},
	{"GET", "/v1/catalog", ""},
	{"POST", "/v1/token", "{}"},
	{"GET", "/v1/gateways", ""},
	{"GET", "/v1/gateways/corp-bi", ""},
	{"PUT", "/v1/gateways/corp-bi", `{}`},
	{"DELETE", "/v1/gateways/corp-bi", ""},
	{"POST", "/v1/gateways/corp-bi/pause", `{}`},
	{"POST", "/v1/datasources/orders/test", `{}`},
	{"GET", "/v1/hosts", ""},
	{"GET", "/v1/leases", ""},
	{"GET", "/metrics", ""},
	{"GET", "/nothing/here", ""},
}

func TestNothingAnswersWithoutTheToken(t *testing.T) {
	busy.take(t)
	c := newCorp(t) // wrong tokens slow their sender down: not on the shared one
	ask := func(method, path, body, authorization string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.HTTP+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	if status, text := ask("GET", "/v1/gateways/corp-bi", "", "Bearer "+c.Token()); status != http.StatusOK {
		t.Errorf("the right token: status %d\n%s", status, text)
	}
	for _, wrong := range []string{"Bearer sluice_" + strings.Repeat("A", 43), "Bearer " + c.Token() + "x", "Basic " + c.Token()} {
		status, text := ask("POST", "/v1/query", `{"source":"orders","sql":"select 1"}`, wrong)
		if status != http.StatusUnauthorized || strings.Contains(text, c.Token()) {
			t.Errorf("Authorization %q: status %d, want 401\n%s", wrong, status, text)
		}
	}
	for _, r := range routes {
		if status, text := ask(r.method, r.path, r.body, ""); status != http.StatusUnauthorized {
			t.Errorf("%s %s without a token: status %d, want 401\n%s", r.method, r.path, status, text)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, text := ask("GET", path, "", ""); status != http.StatusOK {
			t.Errorf("GET %s: status %d\n%s", path, status, text)
		}
	}
	env := []string{"SLUICE_URL=http://" + c.HTTP, "SLUICE_TOKEN=sluice_wrong", "SLUICE_SOCKET="}
	eventually(t, 60*time.Second, "a wrong token is refused as that again", func() bool {
		r := c.SluiceEnv(env, "get", "gateways")
		return r.Exit == 4 && strings.Contains(r.Err, "no valid token") // until then: too many of them
	})
	env[1] = "SLUICE_TOKEN=" + c.Token()
	if r := c.SluiceEnv(env, "query", "-s", source, "-o", "csv", "select 5 as n"); r.Exit != 0 || r.Out != "n\r\n5\r\n" {
		t.Errorf("the command line over TCP: %+v", r)
	}
	renewed := strings.TrimSpace(c.Must("token", "renew"))
	if status, _ := ask("GET", "/v1/gateways/corp-bi", "", "Bearer "+renewed); status != http.StatusOK {
		t.Errorf("the renewed token: status %d", status)
	}
	if status, _ := ask("GET", "/v1/gateways/corp-bi", "", "Bearer "+c.Token()); status != http.StatusUnauthorized {
		t.Errorf("the token that was replaced: status %d, want 401", status)
	}
}

func TestABrokenResultCantBeTakenForAWholeOne(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	for _, accept := range []string{mediaCSV, mediaJSON, mediaArrow, mediaParquet} {
		t.Run(accept, func(t *testing.T) {
			c := c.on(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			sql := breaking
			if accept == mediaParquet {
				sql = breakingLate
			}
			resp := c.httpQuery(ctx, c.Token(), accept, sql)
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("status %d before the first byte, want the error behind it\n%s", resp.StatusCode, body)
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the HTTP message ended with %v, want an unexpected end", err)
			}
			if len(body) < 1<<20 {
				t.Errorf("only %d bytes came before the error", len(body))
			}
			switch accept {
			case mediaJSON:
				if json.Valid(body) {
					t.Error("the JSON is whole")
				}
			case mediaArrow:
				if _, _, err := readArrow(bytes.NewReader(body)); err == nil {
					t.Error("the Arrow stream is whole")
				}
			case mediaParquet:
				if pf, err := file.NewParquetReader(bytes.NewReader(body)); err == nil {
					pf.Close()
					t.Error("the Parquet file is whole")
				}
			}
		})
	}
	for _, output := range []string{"csv", "json", "arrow", "parquet", "table"} {
		t.Run("cli "+output, func(t *testing.T) {
			c := c.on(t)
			wantFailure(t, c.Sluice("query", "-s", source, "-o", output, breaking), 1, "division by zero")
		})
	}
	rec := lastFailure(t, c, "division by zero")
	if rec.State != "failed" || rec.ErrorStep == "" {
		t.Errorf("the query log: %+v", rec)
	}
}

// record is a query in the query log.
type record struct {
	ID, State, Error, ErrorStep, SQL, Member, Address string
	Rows, Bytes                                       int64
}

// records lists the query log, the newest first.
func (c *corp) records() []record {
	c.t.Helper()
	var out struct{ Items []record }
	if err := json.Unmarshal([]byte(c.Must("get", "queries", "-o", "json")), &out); err != nil {
		c.t.Fatal(err)
	}
	return out.Items
}

// lastFailure finds the newest record whose error contains text.
func lastFailure(t *testing.T, c *corp, text string) record {
	t.Helper()
	for _, r := range c.records() {
		if strings.Contains(r.Error, text) {
			return r
		}
	}
	t.Fatalf("no query failed with %q", text)
	return record{}
}

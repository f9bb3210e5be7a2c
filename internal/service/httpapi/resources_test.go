package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

func TestRoutes(t *testing.T) {
	front := frontendtest.New()
	front.Show("Gateway", service.View{Kind: "Gateway", Name: "bi", Object: &core.Gateway{Name: "bi", VNet: "corp", Subnet: "gw"}, Status: map[string]string{"state": "Paused"}})
	front.Show("Member", service.View{Kind: "Member", Name: "m1", Object: struct{}{}})
	srv := start(t, front, false)
	gateway := `{"kind":"Gateway","name":"bi","vnet":"corp","subnet":"gw","status":{"state":"Paused"}}`
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string // of the answer; "" to leave out
		call               string // what the service was asked
	}{
		{"GET", "/v1/gateways", "", 200, `{"items":[` + gateway + `]}`, "List Gateway"},
		{"GET", "/v1/Gateway", "", 200, `{"items":[` + gateway + `]}`, "List Gateway"},
		{"GET", "/v1/GATEWAYS/bi", "", 200, gateway, "Get Gateway bi"},
		{"HEAD", "/v1/gateways/bi", "", 200, "", "Get Gateway bi"},
		{"GET", "/v1/members", "", 200, `{"items":[{"kind":"Member"}]}`, "List Member"},
		{"GET", "/v1/leases", "", 200, `{"items":[]}`, "List Lease"},
		{"GET", "/v1/virtualNetworks/a%2Fb", "", 404, "", "Get VirtualNetwork a/b"},
		{"PUT", "/v1/gateways/bi", `{"vnet":"corp"}`, 201, `{"kind":"Gateway","name":"doc0","change":"created"}`, "Apply false"},
		{"PUT", "/v1/gateways/bi?dryRun=true", `{"name":"bi","kind":"Gateway"}`, 200, "", "Apply true"},
		{"PUT", "/v1/gateways/bi?wait=10s", `{}`, 201, `{"kind":"Gateway","name":"doc0","change":"created","hosts":[{"host":"h","connected":true,"acted":true}]}`, "Apply false; AwaitHosts 10s"},
		{"PUT", "/v1/gateways/bi?wait=10s&dryRun=true", `{}`, 200, `{"kind":"Gateway","name":"doc0","change":"created"}`, "Apply true"},
		{"PUT", "/v1/gateways/bi?wait=soon", `{}`, 400, "", ""},
		{"PUT", "/v1/gateways/bi", `{"name":"other"}`, 400, "", ""},
		{"PUT", "/v1/gateways/bi", `{"kind":"Host"}`, 400, "", ""},
		{"PUT", "/v1/gateways/bi", `[]`, 400, "", ""},
		{"PUT", "/v1/members/m1", `{}`, 405, "", ""},
		{"DELETE", "/v1/gateways/bi", "", 200, `{"kind":"Gateway","name":"bi","change":"deleted"}`, "Delete Gateway bi false"},
		{"DELETE", "/v1/natgateways/x?force=true", "", 200, "", "Delete NATGateway x true"},
		{"DELETE", "/v1/natgateways/x?force=maybe", "", 400, "", ""},
		{"DELETE", "/v1/natgateways/x?wait=10s", "", 200, `{"kind":"NATGateway","name":"x","change":"deleted","hosts":[{"host":"h","connected":true,"acted":true}]}`, "Delete NATGateway x false; AwaitHosts 10s"},
		{"DELETE", "/v1/natgateways/x?wait=1h", "", 400, "", ""},
		{"DELETE", "/v1/hosts/h", "", 200, "", "Delete Host h false"},
		{"DELETE", "/v1/leases/corp%2F10.20.0.4?force=true&reason=it+burnt", "", 200, "", "Delete Lease corp/10.20.0.4 true it burnt"},
		{"DELETE", "/v1/links/a%2Fb%2Fc?force=true", "", 200, "", "Delete Link a/b/c true"},
		{"DELETE", "/v1/members/m1", "", 405, "", ""},
		{"DELETE", "/v1/audits/1", "", 405, "", ""},
		{"GET", "/v1/audits?limit=7", "", 200, `{"items":[]}`, "AuditRecords 7"},
		{"GET", "/v1/audits?limit=many", "", 400, "", ""},
		{"POST", "/v1/gateways/bi/wake", "", 204, "", "Wake bi"},
		{"POST", "/v1/gateways/bi/pause", "", 204, "", "Pause bi"},
		{"POST", "/v1/gateway/bi/restart", "", 204, "", "Restart bi"},
		{"POST", "/v1/gateways/bi/explode", "", 404, "", ""},
		{"POST", "/v1/datasources/orders/test", "", 200, `{"steps":[{"name":"resolve","durationNs":0,"detail":"10.20.1.4"}]}`, "TestDataSource orders"},
		{"POST", "/v1/check", `{"gateway":"bi","host":"db","port":5432}`, 200, `{"source":"10.20.0.4","destination":"db","allowed":true,"reasons":[]}`, "Check bi 5432"},
		{"POST", "/v1/check", `{"gateway":"bi","to":"db:5432"}`, 400, "", ""},
		{"POST", "/v1/queries/q1/cancel", "", 204, "", "CancelQuery q1"},
		{"GET", "/v1/queries?source=orders&limit=5", "", 200, "", "QueryRecords orders 5"},
		{"GET", "/v1/queries", "", 200, "", "QueryRecords  100"},
		{"GET", "/v1/queries?limit=0", "", 400, "", ""},
		{"GET", "/v1/queries/q7", "", 404, "", "Get Query q7"},
		{"POST", "/v1/apply", `{"documents":[{"kind":"gateway","name":"a"},{"kind":"DataSource","name":"b"}]}`, 200, `{"results":[{"kind":"Gateway","name":"doc0","change":"created"},{"kind":"DataSource","name":"doc1","change":"created"}]}`, "Apply false"},
		{"POST", "/v1/delete", `{"objects":[{"kind":"natgateways","name":"a"},{"kind":"VirtualNetwork","name":"b"}],"force":true,"reason":"r"}`, 200, `{"results":[{"kind":"NATGateway","name":"a","change":"deleted"},{"kind":"VirtualNetwork","name":"b","change":"deleted"}]}`, "DeleteAll [NATGateway/a VirtualNetwork/b] false true r"},
		{"POST", "/v1/delete", `{"objects":[{"kind":"dish","name":"a"}]}`, 400, "", ""},
		{"POST", "/v1/delete?wait=10s", `{"objects":[{"kind":"natgateways","name":"a"}]}`, 200, `{"hosts":[{"host":"h","connected":true,"acted":true}],"results":[{"kind":"NATGateway","name":"a","change":"deleted"}]}`, "DeleteAll [NATGateway/a] false false ; AwaitHosts 10s"},
		{"POST", "/v1/delete?wait=-1s", `{"objects":[]}`, 400, "", ""},
		{"POST", "/v1/apply?dryRun=true", `{"documents":[]}`, 200, `{"results":[]}`, "Apply true"},
		{"POST", "/v1/apply?wait=10s", `{"documents":[]}`, 200, `{"hosts":[{"host":"h","connected":true,"acted":true}],"results":[]}`, "Apply false; AwaitHosts 10s"},
		{"POST", "/v1/apply?wait=10s&dryRun=true", `{"documents":[]}`, 200, `{"results":[]}`, "Apply true"},
		{"POST", "/v1/apply?wait=10", `{"documents":[]}`, 400, "", ""},
		{"POST", "/v1/apply?wait=1h", `{"documents":[]}`, 400, "", ""},
		{"POST", "/v1/apply", `{"documents":[{"kind":"Member"}]}`, 400, "", ""},
		{"POST", "/v1/apply", `{"documents":[7]}`, 400, "", ""},
		{"GET", "/v1/catalog", "", 200, "", ""},
		{"POST", "/v1/token", "{}", 200, `{"token":"sluice_renewed"}`, "RenewToken"},
		{"GET", "/v1/token", "", 405, "", ""},
		{"GET", "/v1/teapots", "", 404, "", ""},
		{"GET", "/v2", "", 404, "", ""},
		{"POST", "/v1/gateways", "{}", 405, "", ""},
		{"GET", "/v1/apply", "", 405, "", ""},
		{"PATCH", "/v1/gateways/bi", "", 405, "", ""},
		{"GET", "/metrics", "", 404, "", ""},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			before := len(front.Calls())
			resp := do(t, srv, c.method, c.path, c.body)
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.status {
				t.Fatalf("status %d, want %d: %s %v", resp.StatusCode, c.status, body, err)
			}
			if got := strings.TrimSuffix(string(body), "\n"); c.want != "" && got != c.want {
				t.Error(cmp.Diff(c.want, got))
			}
			if c.status >= 400 && !strings.HasPrefix(string(body), `{"error":{"class":"`) {
				t.Errorf("not the form of an error: %s", body)
			}
			calls := strings.Join(front.Calls()[before:], "; ")
			if calls != c.call {
				t.Errorf("the service was asked %q, want %q", calls, c.call)
			}
			if c.status == 405 && resp.Header.Get("Allow") == "" && c.method != "PUT" && c.method != "DELETE" {
				t.Error("405 without Allow")
			}
		})
	}
	put := front.Applied()[0][0]
	if put.Kind != core.KindGateway || string(put.Spec) != `{"name":"bi","vnet":"corp"}` {
		t.Errorf("PUT applied %s %s", put.Kind, put.Spec)
	}
}

func TestRefusedApply(t *testing.T) {
	front := frontendtest.New()
	front.Fail("Apply", &service.ApplyError{Problems: []*errs.Error{
		errs.New(errs.Invalid, "not a prefix").On("VirtualNetwork/corp", "subnets[1].prefix"),
		errs.New(errs.Invalid, "no such VNet").On("Gateway/bi", "vnet"),
	}})
	resp := do(t, start(t, front, false), "POST", "/v1/apply", `{"documents":[{"kind":"Gateway"}]}`)
	e := errorOf(t, resp)
	if resp.StatusCode != 400 || len(e.Problems) != 2 || e.Problems[0].Field != "subnets[1].prefix" || !strings.Contains(e.Error.Message, "2 problems") {
		t.Errorf("status %d: %+v", resp.StatusCode, e)
	}
}

func TestEveryClassHasItsStatus(t *testing.T) {
	front := frontendtest.New()
	srv := start(t, front, false)
	for _, class := range []errs.Class{errs.Invalid, errs.Denied, errs.Conflict, errs.Exhausted, errs.Unavailable, errs.Timeout, errs.StorageFull, errs.Internal} {
		front.Fail("Wake", errs.New(class, "no").WithHint("try"))
		resp := do(t, srv, "POST", "/v1/gateways/bi/wake", "")
		if e := errorOf(t, resp); resp.StatusCode != class.HTTPStatus() || e.Error.Class != class || e.Error.Hint != "try" {
			t.Errorf("%s: status %d, %+v", class, resp.StatusCode, e.Error)
		}
	}
}

func TestAuthentication(t *testing.T) {
	front := frontendtest.New()
	front.On("select", frontendtest.Whole(frontendtest.Numbers(1, 1)))
	srv := start(t, front, false)
	for _, path := range []string{"/healthz", "/readyz"} {
		if resp := do(t, srv, "GET", path, "", "Authorization", ""); resp.StatusCode != 200 {
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
	}
	var first string
	for _, header := range []string{"", "Bearer", "Bearer wrong", "Basic " + frontendtest.Token, "Bearer  ", frontendtest.Token} {
		for _, path := range []string{"/v1/query", "/v1/gateways", "/metrics", "/nowhere"} {
			resp := do(t, srv, "GET", path, "", "Authorization", header)
			body, _ := io.ReadAll(resp.Body)
			if first == "" {
				first = string(body)
			}
			if resp.StatusCode == 429 { // too many of them
				continue
			}
			if resp.StatusCode != 401 || string(body) != first || resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%q %s: status %d: %s", header, path, resp.StatusCode, body)
			}
		}
	}
	if resp := do(t, srv, "GET", "/v1/gateways", "", "Authorization", "bearer  "+frontendtest.Token); resp.StatusCode != 429 && resp.StatusCode != 200 {
		t.Errorf("the good token: status %d", resp.StatusCode)
	}
	if len(front.Users()) != 0 {
		t.Error("a request without a token reached the service")
	}
}

func TestReadiness(t *testing.T) {
	front := frontendtest.New()
	front.SetReady(errors.New("the disk is full"))
	srv := start(t, front, false)
	open := do(t, srv, "GET", "/readyz", "", "Authorization", "")
	if e := errorOf(t, open); open.StatusCode != 503 || strings.Contains(e.Error.Message, "disk") {
		t.Errorf("without a token: %d %v", open.StatusCode, e.Error)
	}
	signed := do(t, srv, "GET", "/readyz", "")
	if e := errorOf(t, signed); signed.StatusCode != 503 || !strings.Contains(e.Error.Message, "disk") {
		t.Errorf("with a token: %d %v", signed.StatusCode, e.Error)
	}
}

func TestLookupKind(t *testing.T) {
	for word, want := range map[string]string{
		"virtualnetworks": "VirtualNetwork", "NetworkSecurityGroup": "NetworkSecurityGroup", "NATGATEWAYS": "NATGateway",
		"privatednszone": "PrivateDNSZone", "PrivateEndpoints": "PrivateEndpoint", "query": "Query", "queries": "Query",
		"routetables": "RouteTable", "": "", "routertables": "", "gatewayss": "",
	} {
		if k, ok := LookupKind(word); k.Name != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", word, k.Name, ok)
		}
	}
	for _, k := range core.Kinds() {
		if found, ok := LookupKind(string(k)); !ok || !found.Declared {
			t.Errorf("%s is missing", k)
		}
	}
}

func TestMetricsNeedTheToken(t *testing.T) {
	front := frontendtest.New()
	h := New(Options{Frontend: front, Logger: discard(), Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "up 1\n")
	})})
	srv := newServer(t, h)
	if resp := do(t, srv, "GET", "/metrics", "", "Authorization", ""); resp.StatusCode != 401 {
		t.Errorf("without a token: %d", resp.StatusCode)
	}
	resp := do(t, srv, "GET", "/metrics", "")
	if body, _ := io.ReadAll(resp.Body); string(body) != "up 1\n" {
		t.Errorf("%q", body)
	}
}

// slowWake is a service whose wake lasts until the request's context ends.
type slowWake struct {
	*frontendtest.Front
	begun, ended chan struct{}
}

func (s slowWake) Wake(ctx context.Context, _ string) error {
	close(s.begun)
	<-ctx.Done()
	close(s.ended)
	return ctx.Err()
}

// TestClientThatLeavesEndsItsAction sends a body, as clients do: net/http notices that a
// client has gone only once the body is read.
func TestClientThatLeavesEndsItsAction(t *testing.T) {
	front := slowWake{frontendtest.New(), make(chan struct{}), make(chan struct{})}
	srv := httptest.NewServer(New(Options{Frontend: front, Logger: slog.New(slog.DiscardHandler)}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/v1/gateways/bi/wake", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
	go func() {
		<-front.begun
		cancel()
	}()
	if resp, err := srv.Client().Do(req); err == nil {
		resp.Body.Close()
		t.Fatal("the request was answered")
	}
	select {
	case <-front.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the wake goes on although its client has gone")
	}
}

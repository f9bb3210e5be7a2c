package service

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// asked has the member answer, and counts how often it is asked.
func (r *rig) asked(a answer) *atomic.Int64 {
	r.member(a)
	n := &atomic.Int64{}
	r.mu.Lock()
	defer r.mu.Unlock()
	inner := r.handler
	r.handler = func(w http.ResponseWriter, req *http.Request) {
		n.Add(1)
		inner(w, req)
	}
	return n
}

var (
	wholeAnswer = answer{200, eosMarker, map[string]string{memberapi.TrailerStatus: memberapi.StatusOK}, false}
	noConnect   = answer{503, []byte(`{"class":"unavailable","message":"connect to orders.corp.internal: timed out after 10s","step":"connect"}`), nil, false}
)

// denying is the example with its one allowing outbound rule denying.
func denying(t *testing.T) []Document {
	t.Helper()
	docs := example(t)
	for i := range docs {
		if docs[i].Kind == core.KindNetworkSecurityGroup {
			docs[i].Spec = []byte(strings.Replace(string(canonical(t, docs[i].Spec)), `"access":"Allow","destination":["10.20.1.0/24"]`, `"access":"Deny","destination":["10.20.1.0/24"]`, 1))
		}
	}
	return docs
}

const theRule = "denied by rule gateways/allow-postgres (100) at subnet gateways, outbound"

// TestWhatIsDeniedIsToldAtOnce: the member is not even asked, and the error is that of a
// connection which the rule made fail.
func TestWhatIsDeniedIsToldAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(denying(t)...)
	r.host()
	n := r.asked(wholeAnswer)
	rec, err := r.query()
	const want = "connect to orders.corp.internal (10.20.1.4:5432): " + theRule
	if e := errs.As(err); err == nil || e.Class != errs.Unavailable || e.Step != errs.StepConnect || e.Message != want ||
		e.Hint != `"sluice check -g corp-bi --to orders.corp.internal:5432" shows every rule on the way` || e.Object != "DataSource/orders" {
		t.Errorf("the query: %+v", e)
	}
	if rec.State != core.QueryFailed || rec.ErrorStep != errs.StepConnect || rec.Member == "" || rec.Error != want {
		t.Errorf("its record: %+v", rec)
	}
	if _, err := r.svc.Prepare(r.ctx, QueryInput{Source: "orders", SQL: "select 1"}); err == nil || err.Error() != want {
		t.Errorf("prepare: %v", err)
	}
	if _, err := r.svc.Metadata(r.ctx, "orders", memberapi.MetadataRequest{}); err == nil || err.Error() != want {
		t.Errorf("metadata: %v", err)
	}
	test, err := r.svc.TestDataSource(r.ctx, "orders")
	if err != nil || len(test.Steps) != 2 || test.Steps[0].Detail != "10.20.1.4" || test.Steps[1].Name != errs.StepConnect || test.Steps[1].Error != want || test.Steps[1].Hint == "" {
		t.Errorf("the test: %+v, %v", test, err)
	}
	if n.Load() != 0 {
		t.Errorf("the member was asked %d times", n.Load())
	}
	if got := r.fleet.InFlight(r.uid("corp-bi")); len(got) != 1 {
		t.Errorf("in flight: %v", got)
	} else {
		for _, n := range got {
			if n != 0 {
				t.Errorf("in flight: %v", got)
			}
		}
	}
	r.apply(example(t)...) // allowed again: it is asked at once
	if _, err := r.query(); err != nil || n.Load() != 1 {
		t.Errorf("once it is allowed: %v, asked %d times", err, n.Load())
	}
}

func (r *rig) uid(gateway string) string {
	r.t.Helper()
	ref, err := r.svc.gatewayRef(r.ctx, core.DefaultTenant, gateway)
	if err != nil {
		r.t.Fatal(err)
	}
	return ref.UID
}

// TestWhatIsNotCertainIsTried: whatever the service does not know for certain to be
// denied goes to the member.
func TestWhatIsNotCertainIsTried(t *testing.T) {
	t.Parallel()
	zone := func(records string) Document {
		return doc(core.KindPrivateDNSZone, `{"name":"more.internal","vnets":["corp"],"records":[`+records+`]}`)
	}
	rule := func(spec string) Document {
		return doc(core.KindNetworkSecurityGroup, `{"name":"gateways","rules":[`+spec+`]}`)
	}
	const allowAll = `{"name":"all","priority":200,"direction":"Outbound","access":"Allow","protocol":"Any"}`
	const denyAll = `{"name":"all","priority":200,"direction":"Outbound","access":"Deny","protocol":"Any","destination":["Any"]}`
	for _, tt := range []struct {
		name   string
		host   string
		more   string // fields of the data source
		docs   []Document
		denied bool
	}{
		{"an address that is denied", "10.20.1.4", "", []Document{rule(denyAll)}, true},
		{"an address outside that is denied", "192.0.2.7", "", []Document{rule(denyAll)}, true},
		{"a name of a zone, in other letters", "Orders.Corp.Internal", "", []Document{rule(denyAll)}, true},
		{"an alias within the zones", "alias.more.internal", "", []Document{rule(denyAll), zone(`{"name":"alias","type":"CNAME","values":["orders.corp.internal"]}`)}, true},
		{"two addresses, both denied", "two.more.internal", "", []Document{rule(denyAll), zone(`{"name":"two","type":"A","values":["10.20.1.4","10.20.1.5"]}`)}, true},
		{"two addresses, one allowed", "two.more.internal", "", []Document{zone(`{"name":"two","type":"A","values":["10.20.0.9","10.20.1.4"]}`)}, false},
		{"a name that others resolve", "db.example.com", "", []Document{rule(denyAll)}, false},
		{"a name that is in no zone", "nothing.corp.internal", "", []Document{rule(denyAll)}, false},
		{"an alias out of the zones", "alias.more.internal", "", []Document{rule(denyAll), zone(`{"name":"alias","type":"CNAME","values":["db.example.com"]}`)}, false},
		{"servers of the source's own", "orders.corp.internal", `,"dnsServers":["10.20.1.53"]`, []Document{rule(
			`{"name":"dns","priority":150,"direction":"Outbound","access":"Allow","protocol":"UDP","destination":["10.20.1.53"]},` + denyAll),
			doc(core.KindNetworkSecurityGroup, `{"name":"data","rules":[]}`)}, false},
		{"a resolver that is denied, too", "orders.corp.internal", "", []Document{rule(strings.Replace(denyAll, `"Any"]`, `"Any","PlatformDNS"]`, 1))}, false},
		{"the member's loopback", "127.0.0.1", "", []Document{rule(denyAll)}, false},
		{"allowed, without a route", "10.20.9.9", "", []Document{rule(allowAll)}, true},
		{"allowed, a route to None", "10.20.1.4", "", []Document{rule(allowAll), doc(core.KindRouteTable, `{"name":"private","routes":[`+noData+`]}`), routed(t)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.apply(example(t)...)
			if strings.Contains(tt.name, "resolver") {
				tt.docs = []Document{rule(`{"name":"dns","priority":200,"direction":"Outbound","access":"Deny","protocol":"Any","destination":["PlatformDNS"]},` +
					strings.Replace(denyAll, "200", "300", 1))}
			}
			r.apply(append(tt.docs, doc(core.KindDataSource, fmt.Sprintf(`{"name":"orders","gateway":"corp-bi","type":"postgres",
				"parameters":{"host":%q,"database":"orders"},"credentials":{"kind":"basic","username":"report"}%s}`, tt.host, tt.more)))...)
			r.host()
			n := r.asked(wholeAnswer)
			_, err := r.query()
			if denied := n.Load() == 0; denied != tt.denied || (err != nil) != tt.denied {
				t.Errorf("the member was asked %d times: %v", n.Load(), err)
			}
		})
	}
}

// TestAConnectionOutlivesTheRule: a member that may have one is asked, until it turns out
// that it has none.
func TestAConnectionOutlivesTheRule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	n := r.asked(wholeAnswer)
	if _, err := r.query(); err != nil {
		t.Fatal(err)
	}
	r.apply(denying(t)...)
	if _, err := r.query(); err != nil || n.Load() != 2 {
		t.Errorf("on the connection that was there: %v, asked %d times", err, n.Load())
	}
	if test, err := r.svc.TestDataSource(r.ctx, "orders"); err != nil || len(test.Steps) != 2 || n.Load() != 2 {
		t.Errorf("a test makes a connection of its own: %+v, %v, asked %d times", test, err, n.Load())
	}
	n = r.asked(noConnect) // the connection is gone
	if _, err := r.query(); err == nil || n.Load() != 1 || strings.Count(err.Error(), theRule) != 1 {
		t.Errorf("without the connection: %v, asked %d times", err, n.Load())
	}
	if _, err := r.query(); err == nil || n.Load() != 1 || strings.Count(err.Error(), theRule) != 1 {
		t.Errorf("now it is known: %v, asked %d times", err, n.Load())
	}
}

// routed is the example's network, whose subnet gateways has the route table private.
func routed(t *testing.T) Document {
	t.Helper()
	for _, d := range example(t) {
		if d.Kind == core.KindVirtualNetwork {
			return doc(d.Kind, strings.Replace(string(canonical(t, d.Spec)), `"name":"gateways",`, `"name":"gateways","routeTable":"private",`, 1))
		}
	}
	t.Fatal("the example has no network")
	return Document{}
}

// TestARouteToNoneIsToldAtOnce: unlike a rule, it ends the connection that a member has.
func TestARouteToNoneIsToldAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	n := r.asked(wholeAnswer)
	if _, err := r.query(); err != nil {
		t.Fatal(err)
	}
	table := func(routes string) Document {
		return doc(core.KindRouteTable, `{"name":"private","routes":[`+routes+`]}`)
	}
	r.apply(table(noData), routed(t))
	_, err := r.query()
	const want = "connect to orders.corp.internal (10.20.1.4:5432): no route to 10.20.1.4 (none: route private/no-data (10.20.1.0/24 → None))"
	if e := errs.As(err); err == nil || e.Message != want || e.Step != errs.StepConnect || !strings.Contains(e.Hint, "change route no-data of RouteTable/private") || n.Load() != 1 {
		t.Errorf("on the connection that the route cut: %+v, asked %d times", e, n.Load())
	}
	// The connection leads to the address that the name had, which a route leads to.
	r.apply(table(strings.Replace(noData, "10.20.1.0/24", "192.0.2.0/24", 1)),
		doc(core.KindDataSource, `{"name":"orders","gateway":"corp-bi","type":"postgres","parameters":{"host":"192.0.2.1","database":"orders"},"credentials":{"kind":"basic","username":"report"}}`))
	if _, err := r.query(); err != nil || n.Load() != 2 {
		t.Errorf("on a connection that may lead elsewhere: %v, asked %d times", err, n.Load())
	}
	r.apply(table(""))
	if _, err := r.query(); err != nil || n.Load() != 3 {
		t.Errorf("with the route gone: %v, asked %d times", err, n.Load())
	}
}

// TestWhoWasNotAloneProvesNothing: beside a query that has the connection, another one
// fails to make one; the first gives its own back.
func TestWhoWasNotAloneProvesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	first, hold := make(chan struct{}), make(chan struct{})
	var n atomic.Int64
	r.mu.Lock()
	r.handler = func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		switch n.Add(1) {
		case 1:
			close(first)
			<-hold
		case 2:
			w.WriteHeader(noConnect.status)
			_, _ = w.Write(noConnect.body)
			return
		}
		w.Header().Set("Trailer", memberapi.TrailerStatus)
		_, _ = w.Write(eosMarker)
		w.Header().Set(memberapi.TrailerStatus, memberapi.StatusOK)
	}
	r.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		res, err := r.svc.Query(r.ctx, QueryInput{Source: "orders", SQL: "select 1"})
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Finish(err)
		}
		done <- err
	}()
	<-first
	r.apply(denying(t)...)
	if _, err := r.query(); err == nil {
		t.Error("the second query succeeded")
	}
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := r.query(); err != nil || n.Load() != 3 {
		t.Errorf("on the connection that was given back: %v, asked %d times", err, n.Load())
	}
}

// TestMembersFromBeforeMayHaveConnections that this process never saw made.
func TestMembersFromBeforeMayHaveConnections(t *testing.T) {
	t.Parallel()
	made := time.Now()
	no := func() ([]netip.Addr, *denial) { return nil, &denial{err: errs.New(errs.Unavailable, "denied")} }
	live := func(string, int64) bool { return true }
	c := newContacts(made.Add(time.Second))
	old, young := core.Member{ID: "old", CreatedAt: made}, core.Member{ID: "young", CreatedAt: made.Add(time.Minute)}
	if _, d := c.enter(young, "s", false, live, no); d == nil {
		t.Error("a new member's connection was not denied at once")
	}
	end, d := c.enter(old, "s", false, live, no)
	if d != nil {
		t.Error("an old member's connection was denied at once")
	}
	end(errs.New(errs.Unavailable, "x").WithStep(errs.StepConnect))
	if _, d := c.enter(old, "s", false, live, no); d == nil {
		t.Error("it had no connection, and is tried again")
	}
	if _, d := c.enter(core.Member{ID: "old", Generation: 2, CreatedAt: made}, "s", false, live, no); d != nil {
		t.Error("what is known of one generation holds for another")
	}
}

// TestOverlapProvesNothing: a failure to connect clears nothing if another request was
// under way at any moment of it, before or after its begin.
func TestOverlapProvesNothing(t *testing.T) {
	t.Parallel()
	failed := errs.New(errs.Unavailable, "x").WithStep(errs.StepConnect)
	denied := func() ([]netip.Addr, *denial) { return nil, &denial{err: failed} }
	live := func(string, int64) bool { return true }
	for name, run := range map[string]func(begin func() func(error)){
		"begun before":          func(begin func() func(error)) { other := begin(); own := begin(); other(nil); own(failed) },
		"begun and ended in it": func(begin func() func(error)) { own := begin(); begin()(nil); own(failed) },
	} {
		c := newContacts(time.Now())
		m := core.Member{ID: "m"} // made before: it may have connections
		run(func() func(error) {
			end, d := c.enter(m, "s", false, live, denied)
			if d != nil {
				t.Fatalf("%s: denied", name)
			}
			return end
		})
		if _, d := c.enter(m, "s", false, live, denied); d != nil {
			t.Errorf("%s: the connection that the other one gave back is not used", name)
		}
	}
}

// anywhere judges a source of which nothing is certain.
func anywhere() ([]netip.Addr, *denial) { return nil, nil }

// TestContactsOfTheGoneAreForgotten: a long life among many members costs no memory.
func TestContactsOfTheGoneAreForgotten(t *testing.T) {
	t.Parallel()
	c := newContacts(time.Now())
	for i := range 3 * maxContacts {
		end, _ := c.enter(core.Member{ID: fmt.Sprint(i)}, "s", false, func(id string, _ int64) bool { return id == "0" }, anywhere)
		end(nil)
	}
	if n := len(c.of); n > maxContacts {
		t.Errorf("%d are kept", n)
	}
	if c.of[contactKey{"0", 0, "s"}] == nil {
		t.Error("that of a member that lives is forgotten")
	}
}

// TestDenialKeepsNoSecret: what is answered and recorded holds no password.
func TestDenialKeepsNoSecret(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(denying(t)...)
	r.host()
	rec, err := r.query()
	text, _ := json.Marshal([]any{rec, errs.As(err)})
	if err == nil || strings.Contains(string(text), password) {
		t.Errorf("%s", text)
	}
}

// BenchmarkAdmit is what a query of a source that is allowed pays for the question.
func BenchmarkAdmit(b *testing.B) {
	sn := &snapshot{}
	key := flowKey{uid: "s"}
	sn.allowed.Store(key, []netip.Addr{netip.MustParseAddr("10.20.1.4")})
	c := newContacts(time.Now())
	m := core.Member{ID: "m", CreatedAt: time.Now().Add(time.Hour)}
	for b.Loop() {
		end, _ := c.enter(m, "s", false, nil, func() ([]netip.Addr, *denial) {
			if to, ok := sn.allowed.Load(key); ok {
				return to.([]netip.Addr), nil
			}
			return nil, &denial{}
		})
		end(nil)
	}
}

package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/service"
)

// kindOf reads the kind in a request's path.
func kindOf(r *http.Request) (Kind, error) {
	word := r.PathValue("kind")
	k, ok := LookupKind(word)
	if !ok {
		var names []string
		for _, k := range Kinds() {
			names = append(names, k.Plural)
		}
		return Kind{}, errs.New(errs.NotFound, "%q is not a kind of object", word).WithHint("the kinds are %s", strings.Join(names, ", "))
	}
	return k, nil
}

// declaredKind reads the kind of something that users make and delete.
func declaredKind(r *http.Request) (Kind, error) {
	k, err := kindOf(r)
	if err == nil && !k.Declared {
		err = statusError{http.StatusMethodNotAllowed, errs.New(errs.Invalid, "%s are not made or deleted by users", k.Plural)}
	}
	return k, err
}

// applyRequest is the body of POST /v1/apply.
type applyRequest struct {
	Documents []json.RawMessage `json:"documents"`
}

// maxWait bounds how long a change waits for hosts.
const maxWait = 5 * time.Minute

// acted waits until the hosts have acted on a change, if the request wants that, and tells
// how far each is. If that can't be told, the change stands all the same.
func (a *api) acted(r *http.Request, wait time.Duration) []fleet.Acting {
	if wait <= 0 {
		return nil
	}
	hosts, err := a.f.AwaitHosts(r.Context(), wait)
	if err != nil {
		return nil
	}
	return hosts
}

// changes is what was done to several resources.
type changes struct {
	Hosts   []fleet.Acting    `json:"hosts,omitempty"`
	Results []service.Applied `json:"results"`
}

// change is what was done to one.
type change struct {
	service.Applied
	Hosts []fleet.Acting `json:"hosts,omitempty"`
}

func (a *api) apply(w http.ResponseWriter, r *http.Request) error {
	dryRun, err := flag(r, "dryRun")
	if err != nil {
		return err
	}
	wait, err := period(r, "wait", maxWait)
	if err != nil {
		return err
	}
	var req applyRequest
	if err := readJSON(w, r, maxApply, &req); err != nil {
		return err
	}
	docs := make([]service.Document, len(req.Documents))
	for i, raw := range req.Documents {
		if docs[i], err = document(i, raw); err != nil {
			return err
		}
	}
	applied, err := a.f.Apply(r.Context(), docs, dryRun)
	if err != nil {
		return err
	}
	if dryRun {
		wait = 0
	}
	return writeJSON(w, http.StatusOK, changes{a.acted(r, wait), applied})
}

// document reads the kind of one document of an apply.
func document(i int, raw json.RawMessage) (service.Document, error) {
	var head struct {
		Kind string `json:"kind"`
	}
	field := "documents[" + strconv.Itoa(i) + "]"
	if err := json.Unmarshal(raw, &head); err != nil {
		return service.Document{}, errs.New(errs.Invalid, "%s is not a resource: %w", field, err).On("", field)
	}
	k, ok := LookupKind(head.Kind)
	if !ok || !k.Declared {
		return service.Document{}, errs.New(errs.Invalid, "%s: %q is not a kind of resource", field, head.Kind).On("", field+".kind")
	}
	return service.Document{Kind: core.Kind(k.Name), Spec: raw}, nil
}

func (a *api) list(w http.ResponseWriter, r *http.Request) error {
	k, err := kindOf(r)
	if err != nil {
		return err
	}
	switch k.Name {
	case service.KindQuery:
		return a.listQueries(w, r)
	case service.KindAudit:
		return a.listAudits(w, r)
	}
	views, err := a.f.List(r.Context(), k.Name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, items(views))
}

func (a *api) get(w http.ResponseWriter, r *http.Request) error {
	k, err := kindOf(r)
	if err != nil {
		return err
	}
	v, err := a.f.Get(r.Context(), k.Name, r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, view(v))
}

// put applies one resource, whose name is the path's.
func (a *api) put(w http.ResponseWriter, r *http.Request) error {
	k, err := declaredKind(r)
	if err != nil {
		return err
	}
	dryRun, err := flag(r, "dryRun")
	if err != nil {
		return err
	}
	wait, err := period(r, "wait", maxWait)
	if err != nil {
		return err
	}
	fields := map[string]json.RawMessage{}
	if err := readJSON(w, r, maxRequest, &fields); err != nil {
		return err
	}
	spec, err := named(k, r.PathValue("name"), fields)
	if err != nil {
		return err
	}
	applied, err := a.f.Apply(r.Context(), []service.Document{{Kind: core.Kind(k.Name), Spec: spec}}, dryRun)
	if err != nil {
		return err
	}
	if len(applied) != 1 {
		return errs.New(errs.Internal, "one resource was applied, %d were reported", len(applied))
	}
	status := http.StatusOK
	if applied[0].Change == core.Created && !dryRun {
		status = http.StatusCreated
	}
	if dryRun {
		wait = 0
	}
	return writeJSON(w, status, change{applied[0], a.acted(r, wait)})
}

// named puts the path's name into a resource; kind and name in it may only agree.
func named(k Kind, name string, fields map[string]json.RawMessage) (json.RawMessage, error) {
	for field, want := range map[string]string{"name": name, "kind": k.Name} {
		raw, ok := fields[field]
		if !ok {
			continue
		}
		var got string
		if err := json.Unmarshal(raw, &got); err != nil || got != want {
			return nil, errs.New(errs.Invalid, "the body's %s is %s, the path's is %q", field, raw, want).On(k.Name+"/"+name, field)
		}
	}
	var err error
	if fields["name"], err = json.Marshal(name); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

func (a *api) delete(w http.ResponseWriter, r *http.Request) error {
	k, err := kindOf(r)
	if err == nil && !k.deletable() {
		err = statusError{http.StatusMethodNotAllowed, errs.New(errs.Invalid, "%s are not deleted by users", k.Plural)}
	}
	if err != nil {
		return err
	}
	how := service.DeleteOptions{Reason: r.URL.Query().Get("reason")}
	if how.Force, err = flag(r, "force"); err != nil {
		return err
	}
	wait, err := period(r, "wait", maxWait)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	if err := a.f.Delete(r.Context(), k.Name, name, how); err != nil {
		return err
	}
	done := service.Applied{Kind: core.Kind(k.Name), Name: name, Change: core.Deleted}
	return writeJSON(w, http.StatusOK, change{done, a.acted(r, wait)})
}

// act does something to a gateway or a data source.
func (a *api) act(w http.ResponseWriter, r *http.Request) error {
	k, err := kindOf(r)
	if err != nil {
		return err
	}
	// Actions take long, and net/http notices a client that goes away only once the body
	// has been read.
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxRequest)); err != nil {
		return errs.New(errs.Invalid, "read the request: %w", err)
	}
	name, ctx := r.PathValue("name"), r.Context()
	switch action := r.PathValue("action"); k.Name + " " + action {
	case "Gateway wake":
		err = a.f.Wake(ctx, name)
	case "Gateway pause":
		err = a.f.Pause(ctx, name)
	case "Gateway restart":
		err = a.f.Restart(ctx, name)
	case "Query cancel":
		err = a.f.CancelQuery(ctx, name)
	case "DataSource test":
		return a.test(w, r, name)
	default:
		return errs.New(errs.NotFound, "%s have no action %q", k.Plural, action).
			WithHint("gateways have wake, pause and restart; datasources have test; queries have cancel")
	}
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (a *api) test(w http.ResponseWriter, r *http.Request, name string) error {
	resp, err := a.f.TestDataSource(r.Context(), name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, resp)
}

func (a *api) check(w http.ResponseWriter, r *http.Request) error {
	var in core.Check
	if err := readJSON(w, r, maxRequest, &in); err != nil {
		return err
	}
	res, err := a.f.Check(r.Context(), in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, res)
}

// The number of queries that a list holds by default, and at the most.
const (
	defaultQueries = 100
	maxQueries     = 10000
)

// limitOf reads how many objects a list may hold.
func limitOf(r *http.Request, without int) (int, error) {
	s := r.URL.Query().Get("limit")
	if s == "" {
		return without, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxQueries {
		return 0, errs.New(errs.Invalid, "the parameter limit is a number from 1 to %d, not %q", maxQueries, s)
	}
	return n, nil
}

func (a *api) listAudits(w http.ResponseWriter, r *http.Request) error {
	limit, err := limitOf(r, 0)
	if err != nil {
		return err
	}
	views, err := a.f.AuditRecords(r.Context(), limit)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, items(views))
}

func (a *api) listQueries(w http.ResponseWriter, r *http.Request) error {
	limit, err := limitOf(r, defaultQueries)
	if err != nil {
		return err
	}
	records, err := a.f.QueryRecords(r.Context(), r.URL.Query().Get("source"), limit)
	if err != nil {
		return err
	}
	views := make([]service.View, len(records))
	for i, q := range records {
		views[i] = service.View{Kind: service.KindQuery, Name: q.ID, Object: q}
	}
	return writeJSON(w, http.StatusOK, items(views))
}

// Package client is the Go client of Sluice's HTTP API: resources, queries, gateways.
//
// It is what the command line uses. Results come as the bytes of the format that was
// asked for; a result is whole only if its Body ends in io.EOF. For Arrow Flight SQL
// use any Flight SQL driver against the service's Flight address.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// DefaultSocket is where a service on this machine answers its administrator.
const DefaultSocket = "/run/sluice.sock"

// Media types of results.
const (
	MediaJSON    = "application/json"
	MediaCSV     = "text/csv"
	MediaArrow   = "application/vnd.apache.arrow.stream"
	MediaParquet = "application/vnd.apache.parquet"
)

// Options say where the service is: URL and Token over TCP, or Socket.
type Options struct {
	URL    string // "https://sluice.example:8480"; empty: the socket
	Token  string // required with URL
	Socket string // Default DefaultSocket
}

// FromEnv reads SLUICE_URL and SLUICE_TOKEN, or SLUICE_SOCKET.
func FromEnv() Options {
	return Options{URL: os.Getenv("SLUICE_URL"), Token: os.Getenv("SLUICE_TOKEN"), Socket: os.Getenv("SLUICE_SOCKET")}
}

// Client speaks to one service. Its methods may be called concurrently.
type Client struct {
	opts Options
	base string
	http *http.Client
}

// New makes a client; it does not connect.
func New(opts Options) (*Client, error) {
	if opts.Socket == "" {
		opts.Socket = DefaultSocket
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true
	c := &Client{opts: opts, base: "http://sluice", http: &http.Client{Transport: transport}}
	if opts.URL == "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", opts.Socket)
		}
		return c, nil
	}
	u, err := url.Parse(opts.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.Invalid, "SLUICE_URL %q is not a URL such as https://sluice.example:8480", opts.URL)
	}
	c.base = strings.TrimSuffix(opts.URL, "/")
	return c, nil
}

// Close frees idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Applied says what an apply did to one resource.
type Applied struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Change string `json:"change"` // created, updated, unchanged
}

// ApplyError is an apply that was refused, with every problem found.
type ApplyError struct {
	Err      *errs.Error
	Problems []*errs.Error
}

// Error implements error.
func (e *ApplyError) Error() string { return e.Err.Error() }

// Unwrap gives the classified error.
func (e *ApplyError) Unwrap() error { return e.Err }

// Apply creates or updates resources, all or none. Each document is a JSON object
// with "kind" and the resource's fields.
func (c *Client) Apply(ctx context.Context, docs []json.RawMessage, dryRun bool) ([]Applied, error) {
	path := "/v1/apply"
	if dryRun {
		path += "?dryRun=true"
	}
	results, _, err := c.changeAll(ctx, path, map[string]any{"documents": docs})
	return results, err
}

// HostActing is how far a host is with what was changed.
type HostActing struct {
	Host      string   `json:"host"`
	Connected bool     `json:"connected"`
	Acted     bool     `json:"acted"`
	Problems  []string `json:"problems"` // that it reports since then and not before
}

// ApplyAndWait is Apply, and waits for at most so long until the hosts that run members
// have acted on it. It returns how far each of them is.
func (c *Client) ApplyAndWait(ctx context.Context, docs []json.RawMessage, most time.Duration) ([]Applied, []HostActing, error) {
	path := "/v1/apply?" + url.Values{"wait": {most.String()}}.Encode()
	return c.changeAll(ctx, path, map[string]any{"documents": docs})
}

// List returns the objects of a kind as JSON, each with "kind" and "status".
func (c *Client) List(ctx context.Context, kind string) ([]json.RawMessage, error) {
	var out struct {
		Items []json.RawMessage `json:"items"`
	}
	err := c.call(ctx, http.MethodGet, "/v1/"+url.PathEscape(kind), nil, &out)
	return out.Items, err
}

// Get returns one object as JSON.
func (c *Client) Get(ctx context.Context, kind, name string) (json.RawMessage, error) {
	var out json.RawMessage
	err := c.call(ctx, http.MethodGet, "/v1/"+url.PathEscape(kind)+"/"+url.PathEscape(name), nil, &out)
	return out, err
}

// Delete deletes one resource.
func (c *Client) Delete(ctx context.Context, kind, name string, force bool) error {
	return c.DeleteFor(ctx, kind, name, force, "")
}

// DeleteFor does so for a reason, which the service keeps in its audit log.
func (c *Client) DeleteFor(ctx context.Context, kind, name string, force bool, reason string) error {
	_, err := c.delete(ctx, kind, name, force, reason, url.Values{})
	return err
}

// DeleteAndWait is DeleteFor, and waits for at most so long until the hosts that run members
// have acted on it. It returns how far each of them is.
func (c *Client) DeleteAndWait(ctx context.Context, kind, name string, force bool, reason string, most time.Duration) ([]HostActing, error) {
	return c.delete(ctx, kind, name, force, reason, url.Values{"wait": {most.String()}})
}

func (c *Client) delete(ctx context.Context, kind, name string, force bool, reason string, q url.Values) ([]HostActing, error) {
	var out struct {
		Hosts []HostActing `json:"hosts"`
	}
	q.Set("force", strconv.FormatBool(force))
	if reason != "" {
		q.Set("reason", reason)
	}
	err := c.call(ctx, http.MethodDelete, "/v1/"+url.PathEscape(kind)+"/"+url.PathEscape(name)+"?"+q.Encode(), nil, &out)
	return out.Hosts, err
}

// Object names a resource.
type Object struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// DeleteSet is several resources to delete in one change.
type DeleteSet struct {
	Objects       []Object `json:"objects"`
	IgnoreMissing bool     `json:"ignoreMissing,omitempty"` // what does not exist is left out
	Force         bool     `json:"force,omitempty"`
	Reason        string   `json:"reason,omitempty"`
}

// DeleteAll deletes several resources, all or none, and returns those that were there.
func (c *Client) DeleteAll(ctx context.Context, set DeleteSet) ([]Applied, error) {
	results, _, err := c.changeAll(ctx, "/v1/delete", set)
	return results, err
}

// DeleteAllAndWait is DeleteAll, and waits as DeleteAndWait does.
func (c *Client) DeleteAllAndWait(ctx context.Context, set DeleteSet, most time.Duration) ([]Applied, []HostActing, error) {
	return c.changeAll(ctx, "/v1/delete?"+url.Values{"wait": {most.String()}}.Encode(), set)
}

// changeAll asks for changes of several resources.
func (c *Client) changeAll(ctx context.Context, path string, in any) ([]Applied, []HostActing, error) {
	var out struct {
		Results []Applied    `json:"results"`
		Hosts   []HostActing `json:"hosts"`
	}
	err := c.call(ctx, http.MethodPost, path, in, &out)
	return out.Results, out.Hosts, err
}

// Gateway wakes, pauses or restarts a gateway and waits until it is so.
func (c *Client) Gateway(ctx context.Context, act, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/gateways/"+url.PathEscape(name)+"/"+url.PathEscape(act), struct{}{}, nil)
}

// Post sends a JSON document and decodes the answer, for calls without a method of their own.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, http.MethodPost, path, in, out)
}

// Query is a query to run.
type Query struct {
	Source  string        `json:"source"`
	SQL     string        `json:"sql"`
	Class   string        `json:"class,omitempty"` // interactive (default) or refresh
	Timeout core.Duration `json:"timeout,omitzero"`
	// Traceparent is the W3C trace context that the query belongs to, "" for none.
	Traceparent string `json:"-"`
}

// Result is a result on its way. Body ends in io.EOF only if it is whole.
type Result struct {
	QueryID string
	Body    io.ReadCloser
}

// Query runs a query and returns its result in the media type asked for.
func (c *Client) Query(ctx context.Context, q Query, mediaType string) (*Result, error) {
	resp, err := c.do(ctx, http.MethodPost, "/v1/query", q, mediaType)
	if err != nil {
		return nil, err
	}
	return &Result{QueryID: resp.Header.Get("Sluice-Query-Id"), Body: body{resp.Body}}, nil
}

// body says in plain words that a result broke off.
type body struct{ io.ReadCloser }

// Read implements io.Reader.
func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		return n, errs.New(errs.Unavailable, "the result broke off: the service ended the stream because of an error").WithStep(errs.StepStream)
	}
	return n, err
}

// Queries returns the newest records of the query log as JSON.
func (c *Client) Queries(ctx context.Context, limit int) ([]json.RawMessage, error) {
	var out struct {
		Items []json.RawMessage `json:"items"`
	}
	err := c.call(ctx, http.MethodGet, "/v1/queries?limit="+strconv.Itoa(limit), nil, &out)
	return out.Items, err
}

// QueryRecord returns the record of one query.
func (c *Client) QueryRecord(ctx context.Context, id string) (core.Query, error) {
	var out core.Query
	err := c.call(ctx, http.MethodGet, "/v1/queries/"+url.PathEscape(id), nil, &out)
	return out, err
}

// CancelQuery ends a query that runs or waits.
func (c *Client) CancelQuery(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/v1/queries/"+url.PathEscape(id)+"/cancel", struct{}{}, nil)
}

// call sends a request and decodes a JSON answer.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in, MediaJSON)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return errs.New(errs.Unavailable, "the service's answer to %s %s is incomplete: %w", method, path, err)
	}
	return nil
}

// do sends a request and returns an answer that is not an error.
func (c *Client) do(ctx context.Context, method, path string, in any, accept string) (*http.Response, error) {
	var doc io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		doc = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, doc)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q, ok := in.(Query); ok && q.Traceparent != "" {
		req.Header.Set("Traceparent", q.Traceparent)
	}
	if c.opts.URL != "" && c.opts.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.opts.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, c.explained(refusal(resp))
	}
	return resp, nil
}

// unreachable says why there was no answer, and what to do.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if c.opts.URL != "" {
		return errs.New(errs.Unavailable, "the service at %s can't be reached: %w", c.opts.URL, unwrapURL(err)).
			WithHint("%s", urlHint(err))
	}
	e := errs.New(errs.Unavailable, "the service's socket %s can't be reached: %w", c.opts.Socket, unwrapURL(err))
	switch {
	case errors.Is(err, os.ErrPermission):
		e.Class = errs.Denied
		return e.WithHint("only its owner may use it: become that user (sudo), or set SLUICE_URL and SLUICE_TOKEN")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return e.WithHint("is a service running here? \"sluice up\" starts one; SLUICE_SOCKET or SLUICE_URL say where else it is")
	}
	return e
}

// urlHint says what to do about a URL that leads to no HTTP API.
func urlHint(err error) string {
	reason := err.Error()
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return "nothing encrypts there: begin SLUICE_URL with http://"
	case errors.Is(err, io.EOF), strings.Contains(reason, "malformed HTTP response"):
		return "no HTTP API answers there: SLUICE_URL is the address that --http gave to the service, with https:// if it has a certificate"
	}
	return "SLUICE_URL says where it is"
}

// explained adds to a refusal for want of a token that none was sent.
func (c *Client) explained(err error) error {
	var e *errs.Error
	if c.opts.URL != "" && c.opts.Token == "" && errors.As(err, &e) && e.Class == errs.Unauthenticated {
		e.Hint = "set SLUICE_TOKEN; the administrator's token was shown when the service first started, \"sluice token renew\" makes a new one"
	}
	return err
}

func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// refusal reads the error that the service answered with.
func refusal(resp *http.Response) error {
	var doc struct {
		Error    *errs.Error   `json:"error"`
		Problems []*errs.Error `json:"problems"`
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil || json.Unmarshal(b, &doc) != nil || doc.Error == nil || doc.Error.Message == "" {
		return errs.New(errs.Internal, "the service answered %s without a reason", resp.Status)
	}
	if len(doc.Problems) > 0 {
		return &ApplyError{Err: doc.Error, Problems: doc.Problems}
	}
	return doc.Error
}

// WaitReady waits until the service answers that it is ready.
func (c *Client) WaitReady(ctx context.Context) error {
	for {
		err := c.call(ctx, http.MethodGet, "/readyz", nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the service is not ready: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

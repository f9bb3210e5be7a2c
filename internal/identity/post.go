package identity

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// maxAnswer bounds what the service may answer to join and renew.
const maxAnswer = 64 << 10

// post sends one JSON request on a connection of its own and decodes the answer. What
// goes wrong on the way is Unavailable, a refusal has the class that the service gave.
func (k *Keeper) post(ctx context.Context, path string, req, resp any) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	body, err := json.Marshal(req)
	if err != nil {
		return errs.New(errs.Internal, "encode the request to %s: %w", path, err)
	}
	raw, err := k.opts.Dial(ctx)
	if err != nil {
		return errs.New(errs.Unavailable, "can't reach the service: %w", err)
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	answer, err := k.exchange(ctx, raw, path, body)
	if err != nil {
		return transportError(ctx, err)
	}
	if err := json.Unmarshal(answer, resp); err != nil {
		return errs.New(errs.Internal, "the service's answer to %s: %w", path, err)
	}
	return nil
}

// transportError classes what a connection gave.
func transportError(ctx context.Context, err error) error {
	var known *errs.Error
	if errors.As(err, &known) {
		return err
	}
	if ctx.Err() != nil {
		return errs.New(errs.Timeout, "the service did not answer in time: %w", ctx.Err())
	}
	return errs.New(errs.Unavailable, "the connection to the service: %w", err)
}

// exchange runs TLS and one request over raw and returns the body of a 200 answer.
func (k *Keeper) exchange(ctx context.Context, raw net.Conn, path string, body []byte) ([]byte, error) {
	cfg := k.TLSConfig(memberapi.ProtoHTTP)
	if path == memberapi.PathJoin { // the token says who it is; a certificate may have been refused
		cfg.Certificates, cfg.ClientSessionCache = nil, nil
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	defer conn.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+k.opts.ServiceName+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp.StatusCode, answer)
	}
	return answer, nil
}

// refusal is the error that the service's answer carries.
func refusal(status int, answer []byte) error {
	var e errs.Error
	if json.Unmarshal(answer, &e) == nil && e.Class != "" {
		return &e
	}
	class := errs.Internal
	if status >= 500 {
		class = errs.Unavailable
	}
	return errs.New(class, "the service answered with status %d", status)
}

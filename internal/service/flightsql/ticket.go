package flightsql

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// sealer encrypts what clients keep for the service, bound to its purpose and to the
// principal that it was given to.
type sealer struct{ aead cipher.AEAD }

// newSealer takes a key of 32 bytes, or none for a random one.
func newSealer(key []byte) (*sealer, error) {
	if len(key) == 0 {
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails: crypto/rand ends the process instead
	}
	if len(key) != 32 {
		return nil, fmt.Errorf("flightsql: the key has %d bytes, not 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("flightsql: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("flightsql: %w", err)
	}
	return &sealer{aead: aead}, nil
}

// The purposes of what is sealed.
const (
	sealTicket  = "ticket"
	sealSession = "session"
)

func binding(purpose string, p core.Principal) []byte {
	doc, _ := json.Marshal([]string{purpose, string(p.Tenant), p.Name}) // strings always encode
	return doc
}

func (s *sealer) seal(purpose string, p core.Principal, plain []byte) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(plain)+s.aead.Overhead())
	_, _ = rand.Read(nonce)
	return s.aead.Seal(nonce, nonce, plain, binding(purpose, p))
}

// open returns what was sealed, and false for anything else.
func (s *sealer) open(purpose string, p core.Principal, sealed []byte) ([]byte, bool) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return nil, false
	}
	plain, err := s.aead.Open(nil, sealed[:n], sealed[n:], binding(purpose, p))
	return plain, err == nil
}

// ticket is what DoGet needs to run a query. One of SQL, Command and Prepared is set.
type ticket struct {
	ID      string          `json:"id"` // names the run, for CancelFlightInfo
	Expires time.Time       `json:"exp"`
	Source  string          `json:"src,omitempty"`
	Class   core.QueryClass `json:"class,omitempty"`
	SQL     string          `json:"sql,omitempty"`
	Command []byte          `json:"cmd,omitempty"` // a command that asks for metadata
	// Prepared names a statement with parameters, and Binding which of them.
	Prepared string `json:"prep,omitempty"`
	Binding  int64  `json:"bind,omitempty"`
}

// issue seals a ticket into the form in which clients carry it.
func (s *Server) issue(p core.Principal, t ticket) ([]byte, error) {
	plain, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("flightsql: %w", err)
	}
	return flightsql.CreateStatementQueryTicket(s.seal.seal(sealTicket, p, plain))
}

// redeem opens a ticket.
func (s *Server) redeem(p core.Principal, raw []byte) (ticket, error) {
	t, ok := s.parseTicket(p, raw)
	switch {
	case !ok:
		return ticket{}, errs.New(errs.NotFound, "the ticket is not one of this service's, or not the caller's").
			WithStep(errs.StepAdmit).WithHint("ask for a new one with GetFlightInfo: tickets don't outlive the service's process")
	case s.opts.Now().After(t.Expires):
		return ticket{}, errs.New(errs.NotFound, "the ticket expired at %s", t.Expires.UTC().Format(time.RFC3339)).
			WithStep(errs.StepAdmit).WithHint("ask for a new one with GetFlightInfo")
	}
	return t, nil
}

func (s *Server) parseTicket(p core.Principal, raw []byte) (t ticket, ok bool) {
	var envelope anypb.Any
	var query pb.TicketStatementQuery
	if proto.Unmarshal(raw, &envelope) != nil || envelope.UnmarshalTo(&query) != nil {
		return ticket{}, false
	}
	plain, ok := s.seal.open(sealTicket, p, query.GetStatementHandle())
	if !ok || json.Unmarshal(plain, &t) != nil {
		return ticket{}, false
	}
	return t, true
}

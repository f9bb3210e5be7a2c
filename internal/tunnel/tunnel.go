// Package tunnel lets the service be the HTTP client of members that it can't dial:
// each member dials out, parks connections at the service, and answers one request at
// a time on each. A control connection beside them carries hello, heartbeats, "keep
// that many parked" and drain, never data.
//
// Agent is the member's side, Hub the service's. The package owns connections from
// the end of their handshake on, their pooling and their health; certificates are
// identity's, accepting is ingress's, the host's part in between is relay's. The
// gateway imports Agent only, the service Hub only.
package tunnel

import (
	"errors"
	"net"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// Errors that callers tell apart with errors.Is; the errors around them have a class.
var (
	// ErrNoResponse says that a request may have reached the member, and that its
	// connection broke before the first byte of an answer: whether it was run is unknown.
	ErrNoResponse = errors.New("the connection broke before the member answered")
	// ErrBroken says that the connection broke in the middle of an answer.
	ErrBroken = errors.New("the connection broke in the middle of the answer")
	// ErrDrained is the reason of a member that went because it was told to.
	ErrDrained = errors.New("drained")
)

// DefaultParked is how many connections a member parks when nothing is running.
const DefaultParked = 4

// Defaults of the heartbeat, both ways, and of what follows when it stops.
const (
	defaultHeartbeatEvery   = 5 * time.Second
	defaultHeartbeatTimeout = 15 * time.Second
	defaultGrace            = 3 * time.Second
)

// late is after how long a silence a peer is suspect: one heartbeat is overdue.
func late(every time.Duration) time.Duration { return every + every/2 }

// message is what a control connection carries. Who the member is says its certificate.
type message struct {
	Type string `json:"type"`
	// Version and Parked of a hello: the member's program, and its least number of
	// parked connections.
	Version string `json:"version,omitempty"`
	Parked  int    `json:"parked,omitempty"`
	// Data of welcome and park: how many data connections to keep open, idle and busy
	// together. It is a target, so that repeating or losing one does no harm.
	Data int `json:"data,omitempty"`
	// EveryMS and TimeoutMS of a welcome: the heartbeat that both sides keep.
	EveryMS   int64 `json:"everyMs,omitempty"`
	TimeoutMS int64 `json:"timeoutMs,omitempty"`
	// Error of a refusal.
	Error *errs.Error `json:"error,omitempty"`
}

// The types of message and who sends them.
const (
	msgHello     = "hello"     // member, first
	msgWelcome   = "welcome"   // service, in answer
	msgRefused   = "refused"   // service, in place of welcome or later: don't come back
	msgHeartbeat = "heartbeat" // both
	msgPark      = "park"      // service
	msgDrain     = "drain"     // both: no new requests; close each connection when it is idle
)

// maxMessage bounds a control message.
const maxMessage = 64 << 10

// refusalTimeout bounds the sending of a refusal.
const refusalTimeout = 5 * time.Second

// Refuse tells a member on its control connection that the service will not have it,
// and closes the connection. The member gives up instead of dialling again.
func Refuse(conn net.Conn, why error) {
	_ = conn.SetDeadline(time.Now().Add(refusalTimeout))
	var hello message
	// The hello is read first: closing with unread bytes would reset the refusal away.
	if wire.Read(conn, &hello, maxMessage) == nil {
		e := errs.As(why)
		_ = wire.Write(conn, message{Type: msgRefused, Error: &errs.Error{Class: e.Class, Message: e.Message, Hint: e.Hint}})
	}
	_ = conn.Close()
}

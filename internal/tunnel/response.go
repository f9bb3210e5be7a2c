package tunnel

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"time"
)

// gatherSize is up to where small writes wait for more, so that a short answer leaves in
// one piece: head, body and trailers.
const gatherSize = 32 << 10

// gathers holds the buffers between the answers that need them.
var gathers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// response is an answer in HTTP/1.1: with a length if it is short and has no trailers, else
// in chunks. One goroutine writes at a time.
type response struct {
	conn   *parkedConn
	header http.Header
	status int // 0: not said yet

	body     *bytes.Buffer // what waits
	begun    bool          // the head has left
	trailers []string
	hijacked bool // the handler writes its answer itself
	err      error
}

func newResponse(conn *parkedConn) *response {
	return &response{conn: conn, header: http.Header{}, body: gathers.Get().(*bytes.Buffer)}
}

// release gives the buffer back, and leaves no deadline to the next answer.
func (r *response) release() {
	if r.body.Cap() <= 2*gatherSize {
		r.body.Reset()
		gathers.Put(r.body)
	}
	r.body = nil
	_ = r.conn.SetWriteDeadline(time.Time{})
}

// Header implements http.ResponseWriter.
func (r *response) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter. The first status counts.
func (r *response) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

// Write implements http.ResponseWriter.
func (r *response) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	if r.err == nil && r.body.Len()+len(p) > gatherSize {
		r.send(p)
	} else if r.err == nil {
		r.body.Write(p)
	}
	if r.err != nil {
		return 0, r.err
	}
	return len(p), nil
}

// FlushError is what http.ResponseController looks for.
func (r *response) FlushError() error {
	r.WriteHeader(http.StatusOK)
	if r.err == nil && (!r.begun || r.body.Len() > 0) {
		r.send(nil)
	}
	return r.err
}

// Hijack implements http.Hijacker. The connection ends with the handler.
func (r *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.hijacked = true
	return r.conn, bufio.NewReadWriter(bufio.NewReader(r.conn), bufio.NewWriter(r.conn)), nil
}

// SetWriteDeadline is what http.ResponseController looks for.
func (r *response) SetWriteDeadline(t time.Time) error {
	return r.conn.SetWriteDeadline(t)
}

// send sends the head, if it has not left, what waits, and more.
func (r *response) send(more []byte) {
	var head bytes.Buffer
	if !r.begun {
		r.begun = true
		r.head(&head, "Transfer-Encoding: chunked\r\n")
	}
	if n := r.body.Len() + len(more); n > 0 {
		fmt.Fprintf(&head, "%x\r\n", n)
		r.err = r.conn.writeAll(head.Bytes(), r.body.Bytes(), more, crlf)
	} else {
		r.err = r.conn.writeAll(head.Bytes())
	}
	r.body.Reset()
}

var crlf = []byte("\r\n")

// head writes status and headers. Trailers that were announced come at the end.
func (r *response) head(to *bytes.Buffer, framing string) {
	for _, list := range r.header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			r.trailers = append(r.trailers, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	not := map[string]bool{"Content-Length": true, "Transfer-Encoding": true}
	for _, name := range r.trailers {
		not[name] = true
	}
	fmt.Fprintf(to, "HTTP/1.1 %03d %s\r\n%s", r.status, http.StatusText(r.status), framing)
	_ = r.header.WriteSubset(to, not)
	to.Write(crlf)
}

// finish ends the answer.
func (r *response) finish(last bool) error {
	r.WriteHeader(http.StatusOK)
	if last {
		r.header.Set("Connection", "close")
	}
	if r.err != nil {
		return r.err
	}
	var head, tail bytes.Buffer
	switch {
	case r.begun:
	case len(r.header["Trailer"]) == 0:
		r.head(&head, fmt.Sprintf("Content-Length: %d\r\n", r.body.Len()))
		return r.conn.writeAll(head.Bytes(), r.body.Bytes())
	default:
		r.head(&head, "Transfer-Encoding: chunked\r\n")
	}
	if r.body.Len() > 0 {
		fmt.Fprintf(&head, "%x\r\n", r.body.Len())
		tail.Write(crlf)
	}
	tail.WriteString("0\r\n")
	for _, name := range r.trailers {
		for _, value := range r.header[name] {
			fmt.Fprintf(&tail, "%s: %s\r\n", name, oneLine.Replace(value))
		}
	}
	tail.Write(crlf)
	return r.conn.writeAll(head.Bytes(), r.body.Bytes(), tail.Bytes())
}

// oneLine keeps a value from ending its line.
var oneLine = strings.NewReplacer("\r", " ", "\n", " ")

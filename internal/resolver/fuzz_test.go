package resolver

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// FuzzAnswer gives the handler whatever parses as a message: the reply must be one that
// can be sent, within the client's limit, and an answer to that question.
func FuzzAnswer(f *testing.F) {
	for _, m := range []*dns.Msg{
		question("orders.corp.internal.", dns.TypeA), question("ORDERS.corp.internal.", dns.TypeAAAA),
		question("x.sub.corp.internal.", dns.TypeANY), question(".", dns.TypeNS), question("www.example.org.", dns.TypeA),
		question("nobody.corp.internal.", dns.TypeSOA).SetEdns0(65535, true), new(dns.Msg).SetNotify("corp.internal."),
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	r := New(Options{Config: Config{Zones: corpZones(), Servers: servers("192.0.2.1:53"), Timeout: time.Millisecond},
		Dial: func(context.Context, string, upstream.Server) (net.Conn, error) {
			return nil, errors.New("no network here")
		}})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		w := &recorder{}
		r.serve(t.Context(), w, q)
		if w.msg == nil {
			t.Fatal("no reply")
		}
		packed, err := w.msg.Pack()
		if err != nil {
			t.Fatalf("the reply can't be sent: %v\n%s\n%s", err, q, w.msg)
		}
		if len(packed) > udpSize(q) {
			t.Errorf("%d bytes for a client that takes %d\n%s", len(packed), udpSize(q), q)
		}
		if !w.msg.Response || w.msg.Id != q.Id {
			t.Errorf("not a reply to\n%s\nbut\n%s", q, w.msg)
		}
	})
}

// recorder keeps the reply that would be sent over UDP.
type recorder struct {
	dns.ResponseWriter
	msg *dns.Msg
}

func (r *recorder) RemoteAddr() net.Addr { return &net.UDPAddr{} }

func (r *recorder) WriteMsg(m *dns.Msg) error {
	r.msg = m
	return nil
}

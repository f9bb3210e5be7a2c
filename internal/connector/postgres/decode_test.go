package postgres

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// wireNumeric builds a binary numeric out of its digits, base 10,000.
func wireNumeric(weight int16, digits ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(digits)))
	b = binary.BigEndian.AppendUint16(b, uint16(weight))
	b = append(b, 0, 0, 0, 0)
	for _, d := range digits {
		b = binary.BigEndian.AppendUint16(b, d)
	}
	return b
}

// The server keeps to its modifiers. What does not must be a misfit, not a wrong value.
func TestNumericOutsideItsModifier(t *testing.T) {
	for _, v := range [][]byte{
		wireNumeric(1, 1, 0),                      // 10000 into numeric(4,2)
		wireNumeric(-1, 1),                        // 0.0001
		wireNumeric(0, 99, 9999),                  // 99.9999
		wireNumeric(10, 1),                        // 10^40
		wireNumeric(30000, 1),                     //
		wireNumeric(-30000, 1),                    //
		wireNumeric(9, 1, 2, 3, 4, 5, 6, 7, 8, 9), //
		wireNumeric(0, make([]uint16, 30)...),     // more digits than any decimal holds
	} {
		var m *misfit
		if n, err := readDecimal128(v, 4, 2); !errors.As(err, &m) {
			t.Errorf("%x reads as %v, %v", v, n, err)
		}
		if len(v) < 60 {
			if n, err := readDecimal256(v, 4, 2); !errors.As(err, &m) {
				t.Errorf("%x reads as %v, %v", v, n, err)
			}
		}
	}
	if n, err := readDecimal128(wireNumeric(0, 99, 9900), 4, 2); err != nil || n.ToString(2) != "99.99" {
		t.Errorf("%v %v", n, err)
	}
	if _, err := readDecimal128(wireNumeric(0, 10000), 38, 0); err == nil {
		t.Error("a digit of 10000 was taken")
	}
}

// A connection that the server closed while it was idle is noticed before it is used.
func TestClosedIdleConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	pid := queryValue(t, db, "select pg_backend_pid()")
	c := db.pool.idle[0]
	c.idleSince = time.Now().Add(-2 * probeAfter)
	if !c.ready() {
		t.Fatal("a sound connection is refused")
	}
	s.Exec(t, "select pg_terminate_backend("+pid+")")
	waitFor(t, s, "select count(*) from pg_stat_activity where pid = "+pid, "0")
	if c.ready() {
		t.Error("a closed connection is taken for sound")
	}
}

// relay forwards connections to a server and notes how each begins.
type relay struct {
	net.Listener
	mu    sync.Mutex
	codes []uint32 // the code in the first message of each connection
}

func newRelay(t *testing.T, to string) *relay {
	r := &relay{Listener: listenLocal(t)}
	go func() {
		for {
			conn, err := r.Accept()
			if err != nil {
				return
			}
			go r.forward(conn, to)
		}
	}()
	return r
}

func (r *relay) forward(conn net.Conn, to string) {
	defer conn.Close()
	first := make([]byte, 8)
	if _, err := io.ReadFull(conn, first); err != nil {
		return
	}
	r.mu.Lock()
	r.codes = append(r.codes, binary.BigEndian.Uint32(first[4:]))
	r.mu.Unlock()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(first); err != nil {
		return
	}
	go func() { _, _ = io.Copy(server, conn); server.Close() }()
	_, _ = io.Copy(conn, server)
}

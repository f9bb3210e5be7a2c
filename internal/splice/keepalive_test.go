package splice_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/splice"
)

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	c, _ := tcpPair(t)
	if err := splice.KeepAlive(c); err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		name            string
		level, opt, val int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		// A user time-out would end a living peer that does not read: back-pressure.
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0},
	} {
		err := raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), o.level, o.opt); err != nil || got != o.val {
				t.Errorf("%s = %d, %v, want %d", o.name, got, err, o.val)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

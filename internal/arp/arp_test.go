package arp

import (
	"net"
	"net/netip"
	"testing"
)

func TestClaims(t *testing.T) {
	t.Parallel()
	own, other := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	a, b := netip.MustParseAddr("192.168.10.140"), netip.MustParseAddr("192.168.10.141")
	reply := func(p []byte) []byte { p[7] = 2; return p }
	for name, c := range map[string]struct {
		p    []byte
		want bool
	}{
		"its owner answers":          {reply(packet(other, a, b)), true},
		"its owner asks for another": {packet(other, a, b), true},
		"its owner announces it":     {packet(other, a, a), true},
		"another probes it, too":     {packet(other, netip.IPv4Unspecified(), a), true},
		"another probes another":     {packet(other, netip.IPv4Unspecified(), b), false},
		"somebody asks for it":       {packet(other, b, a), false},
		"our own probe comes back":   {packet(own, netip.IPv4Unspecified(), a), false},
		"our own announcement does":  {packet(own, a, a), false},
		"it is cut":                  {packet(other, a, b)[:size-1], false},
		"it is padded":               {append(packet(other, a, b), make([]byte, 18)...), true},
		"it is not of Ethernet":      {append([]byte{0, 6}, packet(other, a, b)[2:]...), false},
		"nothing":                    {nil, false},
	} {
		got := claims(c.p, a, own)
		if (got != nil) != c.want || got != nil && got.String() != other.String() {
			t.Errorf("%s: %v", name, got)
		}
	}
}

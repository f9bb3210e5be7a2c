package signin

import "testing"

func TestAddressesInTheClear(t *testing.T) {
	for _, c := range []struct {
		address                string
		tls, insecure, refused bool
	}{
		{address: "127.0.0.1:0"},
		{address: "[::1]:0"},
		{address: "localhost:0"},
		{address: "0.0.0.0:0", refused: true},
		{address: ":0", refused: true},
		{address: "10.1.2.3:8480", refused: true},
		{address: "sluice.example:8480", refused: true},
		{address: "0.0.0.0:0", tls: true},
		{address: "0.0.0.0:0", insecure: true},
		{address: "8480", refused: true},
	} {
		err := CheckAddress(c.address, c.tls, c.insecure)
		if (err != nil) != c.refused {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

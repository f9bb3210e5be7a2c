package linux

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// netnsDir is where ip-netns(8), and so everyone, looks for named namespaces.
const netnsDir = "/run/netns"

// The addresses that mean the same on every host.
var (
	relayAddress = netip.AddrFrom4([4]byte{169, 254, 0, 1})
	linkLocal    = netip.MustParsePrefix("169.254.0.0/16")
	// The next hops between V, N and the host are keys of permanent neighbours: no
	// interface holds them and no packet carries them.
	hopUp   = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	hopDown = netip.AddrFrom4([4]byte{169, 254, 1, 2})
)

// The interfaces whose names are the same in each namespace of a kind.
const (
	ethName     = "eth0"
	tunName     = "tun0"
	insideName  = "inside"
	outsideName = "outside"
)

// names derives every name on the machine from the installation's instance.
type names struct{ instance string }

func (n names) prefix() string { return "sluice-" + n.instance + "-" }

func (n names) tunnel() string { return n.prefix() + "t" }

func (n names) vnet(uid string) string { return n.prefix() + "v-" + digest(8, uid) }

func (n names) nat(uid string) string { return n.prefix() + "n-" + digest(12, uid) }

func (n names) member(k hostnet.PortKey) string { return n.prefix() + "m-" + portDigest(k) }

// blank names a prepared namespace.
func (n names) blank(name string) string { return n.prefix() + "b-" + digest(12, name) }

// hostTable is the nftables table in the host's own namespace.
func (n names) hostTable() string { return "sluice-" + n.instance }

// hostLinks is what the names of our interfaces in the host's namespace begin with.
func (n names) hostLinks() string { return "s" + n.instance + "-" }

// natHostLink names the host's end of a NAT gateway's veth, within the kernel's 15 characters.
func (n names) natHostLink(uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return n.hostLinks() + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:13-len(n.instance)])
}

// natInnerLink names a NAT gateway's interface in V.
func natInnerLink(uid string) string { return "n" + digest(12, uid) }

// portLink and tunnelLink name the outer ends of a member's interfaces in V and T.
func portLink(k hostnet.PortKey) string   { return "m" + portDigest(k) }
func tunnelLink(k hostnet.PortKey) string { return "t" + portDigest(k) }

func portDigest(k hostnet.PortKey) string {
	return digest(12, k.Member, fmt.Sprint(k.Generation))
}

// digest is the first n hex digits of the SHA-256 of parts.
func digest(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:n]
}

// mac derives a locally administered address, so that a neighbour entry made before
// a crash still fits the interface that is made after it.
func (n names) mac(parts ...string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(n.instance + "\x00" + strings.Join(parts, "\x00")))
	m := net.HardwareAddr(sum[:6])
	m[0] = m[0]&^1 | 2
	return m
}

// portMACs are the addresses of a port's four interface ends.
type portMACs struct{ eth, ethOut, tun, tunOut net.HardwareAddr }

func (n names) portMACs(p hostnet.Port) portMACs {
	of := func(end string) net.HardwareAddr {
		return n.mac(p.Member, fmt.Sprint(p.Generation), p.Address.String(), end)
	}
	return portMACs{of("eth"), of("eth-out"), of("tun"), of("tun-out")}
}

// nth returns the address at an offset in a prefix.
func nth(p netip.Prefix, offset uint32) netip.Addr {
	b := p.Masked().Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += offset
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

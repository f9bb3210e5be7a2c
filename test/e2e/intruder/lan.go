package main

import (
	"errors"
	"net"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The network of an uplink that the tests make, and a machine on it.
const (
	lanPrefix = "192.168.10."
	lanServer = "192.168.10.5"
)

// lanTries are what a program may try with sockets against the network of its uplink: none
// if it has none. Whether what was sent arrives, the test sees there: it looks for the names.
func lanTries() map[string]func() error {
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil
	}
	addrs, _ := i.Addrs()
	if len(addrs) == 0 || !strings.HasPrefix(addrs[0].String(), lanPrefix) {
		return nil
	}
	out := map[string]func() error{
		"change a neighbour's MAC": setARP,
		"make a VLAN":              makeVLAN,
		"join a group of IPv6": func() error {
			return joinIPv6(i.Index)
		},
	}
	for what, to := range map[string]struct {
		address string
		port    int
		from    string
	}{
		"<control>":                  {lanServer, 9, ""},
		"<everyone>":                 {"255.255.255.255", 9, ""},
		"<network's everyone>":       {lanPrefix + "255", 9, ""},
		"<DHCP offer to everyone>":   {"255.255.255.255", 68, ""},
		"<DHCP question>":            {"255.255.255.255", 67, ""},
		"<mDNS group>":               {"224.0.0.251", 5353, ""},
		"<routed group>":             {"239.1.1.1", 9, ""},
		"<as the server>":            {lanServer, 9, lanServer},
		"<as another lease>":         {lanServer, 9, lanPrefix + "150"},
		"<as the uplink>":            {lanServer, 9, lanPrefix + "129"},
		"<as the router>":            {lanServer, 9, lanPrefix + "1"},
		"<as a DHCP client, nobody>": {"255.255.255.255", 67, "0.0.0.0"},
	} {
		out["send "+what] = func() error { return sendTo(to.address, to.port, to.from, "intruder"+what) }
	}
	return out
}

// sendTo sends a datagram, from an address that may be anybody's.
func sendTo(address string, port int, from, text string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	_ = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0")
	if from != "" {
		_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(from).To4())}); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, []byte(text), 0, &unix.SockaddrInet4{Port: port, Addr: [4]byte(net.ParseIP(address).To4())})
}

// setARP says that the server's address is at a MAC of its choice.
func setARP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var req [68]byte // struct arpreq: two socket addresses, flags, a mask, the device
	req[0], req[16] = unix.AF_INET, 1
	copy(req[4:], net.ParseIP(lanServer).To4())
	copy(req[18:], []byte{2, 0, 0, 0, 0, 9})
	req[32] = 4 // ATF_PERM
	copy(req[52:], "eth0")
	return ioctl(fd, unix.SIOCSARP, unsafe.Pointer(&req[0]))
}

// makeVLAN asks for VLAN 7 on its interface.
func makeVLAN() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const siocSetVLAN = 0x8983
	var req [64]byte // struct vlan_ioctl_args: the command, a device, the number
	copy(req[4:], "eth0")
	req[28] = 7
	return ioctl(fd, siocSetVLAN, unsafe.Pointer(&req[0]))
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// joinIPv6 joins the group of all routers on its interface, and says so to it.
func joinIPv6(index int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	group := [16]byte(net.ParseIP("ff02::2"))
	err = unix.Sendto(fd, []byte("intruder<IPv6 group>"), 0, &unix.SockaddrInet6{Port: 9, ZoneId: uint32(index), Addr: group})
	if err == nil {
		return nil
	}
	return errors.Join(err, unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group, Interface: uint32(index)}))
}

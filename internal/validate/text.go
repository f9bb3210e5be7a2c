package validate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// at names an element of a list.
func at(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// list prints values with commas between.
func list[T fmt.Stringer](vs []T) string {
	out := make([]string, len(vs))
	for i, v := range vs {
		out[i] = v.String()
	}
	return strings.Join(out, ", ")
}

// hostPort takes "host:port" apart; a name or an address in brackets, and a port.
func hostPort(s string) (host string, port uint16, problem string) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return "", 0, "is not host:port, such as 127.0.0.1:5432"
	}
	host, portText := s[:i], s[i+1:]
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || n == 0 || portText[0] == '+' {
		return "", 0, fmt.Sprintf("%q is not a port: a number from 1 to 65535", portText)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if a, err := netip.ParseAddr(inner); !ok || err != nil || !a.Is6() {
			return "", 0, fmt.Sprintf("%q is not an IPv6 address in brackets", host)
		}
		return inner, uint16(n), ""
	}
	if _, err := netip.ParseAddr(host); err == nil && !strings.Contains(host, ":") {
		return host, uint16(n), ""
	}
	if strings.Contains(host, ":") {
		return "", 0, fmt.Sprintf("the address %q needs brackets before a port: [%s]:%d", host, host, n)
	}
	if looksLikeIPv4(host) {
		return "", 0, fmt.Sprintf("%q is not an address", host)
	}
	if why := dnsNameProblem(strings.ToLower(host)); why != "" {
		return "", 0, fmt.Sprintf("the host %q %s", host, why)
	}
	return host, uint16(n), ""
}

// looksLikeIPv4 keeps 10.0.0.256 from passing for a name.
func looksLikeIPv4(s string) bool {
	return strings.Trim(s, "0123456789.") == "" && s != ""
}

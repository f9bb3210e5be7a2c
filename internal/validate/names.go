package validate

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxGatewayName = 200
	maxRuleName    = 80
	maxDNSName     = 253
)

var (
	labelForm  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	sourceForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)
	ruleForm   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)
	// dnsLabelForm allows the underscore that service records begin with.
	dnsLabelForm   = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	delegationForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9.-]*$`)
)

// label is for names that become parts of other names.
func (c *checker) label(field, name string) {
	if !labelForm.MatchString(name) {
		c.bad(field, "%q is not a name: up to 63 lower-case letters, digits and hyphens, a letter or digit first and last", name)
	}
}

// sourceName allows the underscore too: BI tools show the name as a catalog.
func (c *checker) sourceName(name string) {
	if !sourceForm.MatchString(name) {
		c.bad("name", "%q is not a name: up to 63 lower-case letters, digits, hyphens and underscores, a letter or digit first and last", name)
	}
}

func (c *checker) gatewayName(name string) {
	if n := utf8.RuneCountInString(name); n > maxGatewayName {
		c.bad("name", "has %d characters, at most %d are possible", n, maxGatewayName)
		return
	}
	if name == "" || strings.TrimSpace(name) != name || name == "." || name == ".." || strings.IndexFunc(name, notInGatewayName) >= 0 {
		c.bad("name", "%q is not a name: letters, digits, spaces and . _ - ( ), no space first or last", name)
	}
}

func notInGatewayName(r rune) bool {
	return r == utf8.RuneError || !(unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r) || strings.ContainsRune(" ._-()", r))
}

func (c *checker) ruleName(field, name string) {
	switch {
	case len(name) > maxRuleName:
		c.bad(field, "has %d characters, at most %d are possible", len(name), maxRuleName)
	case !ruleForm.MatchString(name):
		c.bad(field, "%q is not a rule's name: letters, digits and . _ -, a letter or digit first", name)
	}
}

// dnsNameProblem says why a name is not a DNS name in the form that is kept: lower case,
// no dot at the end; "" if it is.
func dnsNameProblem(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > maxDNSName:
		return "is longer than 253 characters"
	case strings.HasSuffix(name, "."):
		return "ends with a dot: leave it out"
	case strings.ToLower(name) != name:
		return "must be in lower case"
	}
	for label := range strings.SplitSeq(name, ".") {
		if !dnsLabelForm.MatchString(label) {
			return "is not a DNS name: labels of up to 63 letters, digits and hyphens, with dots between"
		}
	}
	return ""
}

// inZone reports whether a name is the zone's own or below it.
func inZone(name, zone string) bool {
	return name == zone || strings.HasSuffix(name, "."+zone)
}

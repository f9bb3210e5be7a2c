package policy

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sluice-gateway/sluice/internal/core"
)

func TestLogPrefix(t *testing.T) {
	long := strings.Repeat("r", 80)
	nsg := strings.Repeat("n", 63)
	for name, tc := range map[string]struct {
		nsg  string
		rule core.SecurityRule
		text string
		want LoggedRule
	}{
		"inbound":  {"data", core.SecurityRule{Name: "deny-all", Priority: 4096, Direction: core.Inbound}, "data/deny-all/I", LoggedRule{NSG: "data", Rule: "deny-all", Direction: core.Inbound}},
		"outbound": {"data", core.SecurityRule{Name: "x.y_z", Priority: 100, Direction: core.Outbound}, "data/x.y_z/O", LoggedRule{NSG: "data", Rule: "x.y_z", Direction: core.Outbound}},
		"too long": {nsg, core.SecurityRule{Name: long, Priority: 4096, Direction: core.Inbound}, nsg + "/#4096/I", LoggedRule{NSG: nsg, Priority: 4096, Direction: core.Inbound}},
	} {
		t.Run(name, func(t *testing.T) {
			text := logPrefix(tc.nsg, tc.rule)
			if text != tc.text {
				t.Errorf("the prefix is %q, want %q", text, tc.text)
			}
			got, ok := ParseLogPrefix(text)
			if diff := cmp.Diff(tc.want, got); !ok || diff != "" {
				t.Errorf("read back: %v %s", ok, diff)
			}
		})
	}
	for _, bad := range []string{"", "a/b", "a/b/X", "/b/I", "a//I", "a/#x/I", "a/b/c/I"} {
		if got, ok := ParseLogPrefix(bad); ok {
			t.Errorf("%q was read as %+v", bad, got)
		}
	}
}

// TestFlowLogIsInTheRulesetOnlyIfItIsOn also holds that only rules which deny report.
func TestFlowLogIsInTheRulesetOnlyIfItIsOn(t *testing.T) {
	in := corpInput()
	text, err := CompileVNet(in)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "ct mark") || strings.Contains(text, "log prefix") {
		t.Error("without a flow log the ruleset has traces of one")
	}
	without := text
	for i := range in.VNet.NSGs {
		in.VNet.NSGs[i].FlowLog.Enabled = in.VNet.NSGs[i].Name == "data"
	}
	in.FlowMark = 0xabc
	if text, err = CompileVNet(in); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text, "ct mark set 0x00000abc"); n != 2 {
		t.Errorf("%d chains mark flows, want 2", n)
	}
	traces := regexp.MustCompile(` log prefix "(?:data|gateways)/[^"]*" group 1|(?m)^\t\tct mark set 0x00000abc\n`)
	if diff := cmp.Diff(without, traces.ReplaceAllString(text, "")); diff != "" {
		t.Errorf("the log changes more than it should: %s", diff)
	}
	if !strings.Contains(text, `counter log prefix "data/deny-all/I" group 1 drop comment "data/deny-all (4096) inbound"`) {
		t.Error("the rule deny-all does not report:\n" + text)
	}
}

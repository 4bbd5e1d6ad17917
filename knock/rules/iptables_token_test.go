package rules

import (
	"bytes"
	"regexp"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

// A list of xt_recent keeps the mask of its first rule. Thus two schemes of a profile
// must not share a list, except the list of admitted addresses.
func TestIptablesSchemesUseDifferentLists(t *testing.T) {
	key := knock.NewKey()
	ports := knock.PortRange{Transport: knock.UDP, First: 1000, Last: 9999}
	lists := map[string]string{}
	for name, s := range map[string]knock.Schedule{
		"static":   knock.Sequence{{Port: 1}, {Port: 9}, {Port: 5}, {Port: 3}},
		"rotating": knock.Rotating{Key: key, Ports: ports, Knocks: 32, Period: time.Hour},
		"token":    knock.Token{Key: key, Port: 62202, Period: time.Hour, Tokens: knock.MaxTokens},
	} {
		g := mustGuard(t, "vps", "1", "22")
		g.Schedule = s
		var text bytes.Buffer
		if err := Format("iptables").Emit(&text, []Guard{g}, Options{From: noon, Until: noon.Add(10 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`--name (\S+)`).FindAllStringSubmatch(withoutScript(text.String()), -1) {
			if other, seen := lists[m[1]]; seen && other != name && m[1] != "portknock_vps_open" {
				t.Errorf("list %s is used by the schemes %s and %s", m[1], name, other)
			}
			lists[m[1]] = name
		}
	}
	if len(lists) < 2*iptTokenListCycle*knock.MaxTokens {
		t.Errorf("only %d lists, want at least twice as many as tokens in a cycle", len(lists))
	}
}

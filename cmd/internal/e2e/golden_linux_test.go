package e2e

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestFirewallsAcceptGoldenRules: each real firewall or daemon accepts the golden files
// of its format, in testdata/rules.
func TestFirewallsAcceptGoldenRules(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "..", "testdata", "rules", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	t.Parallel()
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			checked := 0
			for _, f := range append(slices.Clone(lab.Firewalls), fwknopd) {
				if "."+format(f) != filepath.Ext(file) {
					continue
				}
				checked++
				h := lab.NewHost(t, f.Name)
				f.Install(t, h)
				switch format(f) {
				case "nftables":
					h.Run(t, "nft", "-c", "-f", file)
				case "iptables":
					h.Run(t, "iptables-restore", "--test", file)
					h.Run(t, "ip6tables-restore", "--test", file)
				case "knockd", "fwknop":
					h.Shell(t, `sed -n "s/^#: //p" `+file+` | nft -c -f -`)
					lab.Link(t, h, lab.NewHost(t, "neighbor")) // knockd and fwknopd need an interface eth0
					if f.Name == "knockd" {
						h.Knockd(t, file)
					} else {
						startFwknopd(t, h, lab.ReadFile(t, file))
					}
				}
			}
			if checked == 0 {
				t.Error("no firewall has checked this file")
			}
		})
	}
}

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// TestGuardsFollowTraces plays every trace against every firewall.
func TestGuardsFollowTraces(t *testing.T) {
	traces := lab.ReadTraces(t, filepath.Join("..", "..", "..", "testdata", "traces"))
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tr := range traces {
			if tr.For(f) {
				t.Run(strings.TrimSuffix(tr.File, ".txt"), func(t *testing.T) {
					t.Parallel()
					tr.Run(t, f, family, func(server *lab.Host) { loadTrace(t, server, f, tr) })
				})
			}
		}
	})
}

// loadTrace puts the rules for a trace in force.
func loadTrace(t testing.TB, server *lab.Host, f lab.Firewall, tr *lab.Trace) {
	t.Helper()
	settings := []string{"Sequence " + tr.Sequence.String()}
	for _, s := range tr.Settings {
		settings = append(settings, s.Keyword+" "+s.Value)
	}
	runHeaderLine(t, server, emitRules(t, server, f, vpsProfile(t, settings...)), "load")
}

// TestGuardsFollowTracesInWindows plays every trace where its sequence is that of a window.
// The windows beside have a sequence that shares two ports with it. Of the sweeps,
// which are most of the work of TestGuardsFollowTraces, one is enough here.
func TestGuardsFollowTracesInWindows(t *testing.T) {
	traces := lab.ReadTraces(t, filepath.Join("..", "..", "..", "testdata", "traces"))
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for i, tr := range traces {
			sweep := strings.HasPrefix(tr.File, "sweep")
			if !tr.For(f) || sweep && (tr.File != "sweep-udp-ascending.txt" || family != lab.IPv4) {
				continue
			}
			place := windowRoles[i%len(windowRoles)]
			t.Run(strings.TrimSuffix(tr.File, ".txt")+"/"+place, func(t *testing.T) {
				t.Parallel()
				tr.Run(t, f, family, func(server *lab.Host) {
					other := knock.Sequence{tr.Sequence[1], {Transport: knock.UDP, Port: 4001}, tr.Sequence[0]}
					g := alternatingGuard(place, tr.Sequence, other)
					for _, s := range tr.Settings {
						d, err := time.ParseDuration(s.Value)
						switch {
						case err != nil:
							t.Fatal(err)
						case s.Keyword == "OpenFor":
							g.OpenFor = d
						case s.Keyword == "KnockTimeout":
							g.KnockTimeout = d
						default:
							t.Fatalf("a setting %s", s.Keyword)
						}
					}
					loadGuard(t, server, f, g, 2*time.Hour)
				})
			})
		}
	})
}

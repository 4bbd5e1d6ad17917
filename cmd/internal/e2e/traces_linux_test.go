package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// TestGuardsFollowTraces: each firewall behaves as each trace of testdata/traces
// describes.
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

// loadTrace emits and loads the rules for a trace.
func loadTrace(t testing.TB, server *lab.Host, f lab.Firewall, tr *lab.Trace) {
	t.Helper()
	settings := []string{"Sequence " + tr.Sequence.String()}
	for _, s := range tr.Settings {
		settings = append(settings, s.Keyword+" "+s.Value)
	}
	runHeaderLine(t, server, emitRules(t, server, f, vpsProfile(t, settings...)), "load")
}

// TestGuardsFollowTracesInWindows: each firewall without a daemon also behaves as each
// trace describes if the trace's sequence belongs to a window. The windows before and
// after have another sequence, which shares two ports with the trace's sequence. This
// test plays only one sweep, because the sweeps are most of the work of
// TestGuardsFollowTraces.
func TestGuardsFollowTracesInWindows(t *testing.T) {
	traces := lab.ReadTraces(t, filepath.Join("..", "..", "..", "testdata", "traces"))
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for i, tr := range traces {
			sweep := strings.HasPrefix(tr.File, "sweep")
			if !tr.For(f) || sweep && (tr.File != "sweep-udp-ascending.txt" || family != lab.IPv4) {
				continue
			}
			role := windowRoles[i%len(windowRoles)]
			t.Run(strings.TrimSuffix(tr.File, ".txt")+"/"+role, func(t *testing.T) {
				t.Parallel()
				tr.Run(t, f, family, func(server *lab.Host) {
					other := knock.Sequence{tr.Sequence[1], {Transport: knock.UDP, Port: 4001}, tr.Sequence[0]}
					g := alternatingGuard(role, tr.Sequence, other)
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
							t.Fatalf("this test does not support the setting %s", s.Keyword)
						}
					}
					loadGuard(t, server, f, g, rules.Options{})
				})
			})
		}
	})
}

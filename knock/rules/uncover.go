package rules

import (
	"fmt"
	"strings"

	"github.com/portknock/portknock/knock"
)

// forceVariable makes a load line go on where it would refuse.
const forceVariable = "PORTKNOCK_FORCE"

// uncovered is an awk program. It reads the rules that are loaded, as nft or
// iptables lists them, and prints the guarded ports that are not among those in
// the variable new: "tcp 22 22 udp 60000 61000", sorted by transport and port. It
// has neither a single quote nor "!", so that its line of shell can stand between
// single quotes and be typed into a shell that expands history.
const uncoveredPortsScript = `BEGIN { n = split(new, p) }
/dport .*(drop|DROP)$/ { gsub(/[{},]/, " "); gsub(/:/, "-");
for (i = 1; match($i, /dport$/) == 0; i++) if ($i ~ /^(tcp|udp)$/) t = $i;
for (i++; $i ~ /^[0-9]/; i++) { split($i, r, "-"); at = r[1] + 0;
for (j = 1; j < n; j += 3) if (p[j] == t && p[j+1] + 0 <= at && at <= p[j+2] + 0) at = p[j+2] + 1;
if (at <= (r[2] ? r[2] : r[1]) + 0 && seen[t, $i]++ == 0) print $i "/" t } }`

// refuseToOpen returns a shell command that fails, and names the ports, when the
// rules that the command listing prints guard a port that the new rules do not.
// The variable [forceVariable] makes it succeed. One file guards a server at a
// time: loading another one would open these ports without a word.
func refuseToOpen(listCommand string, guards []guard) string {
	guarded := join(mergePorts(guardedPorts(guards)), " ", func(r knock.PortRange) string {
		return fmt.Sprintf("%v %d %d", r.Transport, r.First, r.Last)
	})
	program := strings.NewReplacer("\n", " ", "$", `\$`, `"`, `\"`).Replace(uncoveredPortsScript)
	return fmt.Sprintf(`{ [ -n "${%s-}" ] || { l=$(%s 2>/dev/null | awk -v new="%s" "%s"); [ -z "$l" ]; } || { echo "portknock: not loaded, because this would open guarded ports:" $l". Put all profiles into one file. To load anyway: export %[1]s=1, then repeat" >&2; false; }; }`,
		forceVariable, listCommand, guarded, program)
}

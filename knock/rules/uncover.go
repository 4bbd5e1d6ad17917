package rules

import (
	"fmt"
	"strings"

	"github.com/portknock/portknock/knock"
)

// forceVariable is an environment variable. If it is set, a load line loads the rules
// even if that opens guarded ports.
const forceVariable = "PORTKNOCK_FORCE"

// uncoveredPortsScript is an awk program. It reads the loaded rules, as nft or
// iptables lists them. It prints the guarded ports that the variable new lacks.
//
// The variable new lists the ports of the new rules, sorted by transport and port,
// such as "tcp 22 22 udp 60000 61000".
//
// The program contains neither a single quote nor "!". Its line of shell can thus
// stand between single quotes, and a user can type it into a shell that expands history.
const uncoveredPortsScript = `BEGIN { n = split(new, p) }
/dport .*(drop|DROP)$/ { gsub(/[{},]/, " "); gsub(/:/, "-");
for (i = 1; match($i, /dport$/) == 0; i++) if ($i ~ /^(tcp|udp)$/) t = $i;
for (i++; $i ~ /^[0-9]/; i++) { split($i, r, "-"); at = r[1] + 0;
for (j = 1; j < n; j += 3) if (p[j] == t && p[j+1] + 0 <= at && at <= p[j+2] + 0) at = p[j+2] + 1;
if (at <= (r[2] ? r[2] : r[1]) + 0 && seen[t, $i]++ == 0) print $i "/" t } }`

// refuseToOpen returns a shell command that compares loaded rules with the new rules.
// listCommand prints the loaded rules. If they guard a port that the new rules do not
// guard, the command names the port and fails, unless [forceVariable] is set. One file
// guards a server at a time: loading another file would open these ports silently.
func refuseToOpen(listCommand string, guards []guard) string {
	guarded := join(mergePorts(guardedPorts(guards)), " ", func(r knock.PortRange) string {
		return fmt.Sprintf("%v %d %d", r.Transport, r.First, r.Last)
	})
	program := strings.NewReplacer("\n", " ", "$", `\$`, `"`, `\"`).Replace(uncoveredPortsScript)
	return fmt.Sprintf(`{ [ -n "${%s-}" ] || { l=$(%s 2>/dev/null | awk -v new="%s" "%s"); [ -z "$l" ]; } || { echo "portknock: not loaded, because this would open guarded ports:" $l". Put all profiles into one file. To load anyway: export %[1]s=1, then repeat" >&2; false; }; }`,
		forceVariable, listCommand, guarded, program)
}

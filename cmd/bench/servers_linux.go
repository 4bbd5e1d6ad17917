package main

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// server is a firewall or daemon that opens a guarded port.
type server struct {
	name     string
	programs []string
	start    func(t *tb, r *rig) // starts it on the rig's server, whose ports already listen
}

var (
	unguarded = server{"open port", nil, func(*tb, *rig) {}}
	nftables  = server{"nftables", []string{"nft"}, func(t *tb, r *rig) { r.load(t, "nftables") }}
	knockd    = server{"knockd", []string{"nft", "knockd", "stdbuf"}, startKnockd}
	fwknopd   = server{"fwknopd", []string{"nft", "iptables", "fwknopd"}, startFwknopd}
)

// installed reports whether all of the programs are installed.
func installed(programs []string) bool {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return false
		}
	}
	return true
}

// rig is a client, a server, and the link between them.
type rig struct {
	client, server *lab.Host
	addr           string // IPv4 address of the server
	portknock      string // path of the portknock program
	profile        string // path of portknock's profile file
	rules          string // path of the rules file that is loaded
	sources        uint16 // number of the client's further addresses that are used up
}

// newDirectRig is newRig with a link without delay.
func newDirectRig(t *tb, portknock string) *rig {
	return newRig(t, portknock, func(client, server *lab.Host) { lab.Link(t, client, server) })
}

// newRig creates a client and a server, joins them with link, and makes the server listen
// on its ports.
func newRig(t *tb, portknock string, link func(client, server *lab.Host)) *rig {
	r := &rig{client: lab.NewHost(t, "client"), server: lab.NewHost(t, "server"), portknock: portknock}
	link(r.client, r.server)
	r.addr = r.server.Addr(lab.IPv4).String()
	r.profile = lab.File(t, "config", "Host vps", "HostName "+r.addr, "Sequence "+strings.Join(sequence, " "),
		"Host long", "HostName "+r.addr, "Port "+fmt.Sprint(longPort), "OpenPorts "+fmt.Sprint(longPort),
		"Sequence "+strings.Join(longSequence, " "),
		"Host other", "HostName "+r.addr, "Port "+fmt.Sprint(otherPort), "OpenPorts "+fmt.Sprint(otherPort),
		"Sequence "+strings.Join(otherSequence, " "),
		"Host "+twoFamilies, "Sequence "+strings.Join(sequence, " "),
		"Host token", "HostName "+r.addr, "Scheme token", "KeyFile "+lab.File(t, "token", knock.NewKey().Reveal()),
		"Host fwknop", "HostName "+r.addr, "Scheme fwknop",
		"KeyFile "+lab.File(t, "rijndael", "base64:"+rijndaelKey), "HMACKeyFile "+lab.File(t, "hmac", "base64:"+hmacKey))
	for _, port := range []uint16{guardedPort, longPort, otherPort, openPort} {
		r.server.Serve(t, port, func(c net.Conn) {
			_, _ = io.WriteString(c, banner)
			_, _ = io.Copy(io.Discard, c)
		})
	}
	return r
}

// load loads the rules that portknock writes for its usual profiles and further ones. It
// also loads a firewall that drops packets to ports that are not open, as most servers do.
func (r *rig) load(t *tb, format string, profiles ...string) {
	r.dropExcept(t, guardedPort, longPort, otherPort, openPort)
	r.rules = filepath.Join(t.TempDir(), "rules")
	args := []string{"emit-rules", "-c", r.profile, "--format", format, "--horizon", horizon, "--output", r.rules, "vps", "long"}
	args = append(args, profiles...)
	if format == "nftables" {
		args = append(args, "token")
	}
	r.server.Run(t, r.portknock, args...)
	r.server.Shell(t, lab.RulesLine(t, r.rules, "load"))
}

// horizon is how long the rules stay valid, and for how long they contain tokens.
const horizon = "365d"

// dropExcept makes the server drop new packets, except to these TCP ports.
func (r *rig) dropExcept(t *tb, ports ...int) {
	open := strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
	r.server.Run(t, "nft", "add table inet server; add chain inet server input { type filter hook input priority 10; policy drop; };"+
		"add rule inet server input iif lo accept; add rule inet server input ct state established,related accept;"+
		"add rule inet server input tcp dport { "+open+" } accept")
}

func startKnockd(t *tb, r *rig) {
	r.load(t, "knockd")
	r.server.Knockd(t, r.rules)
}

// startFwknopd starts the real fwknopd, which opens the port with iptables.
func startFwknopd(t *tb, r *rig) {
	dir := t.TempDir()
	access := lab.File(t, "access.conf", "SOURCE ANY", "KEY_BASE64 "+rijndaelKey, "HMAC_KEY_BASE64 "+hmacKey, "FW_ACCESS_TIMEOUT 30")
	config := lab.File(t, "fwknopd.conf", "PCAP_INTF eth0;", "FWKNOP_RUN_DIR "+dir+";", "FWKNOP_CONF_DIR "+dir+";")
	r.server.Shell(t, "iptables -A INPUT -p tcp --dport 22 --syn -j DROP")
	d := r.server.Daemon(t, "fwknopd", "-f", "-i", "eth0", "-c", config, "-a", access)
	d.Log.Await(t, "Starting fwknopd main event loop", 1)
}

package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// setting returns one of a trace's settings, in whole seconds: what a profile
// has by default, or more where no time is to end.
func (tr *Trace) setting(t *testing.T, keyword string) string {
	t.Helper()
	for _, s := range tr.Settings {
		if s.Keyword == keyword {
			d, err := time.ParseDuration(s.Value)
			must(t, err)
			return strconv.Itoa(int(d / time.Second))
		}
	}
	return "30"
}

// nftRules returns the smallest rules that the traces of a synchronous
// firewall should pass.
func nftRules(t *testing.T, tr *Trace) string {
	var steps []string
	for i, s := range tr.Sequence {
		steps = append(steps, fmt.Sprintf("0:%d . %s . %d : 0:%d", i, s.Transport, s.Port, i+1))
	}
	text := `table inet lab {
	map step {
		typeof meta priority . meta l4proto . th dport : meta priority
		elements = { ` + strings.Join(steps, ", ") + ` }
	}
	chain guard {
		type filter hook prerouting priority mangle
		ct state established,related accept
		tcp dport 22 tcp flags & (fin|syn|rst|ack) == syn goto door
		tcp flags & (fin|syn|rst|ack) != syn accept
		meta l4proto != { tcp, udp } accept
		th dport { 80, 443 } accept
		meta nfproto ipv4 jump knock4
		meta nfproto ipv6 jump knock6
		meta priority set 0:0
	}
	chain door {
		ip saddr @open4 accept
		ip6 saddr @open6 accept
		drop
	}
`
	for v, saddr := range map[string]string{"4": "ip saddr", "6": "ip6 saddr"} {
		timeout, openFor := tr.setting(t, "KnockTimeout"), tr.setting(t, "OpenFor")
		text += strings.NewReplacer("SADDR", saddr, "#", v, "TIMEOUT", timeout, "OPENFOR", openFor).Replace(`
	map at# { typeof SADDR : meta priority; flags dynamic,timeout; size 65536; }
	set made# { typeof SADDR . meta l4proto . th dport; flags dynamic,timeout; size 65536; }
	set open# { typeof SADDR; flags dynamic,timeout; size 65536; }
	chain knock# {
		meta priority set SADDR map @at#
		meta priority set meta priority . meta l4proto . th dport map @step goto advance#
		SADDR . meta l4proto . th dport @made# return
		delete @at# { SADDR : meta priority }
		meta priority set 0:0
		meta priority set meta priority . meta l4proto . th dport map @step goto advance#
	}
	chain advance# {
		delete @at# { SADDR : meta priority }
		meta priority 0:` + fmt.Sprint(len(tr.Sequence)) + ` goto admit#
		add @at# { SADDR timeout TIMEOUTs : meta priority }
		update @made# { SADDR . meta l4proto . th dport timeout TIMEOUTs }
	}
	chain admit# { update @open# { SADDR timeout OPENFORs }; }
`)
	}
	return text + "}\n"
}

// knockdConfig returns a door, and a second one of the ports beside the
// knocks, so that knockd sees a sweep's wrong ones.
func knockdConfig(t *testing.T, tr *Trace) string {
	var door, trap []string
	for _, s := range tr.Sequence {
		door = append(door, fmt.Sprintf("%d:%s", s.Port, s.Transport))
		trap = append(trap, fmt.Sprintf("%d:%s", s.Port-1, s.Transport), fmt.Sprintf("%d:%[2]s", s.Port+1, s.Transport))
	}
	slices.Reverse(trap)
	// knockd counts from the first knock to the last, by the second.
	each, err := strconv.Atoi(tr.setting(t, "KnockTimeout"))
	must(t, err)
	timeout := strconv.Itoa(each * (len(tr.Sequence) - 1))
	return strings.NewReplacer("DOOR", strings.Join(door, ","), "TRAP", strings.Join(trap, ","),
		"TIMEOUT", timeout, "OPENFOR", tr.setting(t, "OpenFor")).Replace(`[door]
	sequence = DOOR
	seq_timeout = TIMEOUT
	tcpflags = syn
	start_command = iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	start_command_6 = ip6tables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	cmd_timeout = OPENFOR
	stop_command = iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	stop_command_6 = ip6tables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
[trap]
	sequence = TRAP
	seq_timeout = TIMEOUT
	tcpflags = syn
	command = true
`)
}

// TestTracesPassOnMinimalRules plays the traces against firewalls that are as small as can be: they
// say nothing that only our own rules do. One sweep is enough for that.
func TestTracesPassOnMinimalRules(t *testing.T) {
	t.Parallel()
	load := map[string]func(t *testing.T, server *Host, tr *Trace){
		"nftables": func(t *testing.T, server *Host, tr *Trace) {
			server.RunInput(t, strings.NewReader(nftRules(t, tr)), "nft", "-f", "-")
		},
		"knockd": func(t *testing.T, server *Host, tr *Trace) {
			server.Shell(t, "for c in iptables ip6tables; do $c -A INPUT -p tcp --dport 22 --syn -j DROP || exit; done")
			server.Knockd(t, File(t, "knockd.conf", knockdConfig(t, tr)))
		},
	}
	for _, tr := range ReadTraces(t, "../../../testdata/traces") {
		if strings.HasPrefix(tr.File, "sweep") && tr.File != "sweep-udp-ascending.txt" {
			continue
		}
		for _, f := range Firewalls {
			if load[f.Name] == nil || !tr.For(f) {
				continue
			}
			for _, family := range Families {
				t.Run(tr.File+"/"+f.Name+"/"+family.String(), func(t *testing.T) {
					t.Parallel()
					tr.Run(t, f, family, func(server *Host) { load[f.Name](t, server, tr) })
				})
			}
		}
	}
}

func TestTraceErrorNamesLineAndFirewall(t *testing.T) {
	t.Parallel()
	const text = "sequence 1/udp\nclient closed\n"
	tr, err := ParseTrace("x.txt", text)
	must(t, err)
	err = tr.play(t, Firewalls[0], IPv6, func(*Host) {})
	const want = "x.txt:2: client closed: port 22 is open (nftables, ipv6)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestParseTraceErrors(t *testing.T) {
	t.Parallel()
	const seq = "sequence 1/udp 2/tcp\n"
	for text, want := range map[string]string{
		"":                            "x: no sequence",
		seq + "client":                "x:2: client what?",
		seq + "clinet open":           `x:2: no "clinet" in a trace`,
		seq + "client+0 open":         `x:2: address number "0" is not from 1 to 59999`,
		seq + "client knock 3":        `x:2: no knock "3" in a sequence of 2`,
		"client knock 1\n" + seq:      `x:1: no knock "1" in a sequence of 0`,
		seq + "client dance":          `x:2: nobody can "dance"`,
		seq + "client sweep tcp up":   "x:2: sweep tcp or udp, ascending, descending or random",
		seq + "client open 22":        "x:2: open takes nothing",
		seq + "\n# c\non pf":          `x:4: no firewall "pf"`,
		seq + "wait 2h":               "x:2: wait once, up to 1m0s",
		seq + "client send 99999/tcp": "x:2: knock 1 of 1: not a port from 1 to 65535",
	} {
		if _, err := ParseTrace("x", text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add("sequence 1/udp 2/tcp\nset OpenFor 2s\nnot knockd\nclient+3 knock 1 2\nwait 1s\nattacker sweep udp random\nclient open\n")
	f.Fuzz(func(t *testing.T, text string) {
		tr, err := ParseTrace("x", text)
		if err != nil {
			return
		}
		for _, a := range tr.actions {
			if a.host == "" && a.wait <= 0 || a.host != "" && a.verb == "" {
				t.Errorf("%q does nothing: %+v", text, a)
			}
		}
	})
}

package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// setting returns one of a trace's settings, in whole seconds. The default is 30. This is
// a profile's default OpenFor, and more than its default KnockTimeout, so that no knock
// of the trace expires.
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

// nftRules returns the smallest rules with which a synchronous firewall should pass the
// traces.
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
		tcp dport 22 tcp flags & (fin|syn|rst|ack) == syn goto guarded
		tcp flags & (fin|syn|rst|ack) != syn accept
		meta l4proto != { tcp, udp } accept
		th dport { 80, 443 } accept
		meta nfproto ipv4 jump knock4
		meta nfproto ipv6 jump knock6
		meta priority set 0:0
	}
	chain guarded {
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

// knockdConfig returns a knockd.conf with two sections: the sequence of the trace, and a
// trap. The trap has the ports beside the knocks, because knockd ignores ports that no
// section has. With the trap, knockd sees the wrong ports of a sweep.
func knockdConfig(t *testing.T, tr *Trace) string {
	var steps, trap []string
	for _, s := range tr.Sequence {
		steps = append(steps, fmt.Sprintf("%d:%s", s.Port, s.Transport))
		trap = append(trap, fmt.Sprintf("%d:%s", s.Port-1, s.Transport), fmt.Sprintf("%d:%[2]s", s.Port+1, s.Transport))
	}
	slices.Reverse(trap)
	// knockd counts in whole seconds, from the first knock to the last.
	each, err := strconv.Atoi(tr.setting(t, "KnockTimeout"))
	must(t, err)
	timeout := strconv.Itoa(each * (len(tr.Sequence) - 1))
	return strings.NewReplacer("STEPS", strings.Join(steps, ","), "TRAP", strings.Join(trap, ","),
		"TIMEOUT", timeout, "OPENFOR", tr.setting(t, "OpenFor")).Replace(`[ssh]
	sequence = STEPS
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

// TestTracesPassOnMinimalRules plays the traces against the smallest possible rules. The
// traces must not require anything that only our own rules do. One sweep is enough to
// show this.
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
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestParseTraceErrors(t *testing.T) {
	t.Parallel()
	const seq = "sequence 1/udp 2/tcp\n"
	for text, want := range map[string]string{
		"":                            "x: no sequence",
		seq + "client":                "x:2: client needs arguments",
		seq + "clinet open":           `x:2: unknown keyword or host "clinet"`,
		seq + "client+0 open":         `x:2: address number "0" is not from 1 to 59999`,
		seq + "client knock 3":        `x:2: unknown knock "3": the sequence has 2 knocks`,
		"client knock 1\n" + seq:      `x:1: unknown knock "1": the sequence has 0 knocks`,
		seq + "client dance":          `x:2: unknown action "dance"`,
		seq + "client sweep tcp up":   "x:2: sweep needs tcp or udp, and ascending, descending or random",
		seq + "client open 22":        "x:2: open does not take arguments",
		seq + "\n# c\non pf":          `x:4: unknown firewall "pf"`,
		seq + "wait 2h":               "x:2: wait needs one duration above 0 and up to 1m0s",
		seq + "client send 99999/tcp": "x:2: knock 1 of 1: not a port from 1 to 65535",
	} {
		if _, err := ParseTrace("x", text); err == nil || err.Error() != want {
			t.Errorf("%q: error %v, want %s", text, err, want)
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
				t.Errorf("%q: an action neither waits nor has a verb: %+v", text, a)
			}
		}
	})
}

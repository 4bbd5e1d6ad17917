package importer

import (
	"path"
	"slices"
	"strings"
)

// effect is what a shell command does to a firewall.
type effect struct {
	opens, closes  bool     // whether the command opens or closes ports
	opened, closed []string // ports that are found in the command, such as "22/tcp" or "6000-6007/udp"
	stays          bool     // the command adds a rule that does not expire
}

// onlyCloses reports whether the command closes ports and opens none.
func (e effect) onlyCloses() bool { return e.closes && !e.opens }

// commandEffect returns the effect of a line that sh runs. It knows iptables, nft, ufw and the
// script that comes with knockd. Any other command has no effect.
func commandEffect(line string) (e effect) {
	for _, words := range shellCommands(line) {
		e.addCommand(words)
	}
	return e
}

// shellCommands splits a line into commands, and these into words without their quotes. It
// expands nothing, so "$PORT" remains a word that is not a port. It returns nil if a quote
// does not end.
func shellCommands(line string) (commands [][]string) {
	var words []string
	var word strings.Builder
	inWord, quote := false, byte(0)
	endWord := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	endCommand := func() {
		endWord()
		if words != nil {
			commands = append(commands, words)
		}
		words = nil
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, inWord = c, true
		case c == '\\' && quote != '\'' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			inWord = true
		case quote == 0 && (c == ' ' || c == '\t'):
			endWord()
		case quote == 0 && strings.IndexByte(";&|()", c) >= 0:
			endCommand()
		case quote == 0 && c == '#' && !inWord:
			i = len(line) // a comment
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil
	}
	endCommand()
	return commands
}

// shellPrefixes are words that may stand before the name of a program.
var shellPrefixes = []string{"sudo", "env", "exec", "nice", "if", "then", "else", "do", "!", "{"}

// addCommand adds the effect of one command.
func (e *effect) addCommand(words []string) {
	for i, w := range words {
		name, args := path.Base(w), words[i+1:]
		switch {
		case strings.HasPrefix(name, "iptables") || strings.HasPrefix(name, "ip6tables"):
			e.addOptions(args, iptablesOptions)
		case name == "knock_add" || name == "knock_helper_ipt.sh":
			e.addOptions(args, knockAddOptions)
		case name == "nft":
			e.addNft(strings.Join(args, " "))
		case name == "ufw":
			e.addUfw(args)
		case name == "sh" || name == "bash" || name == "dash":
			if c := slices.Index(args, "-c"); c >= 0 && c+1 < len(args) {
				for _, inner := range shellCommands(args[c+1]) {
					e.addCommand(inner)
				}
			}
		case slices.Contains(shellPrefixes, name) || strings.Contains(w, "=") || i > 0 && strings.HasPrefix(w, "-"):
			continue // the program follows
		}
		return
	}
}

// note adds the effect of a rule that accepts or drops connections to these ports, and that is
// added or removed.
func (e *effect) note(adds, accepts bool, ports []string) {
	if adds != accepts {
		e.closes, e.closed = true, append(e.closed, ports...)
		return
	}
	e.opens = true
	for _, p := range ports {
		if !slices.Contains(e.opened, p) {
			e.opened = append(e.opened, p)
		}
	}
}

// ruleOptions are the options of a program that adds and removes rules.
type ruleOptions struct{ add, remove, protocol, ports, target []string }

var (
	iptablesOptions = ruleOptions{
		add:      []string{"-A", "-I", "--append", "--insert"},
		remove:   []string{"-D", "--delete"},
		protocol: []string{"-p", "--protocol", "--proto"},
		ports:    []string{"--dport", "--dports", "--destination-port", "--destination-ports"},
		target:   []string{"-j", "--jump"},
	}
	// knock_add is the name in knockd.conf of knock_helper_ipt.sh, a script that runs iptables.
	knockAddOptions = ruleOptions{
		add:      []string{"-a", "-i", "--append", "--insert"},
		remove:   []string{"-x", "--delete"},
		protocol: []string{"-p", "--proto"},
		ports:    []string{"-d", "--dstport"},
	}
)

// addOptions adds the effect of iptables, or of a program with similar options.
func (e *effect) addOptions(args []string, o ruleOptions) {
	adds, removes, protocol, ports, target := false, false, "tcp", "", ""
	for i, arg := range args {
		name, text, hasText := strings.Cut(arg, "=")
		if !hasText && i+1 < len(args) {
			text = args[i+1]
		}
		if i > 0 && args[i-1] == "!" {
			text = "!" // all values but one
		}
		switch {
		case slices.Contains(o.add, name):
			adds = true
		case slices.Contains(o.remove, name):
			removes = true
		case slices.Contains(o.protocol, name):
			protocol = text
		case slices.Contains(o.ports, name):
			ports = text
		case slices.Contains(o.target, name):
			target = text
		}
	}
	if target == "LOG" || adds == removes {
		return
	}
	accepts := target != "DROP" && target != "REJECT"
	e.note(adds, accepts, portList(ports, protocol))
	e.stays = e.stays || adds && accepts
}

// addNft adds the effect of commands of nft.
func (e *effect) addNft(text string) {
	text = strings.NewReplacer("{", " { ", "}", " } ", ",", " , ").Replace(text)
	for _, command := range strings.Split(text, ";") {
		words := strings.Fields(command)
		for len(words) > 0 && strings.HasPrefix(words[0], "-") {
			words = words[1:]
		}
		if len(words) < 2 || words[1] != "rule" && words[1] != "element" {
			continue
		}
		adds := slices.Contains([]string{"add", "insert", "create"}, words[0])
		if !adds && words[0] != "delete" && words[0] != "destroy" {
			continue
		}
		accepts := !slices.Contains(words, "drop") && !slices.Contains(words, "reject")
		e.note(adds, accepts, nftPorts(words))
		// To renew an element, a command deletes it first, and may add it for that.
		e.stays = adds && (e.stays || accepts && !slices.Contains(words, "timeout"))
	}
}

// nftPorts returns the destination ports that a rule of nft matches.
func nftPorts(words []string) (ports []string) {
	for i := 2; i < len(words); i++ {
		if protocol := words[i-2]; words[i-1] == "dport" && (protocol == "tcp" || protocol == "udp") {
			list := words[i]
			if end := slices.Index(words[i:], "}"); list == "{" && end > 0 {
				list = strings.Join(words[i+1:i+end], "")
			}
			ports = append(ports, portList(list, protocol)...)
		}
	}
	return ports
}

// addUfw adds the effect of a command of ufw. Without a protocol, a rule of ufw is for TCP and
// UDP.
func (e *effect) addUfw(words []string) {
	if i := slices.Index(words, "comment"); i >= 0 {
		words = words[:i]
	}
	verb := func(word string) bool {
		return slices.Contains([]string{"allow", "limit", "deny", "reject", "delete"}, word)
	}
	if !slices.ContainsFunc(words, verb) {
		return
	}
	adds, accepts, to, protocol, ports := true, true, false, "", ""
	for i, word := range words {
		next := ""
		if i+1 < len(words) {
			next = words[i+1]
		}
		switch word {
		case "delete":
			adds = false
		case "allow", "limit", "deny", "reject":
			accepts = word == "allow" || word == "limit"
			ports = next // the short form, such as "ufw allow 22/tcp"
		case "to", "from":
			to = word == "to"
		case "port":
			if to {
				ports = next
			}
		case "proto":
			protocol = next
		}
	}
	list, inList, _ := strings.Cut(ports, "/")
	e.note(adds, accepts, portList(list, protocol+inList))
	e.stays = e.stays || adds && accepts
}

// services are the names of ports that are common in rules for ssh and the web.
var services = map[string]string{"ssh": "22", "http": "80", "https": "443"}

var (
	portOrRange  = lazy(`^[0-9]+(-[0-9]+)?$`)
	plainTCPPort = lazy(`^[0-9]+/tcp$`)
)

// portList returns the ports in a list such as "22,80" or "6000:6007", with the protocol. If
// protocol is "", the ports are for TCP and UDP. portList returns nil if a part of the list
// is not a port.
func portList(list, protocol string) (ports []string) {
	protocols := []string{protocol}
	if protocol == "" {
		protocols = []string{"tcp", "udp"}
	}
	for _, port := range strings.Split(list, ",") {
		port = strings.ReplaceAll(port, ":", "-")
		if name, ok := services[port]; ok {
			port = name
		}
		for _, p := range protocols {
			if !portOrRange().MatchString(port) || p != "tcp" && p != "udp" {
				return nil
			}
			ports = append(ports, port+"/"+p)
		}
	}
	return ports
}

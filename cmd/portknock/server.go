package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// serverFlags has the flags of the commands that change servers over ssh.
type serverFlags struct {
	sshConfig, via string
	json           bool
}

func (f *serverFlags) flags(all *pflag.FlagSet) {
	all.StringVar(&f.sshConfig, "ssh-config", "", "the configuration `FILE` of ssh; by default, ssh's own")
	all.StringVar(&f.via, "via", "", "reach the server with the knocks of the profile `NAME`")
	all.BoolVar(&f.json, "json", false, "print the results as JSON")
}

// server holds what a command knows about a server.
type server struct {
	*serverFlags
	app     *app
	config  *config
	host    string // as the user gave it: NAME or USER@NAME
	several bool   // the command has several servers, so output needs their names
	profile *profile.Profile
	last    *deployment // what this computer has deployed before; may be nil

	// ownConfig is true if flags say where the profiles are, or change them. The ProxyCommand
	// of the user does not know this.
	ownConfig bool

	ssh     sshSettings
	channel *channel
	facts   facts

	file       string // path of the new script on the server
	part       string // ID of the profile in the script
	present    bool   // the server has rules for the profile already
	foreign    bool   // these rules are not those of the new script
	presentKey string // fingerprint of the key of the installed rules; "" without a key
	// admitsOthers is true if the server may let this computer through for another reason than
	// the new knocks: another profile, or a trusted source.
	admitsOthers bool

	validUntil  time.Time         // when the new rules expire; zero if they do not
	fingerprint string            // fingerprint of the key of the new rules
	knockPorts  []knock.PortRange // ports of all knocks; nil if a sequence does not change, or is one port
	trialEnds   time.Time         // when the trial ends at the latest
	result      result
}

// result is what the flag --json prints of a server.
type result struct {
	Host       string `json:"host"`
	Result     string `json:"result"`
	Format     string `json:"format,omitempty"`
	ID         string `json:"id,omitempty"`
	ValidUntil string `json:"validUntil,omitempty"`
	Login      string `json:"login,omitempty"`
	Silence    string `json:"silence,omitempty"`
	Error      string `json:"error,omitempty"`
	Hint       string `json:"hint,omitempty"`
}

// each calls two functions for each server: prepare, and then change. If parallel is above 1,
// it calls prepare for all servers before it calls change for that many at a time, so that the
// user can answer all questions of ssh and sudo at the start.
func (f *serverFlags) each(ctx context.Context, a *app, c *config, hosts []string, parallel int,
	prepare, change func(context.Context, *server) error) error {
	if c.path == "-" {
		return usageError("ssh cannot read the profile from standard input; name the file with -c")
	}
	ownConfig := c.path != "" || len(c.options) > 0
	names := make([]string, len(hosts))
	for i, host := range hosts {
		names[i] = profileOf(host)
	}
	_, profiles, err := c.profiles(ctx, a, names...)
	if err != nil {
		return err
	}
	var servers []*server
	for i, p := range profiles {
		if slices.ContainsFunc(servers, func(s *server) bool { return s.profile.Name == p.Name }) {
			return usageError("%s is given twice", hosts[i])
		}
		p.Runner.Printed = map[string][]byte{} // commands of several servers may run at the same time
		servers = append(servers, &server{serverFlags: f, app: a, config: c, host: hosts[i], several: len(hosts) > 1,
			ownConfig: ownConfig, profile: p, result: result{Host: hosts[i], Result: notDeployed}})
	}
	errs := make([]error, len(servers))
	step := func(i int, do func(context.Context, *server) error) {
		if errs[i] == nil {
			errs[i] = do(ctx, servers[i])
		}
	}
	open := func(ctx context.Context, s *server) error {
		if err := s.open(ctx, 0); err != nil {
			return err
		}
		return prepare(ctx, s)
	}
	if parallel == 1 {
		for i, s := range servers {
			step(i, open)
			step(i, change)
			s.close()
		}
	} else {
		for i := range servers {
			step(i, open)
		}
		var wait sync.WaitGroup
		free := make(chan bool, parallel)
		for i, s := range servers {
			free <- true
			wait.Go(func() {
				step(i, change)
				s.close()
				<-free
			})
		}
		wait.Wait()
	}
	return f.summary(a, servers, errs)
}

// summary prints the results, and returns the failure of the whole command.
func (f *serverFlags) summary(a *app, servers []*server, errs []error) error {
	var worst *failure
	failed := 0
	for i, s := range servers {
		if errs[i] == nil {
			continue
		}
		failed++
		e := &failure{code: exitNotDeployed, err: errs[i]}
		errors.As(errs[i], &e)
		s.result.Error, s.result.Hint = errs[i].Error(), e.hint
		if len(servers) == 1 {
			worst = &failure{e.code, fmt.Errorf("%s: %w", s.host, errs[i]), e.hint}
			continue
		}
		a.log.say(always, "%s: %s", s.host, errs[i])
		for line := range strings.Lines(e.hint) {
			a.log.say(always, "%s: hint: %s", s.host, line)
		}
		if worst == nil || e.code > worst.code {
			worst = &failure{code: e.code}
		}
	}
	if f.json {
		results := make([]result, len(servers))
		for i, s := range servers {
			results[i] = s.result
		}
		if err := a.printJSON(results); err != nil {
			return err
		}
	}
	if worst == nil {
		return nil
	}
	if worst.err == nil {
		worst.err = fmt.Errorf("%d of %d servers failed", failed, len(servers))
	}
	return worst
}

// say prints a line about the progress.
func (s *server) say(format string, args ...any) {
	if s.json || s.app.log.quiet {
		return
	}
	line := fmt.Sprintf(format, args...)
	if s.several {
		line = fmt.Sprintf("%-12s %s", s.profile.Name, line)
	}
	_ = s.app.print("%s\n", line)
}

// open connects to the server, and becomes root there. It waits at most wait seconds for another
// run that changes the server.
func (s *server) open(ctx context.Context, wait int) (err error) {
	if s.ssh, err = s.readSSHSettings(ctx); err != nil {
		return err
	}
	// ^C also goes to ssh. The shell on the server then ends the trial.
	s.channel, err = openChannel(context.WithoutCancel(ctx), s.sshCommand(s.via, "exec sh"), os.Stderr)
	if err != nil {
		return &failure{exitNotDeployed, fmt.Errorf("no shell on the server: %w", err), s.loginHint()}
	}
	err = s.channel.becomeRoot(ctx, func(ctx context.Context) (string, error) {
		return askPassword(ctx, fmt.Sprintf("Password of sudo on %s: ", s.host))
	})
	if err != nil {
		return &failure{exitNotDeployed, fmt.Errorf("not root on the server: %w", err), ""}
	}
	s.file = "/run/portknock/deploy." + s.channel.nonce
	out, err := s.channel.run(ctx, verbLimit, s.lockScript(wait, madeBy()))
	if by, busy := strings.CutPrefix(out, "busy "); busy && err == nil {
		err = &failure{exitNotDeployed, fmt.Errorf("another deploy to this server is running: %s", by),
			"wait until it has ended, or for two minutes after its connection has ended"}
	}
	if err == nil {
		go s.channel.repeat("touch /run/portknock/deploy.lock 2>/dev/null\n")
	}
	return err
}

// loginHint says what to do if ssh does not log in.
func (s *server) loginHint() string {
	login, other := s.host, ""
	if address := s.address(); address != s.ssh.hostName { // ssh alone does not know the address
		login = strings.TrimSuffix(s.host, profileOf(s.host)) + address
	}
	if s.ssh.user != "" && profileOf(s.host) == s.host {
		other = fmt.Sprintf("\nssh logs in as %s; for another user, write USER@%s", s.ssh.user, s.host)
	}
	return "check that this works: ssh " + login + " true" + other
}

// lockScript returns the first commands for the shell on the server. Another run must not change
// the rules at the same time, so they wait for a lock, which ends with the shell. by names this
// run for the others.
//
// A computer that is cut off may leave a shell that waits for hours, so each run touches its lock.
// A run that finds an old lock ends that shell, and what it has left.
//
// The commands also define the shell functions remove_files, for the end of the shell, and
// find_part, which sets $part to the ID of the profile in the script.
func (s *server) lockScript(wait int, by string) string {
	return fmt.Sprintf(`PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
umask 077
mkdir -p /run/portknock
remove_files() { rm -f %[1]s %[1]s.out; }
find_part() { part=$(sed -n 's/^profiles="$profiles \(.*\)"$/\1/p' %[1]s); }
trap remove_files EXIT
trap 'exit 1' HUP TERM PIPE # so that the trap of EXIT runs
lock=/run/portknock/deploy.lock
exec 8>>$lock
command -v flock >/dev/null || no_lock=none
tries=0
until [ "$no_lock" ] || flock -n 8; do # the flock of busybox cannot wait with a limit
	if [ "$(find $lock -mmin +1)" ]; then
		kill -9 "$(sed -n 2p $lock)" >/dev/null 2>&1
		touch $lock
		sleep 1
		continue
	fi
	tries=$((tries + 1))
	if [ $tries -gt %[2]d ]; then echo "busy $(head -n 1 $lock)"; break; fi
	sleep 1
done
if [ $tries -le %[2]d ]; then
	printf '%%s\n' %[3]s $$ >$lock
	for left in /run/portknock/deploy.*; do
		case $left in *.lock | *.out | *'*') continue ;; esac
		sh "$left" cancel >/dev/null 2>&1 8>&-
		rm -f "$left" "$left.out"
	done
fi`, s.file, wait, serverWord(by))
}

// close ends the connection. The shell on the server removes its files.
func (s *server) close() {
	if s.channel != nil {
		s.channel.close()
		s.channel = nil
	}
}

// verbLimit bounds the time of most commands on a server.
const verbLimit = 2 * time.Minute

// verb runs a verb of the script on the server. The verb continues if the connection ends:
// its output goes to a file, and it has a session of its own. A verb that installs the rules ends
// the time in which the end of the connection ends the trial.
func (s *server) verb(ctx context.Context, verb string) (string, error) {
	keep := ""
	if strings.HasPrefix(verb, "install") {
		keep = "trap remove_files EXIT\n"
	}
	return s.channel.run(ctx, verbLimit, keep+fmt.Sprintf(`session=$(command -v setsid)
$session sh %[1]s %[2]s >%[1]s.out 2>&1 8>&-
status=$?
cat %[1]s.out
(exit $status)`, s.file, verb))
}

// sshSettings are the settings of ssh for a host, as ssh -G prints them.
type sshSettings struct {
	hostName, user                                 string
	port                                           uint16 // 0 if ssh prints none
	proxyCommand, proxyJump                        string
	proxyUseFdpass, connectTimeout, controlPersist string
}

// readSSHSettings asks ssh for its settings.
func (s *server) readSSHSettings(ctx context.Context) (settings sshSettings, err error) {
	args := s.sshArgs("-G")
	c := exec.CommandContext(ctx, args[0], append(args[1:], "--", s.host)...)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return settings, &failure{exitNotDeployed, fmt.Errorf("ssh -G: %w: %s", err, oneLine(strings.TrimSpace(stderr.String()))), ""}
	}
	texts := map[string]*string{"hostname": &settings.hostName, "user": &settings.user, "proxycommand": &settings.proxyCommand,
		"proxyjump": &settings.proxyJump, "proxyusefdpass": &settings.proxyUseFdpass,
		"connecttimeout": &settings.connectTimeout, "controlpersist": &settings.controlPersist}
	for line := range strings.Lines(string(out)) {
		keyword, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if keyword == "port" {
			settings.port, _ = parsePort(value)
		} else if text := texts[keyword]; text != nil && value != "none" {
			*text = value
		}
	}
	return settings, nil
}

func (s *server) sshArgs(flags ...string) []string {
	args := append([]string{"ssh"}, flags...)
	if s.sshConfig != "" {
		args = append(args, "-F", s.sshConfig)
	}
	return args
}

// sshCommand returns the command that runs a command on the server through a new connection.
// If the user's configuration reaches the server in its own way, by a ProxyJump or
// another ProxyCommand, ssh uses it. Otherwise ssh uses this program, with the profile via,
// or with that of the server if via is "".
func (s *server) sshCommand(via, command string) []string {
	return s.sshCommandOver([]string{"-S", "none"}, via, command)
}

// sshCommandOver is sshCommand with more flags. Without "-S none", ssh uses a connection that is
// open already, if the user's configuration has a ControlPath.
func (s *server) sshCommandOver(flags []string, via, command string) []string {
	args := s.sshArgs(append([]string{"-T", "-x", "-a"}, flags...)...)
	for _, option := range []string{"ControlMaster no", "ClearAllForwardings yes", "RemoteCommand none",
		"PermitLocalCommand no", "ServerAliveInterval 5", "ServerAliveCountMax 6"} {
		args = append(args, "-o", option)
	}
	if address := s.address(); address != s.ssh.hostName { // known_hosts may have the key of this address
		args = append(args, "-o", "HostName "+strings.ReplaceAll(address, "%", "%%"))
	}
	if s.direct() && (s.ssh.proxyCommand == "" || via != "" || s.ownConfig) {
		args = append(args, "-o", "ProxyUseFdpass no", "-o", "ProxyCommand "+s.proxyCommand(via))
	}
	return append(args, "--", s.host, command)
}

// direct reports whether ssh connects from this computer. Otherwise it connects from a jump host, so
// that the knocks of this computer do not help.
func (s *server) direct() bool {
	if s.ssh.proxyJump != "" {
		return false
	}
	program, end := strings.TrimPrefix(s.ssh.proxyCommand, "exec "), " "
	if strings.HasPrefix(program, `"`) || strings.HasPrefix(program, "'") { // the path may have spaces
		program, end = program[1:], program[:1]
	}
	program, _, _ = strings.Cut(program, end)
	base := strings.TrimSuffix(filepath.Base(program), ".exe")
	return s.ssh.proxyCommand == "" || base == "portknock"
}

// proxyCommand returns the ProxyCommand that uses this program.
func (s *server) proxyCommand(via string) string {
	program, err := os.Executable()
	if err != nil {
		program = "portknock"
	}
	words := []string{program}
	if s.config.path != "" {
		path, err := filepath.Abs(s.config.path)
		if err == nil {
			words = append(words, "-c", path)
		}
	}
	for _, o := range s.config.options {
		words = append(words, "-o", o)
	}
	return proxyWords(append(words, "--profile", cmp.Or(via, s.profile.Name), "--")...) + " %h %p"
}

// proxyWords quotes words for a ProxyCommand.
func proxyWords(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strings.ReplaceAll(localWord(w), "%", "%%")
	}
	return strings.Join(quoted, " ")
}

// sayNext says how to log in to the server.
func (s *server) sayNext() {
	login := "ssh "
	if s.sshConfig != "" {
		login += "-F " + localWord(s.sshConfig) + " "
	}
	switch {
	case s.ssh.proxyCommand != "" || s.ssh.proxyJump != "": // ssh knows how to reach the server
	case s.sshConfig != "":
		s.say("next      portknock %sssh-config %s >>%s", s.configFlag(), localWord(s.profile.Name), localWord(s.sshConfig))
	default:
		s.say("next      portknock %sssh-config --install --include", s.configFlag())
	}
	s.say("next      %s", login+localWord(s.host))
}

// configFlag returns the flag -c for other commands, "" if they find the profile file without it.
func (s *server) configFlag() string {
	if usual, _ := profile.Find(); usual == s.config.path {
		return ""
	}
	return s.config.pathFlag()
}

// profileOf returns the name of a server without the user.
func profileOf(host string) string { return host[strings.LastIndex(host, "@")+1:] }

// withUsers adds the user of the last deploy to each host without a user. It does not keep the path
// that it finds.
func (c config) withUsers(hosts []string) []string {
	path, err := c.find()
	if err != nil {
		return hosts // reading the profiles returns the same error
	}
	hosts = slices.Clone(hosts)
	for i, host := range hosts {
		// A deployment that cannot be read has no user. The login warns of it.
		if last, _ := loadDeployment(path, host); last != nil && profileOf(last.Server) == host {
			hosts[i] = last.Server
		}
	}
	return hosts
}

// address returns the host at which the server's ports are, as seen from this computer.
func (s *server) address() string {
	// ssh prints a name that its configuration does not change in lower case.
	if strings.EqualFold(s.ssh.hostName, profileOf(s.host)) && s.profile.HostName != "" {
		return s.profile.HostName
	}
	return s.ssh.hostName
}

// serverWord quotes a word for the POSIX shell on the server.
func serverWord(s string) string { return `'` + strings.ReplaceAll(s, `'`, `'\''`) + `'` }

// localWord quotes a word for the shell that runs a ProxyCommand on this computer: a POSIX shell,
// or the command interpreter of Windows.
func localWord(s string) string {
	switch {
	case s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@:=") == "":
		return s
	case runtime.GOOS == "windows":
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return serverWord(s)
}

// madeBy says who makes rules, for the other administrators of a server.
func madeBy() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return oneLine(fmt.Sprintf("%s@%s, %s", name, host, utc(now())))
}

// status is what the verb status --json of a script prints.
type status struct {
	ID       string         `json:"id"`
	Format   string         `json:"format"`
	MadeBy   string         `json:"made_by"`
	Left     *int           `json:"trial_seconds_left"`
	Clock    clockState     `json:"clock_synchronized"`
	Profiles []serverStatus `json:"profiles"`
	Others   []string       `json:"other_profiles"`
}

// readStatus asks a script on the server for its status.
func (s *server) readStatus(ctx context.Context, file string) (*status, error) {
	out, err := s.channel.run(ctx, verbLimit, "sh "+file+" status --json 8>&-")
	if _, failed := errors.AsType[*statusError](err); err != nil && !failed { // status 1 says that rules are missing
		return nil, err
	}
	var st status
	if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Profiles) != 1 {
		return nil, fmt.Errorf("unexpected status of the script: %s", oneLine(out))
	}
	return &st, nil
}

// Command portknock knocks at a closed port and connects to it. It is made for ssh's
// ProxyCommand. It also generates the rules for the server, from the same profile.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portknock/portknock/knock/typo"
	"github.com/spf13/pflag"
)

// The exit codes.
const (
	exitFailed  = 1 // connecting, splicing or writing failed
	exitUsage   = 2 // the command line is wrong
	exitProfile = 3 // the profile or a key is missing or wrong
	exitKnock   = 4 // the knocks could not be sent
	exitClosed  = 5 // the port did not open in time
)

// failure is an error with its exit code and a hint for the user.
type failure struct {
	code int
	err  error  // nil if the output has said what is wrong
	hint string // what the user can do, a step on each line; "" for no hint
}

func (f *failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

func usageError(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...), hint: helpHint}
}

const helpHint = "portknock help" // report adds the name of the command

// app has the state of one run of the program. All commands share it.
type app struct {
	stdin, stdout *os.File
	log           logger
	command       string // name of the command; "" until start sets it
	connecting    string // name of the profile to whose host the command tries to connect; "" before and after
}

// command is a command of portknock, with its flags.
type command interface {
	flags(a *app, f *pflag.FlagSet)
	run(ctx context.Context, a *app, args []string) error
}

// noFlags is for a command without flags.
type noFlags struct{}

func (noFlags) flags(*app, *pflag.FlagSet) {}

// row describes a command, or a group of commands, in the table of commands.
type row struct {
	name          string  // name of the command; two words for a command of a group
	synopsis      string  // flags and operands of the command
	min, max      int     // smallest and largest number of operands
	operandsError string  // error text for any other number of operands
	command       command // nil for a group; the commands of the group follow in the table
	about         string  // description for the help
}

const profileOperandsError = "profile needs list, show HOST, add|remove|rotate NAME, edit or import FILE"

// table returns all commands, with their flags unset. The struct of each command is in
// another file.
func table() []row {
	return []row{
		{"connect", "[FLAGS] HOST PORT", 2, 2, "connect needs HOST and PORT", &connect{},
			"Knock, connect, and join stdin and stdout to the connection."},
		{"knock", "[FLAGS] HOST [PORT]", 1, 2, "knock needs HOST, and PORT is optional", &knockOnly{},
			"Send the knocks. With --wait, keep knocking until PORT answers (default: the\n" +
				"profile's Port, or 22). On a terminal, say how many knocks have left, and to where."},
		{"sequence", "[FLAGS] HOST", 1, 1, "sequence needs one HOST", &sequence{},
			"Print the sequence that a client would send now, and until when it is valid. For Skew\n" +
				"after the start of a window, also print the sequence of the previous window: a client\n" +
				"sends it in every second round. With --as sh, print a script that sends the knocks."},
		{"emit-rules", "[FLAGS] HOST...", 1, math.MaxInt, "emit-rules needs one HOST or more", &emitRules{},
			"Print the server's firewall rules for these profiles. For knockd and fwknop, print the\n" +
				"daemon's configuration. The comment above it has commands to test, load and unload\n" +
				"it. With --script, print a shell script with commands to test, try, keep and install\n" +
				"the rules."},
		{"deploy", "[FLAGS] [USER@]HOST... | --renew --all", 0, math.MaxInt, "", &deploy{},
			"Set up servers over ssh, or change what they have. For each HOST: load the rules of its\n" +
				"profile on trial, prove from here that a new login works, and only then install them.\n" +
				"If anything fails, the server goes back to the rules from before by itself."},
		{"undeploy", "[FLAGS] [USER@]HOST...", 1, math.MaxInt, "undeploy needs one HOST or more", &undeploy{},
			"Remove from servers what deploy has installed there for the profile of each HOST. Their\n" +
				"ports are then open. The rules of other profiles stay."},
		{"check", "[FLAGS] [USER@]HOST [PORT]", 1, 2, "check needs HOST, and PORT is optional", &checkHost{},
			"Say step by step why a login to HOST works, or where it stops. Then name the causes, the\n" +
				"most likely one first, each with a command or a step that confirms or mends it. Without\n" +
				"PORT, use the Port of the profile, or the port of ssh. The exit status is 1 if there is a\n" +
				"cause. Only -vv prints the ports of knocks."},
		{"profile", "list|show|add|edit|remove|rotate|import [FLAGS] [NAME|FILE]", 1, math.MaxInt, profileOperandsError, nil,
			"Print the profiles, or change the profile file. A change keeps comments and order. It is\n" +
				"made completely or not at all, also if portknock is killed, and if several run at once."},
		{"profile list", "[FLAGS]", 0, 0, profileOperandsError, &profileList{},
			"List the profiles with what applies to each, without their secrets. A note tells if ssh's\n" +
				"%h does not find a profile. The note \"pattern\" means that the Host line has only patterns."},
		{"profile show", "[FLAGS] HOST", 1, 1, profileOperandsError, &profileShow{},
			"Print the profile of HOST, with the defaults of settings that it does not set, as a\n" +
				"Host block. The output contains the sequence."},
		{"profile add", "[FLAGS] NAME", 1, 1, profileOperandsError, &profileAdd{},
			"Add a profile with new secrets to the profile file: random knocks, or a key in a new file.\n" +
				"-o adds a setting to the profile. The server gets its rules from: portknock deploy NAME."},
		{"profile edit", "[FLAGS]", 0, 0, profileOperandsError, &profileEdit{},
			"Edit a copy of the profile file with $VISUAL, $EDITOR or vi, check the copy, and only then\n" +
				"replace the profile file."},
		{"profile remove", "[FLAGS] NAME", 1, 1, profileOperandsError, &profileRemove{},
			"Remove the profile from the profile file, with the comment directly above it. Key files\n" +
				"stay. A name that is not the first of its profile is only removed from the Host line."},
		{"profile rotate", "[FLAGS] NAME", 1, 1, profileOperandsError, &profileRotate{},
			"Draw new secrets for a profile that is deployed: other knocks, or a key in a new file. Until\n" +
				"the server has them from portknock deploy NAME, a login tries the old and the new ones. With\n" +
				"--scheme, the profile changes to another scheme, and gets the secrets of that scheme."},
		{"profile import", "[FLAGS] FILE", 1, 1, profileOperandsError, &profileImport{},
			"Import the profiles in the .fwknoprc of fwknop's client, the sections in the knockd.conf of\n" +
				"a server, or the profiles in the portknocker.ini of python_port_knocker. Profiles go to the\n" +
				"profile file, keys to new files beside it. For a knockd.conf, add --host ADDRESS. -o adds a\n" +
				"setting to the profiles, instead of the same setting from FILE."},
		{"ssh-config", "[FLAGS] [NAME...]", 0, math.MaxInt, "", &sshConfig{},
			"Print the lines for ~/.ssh/config with which ssh starts portknock: for each NAME, or for all\n" +
				"profiles and patterns. With --install --include, ssh uses portknock for all profiles from now\n" +
				"on. ssh takes its first setting of each kind, so the lines come first in ~/.ssh/config."},
		{"status", "[FLAGS]", 0, 0, "status takes no operands", &printStatus{},
			"Print all profiles, those with a problem first: the last login or failure, when the server's\n" +
				"rules expire, and what deploy has installed. All of this is what this computer remembers:\n" +
				"status does not ask the servers. It runs no KeyCommand, so it does not see whether the key\n" +
				"of a KeyCommand has changed."},
		{"keygen", "[--from MASTERKEY --host NAME] [FILE]", 0, 1, "keygen needs at most one FILE", &keygen{},
			"Write a new key to FILE, which must not exist; without FILE, print the key. With --from,\n" +
				"do not make a new key: derive the key of the profile NAME from the master key in\n" +
				"MASTERKEY, as DeriveHostKey does. The server of that profile needs only this key."},
		{"version", "", 0, 0, "version takes no operands", &printVersion{}, "Print the version."},
		{"help", "[COMMAND|TOPIC]", 0, math.MaxInt, "", &printHelp{},
			"Print the help of a command or a topic. Without an operand, list all commands and topics."},
	}
}

// find returns the row of a command or a group, nil if the name is unknown.
func find(name string) *row {
	for _, r := range table() {
		if r.name == name {
			return &r
		}
	}
	return nil
}

// members returns the commands of a group.
func (r *row) members() []row {
	return slices.DeleteFunc(table(), func(m row) bool { return !strings.HasPrefix(m.name, r.name+" ") })
}

func main() {
	// A write to a pipe without a reader must return an error and not end the process:
	// a warning without a reader must not prevent the login. SIGPIPE is caught and not
	// ignored, because a KeyCommand inherits an ignored signal, but not a caught one.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	a := &app{stdin: os.Stdin, stdout: os.Stdout}
	ctx, cancel := context.WithCancelCause(context.Background())
	endOnSignals(cancel)
	os.Exit(a.report(ctx, a.main(ctx, os.Args[1:])))
}

// interrupts are the signals of ^C and ^\. By default, Go prints a traceback for ^\.
var interrupts = []os.Signal{os.Interrupt, syscall.SIGQUIT}

// terminations returns the signals with which another program ends portknock. ssh sends SIGHUP
// when its ConnectTimeout expires.
func terminations() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) { // nohup makes the process ignore SIGHUP
		return []os.Signal{syscall.SIGTERM}
	}
	return []os.Signal{syscall.SIGTERM, syscall.SIGHUP}
}

// The causes with which endOnSignals cancels a context.
var (
	errInterrupted = errors.New("interrupted")
	errStopped     = errors.New("stopped by the calling program")
)

// endOnSignals cancels the context of all commands after a signal, so that a KeyCommand ends
// too. The context keeps the first cause.
func endOnSignals(cancel context.CancelCauseFunc) {
	interrupted, stopped := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(interrupted, interrupts...)
	signal.Notify(stopped, terminations()...)
	go func() {
		<-interrupted
		cancel(errInterrupted)
		<-interrupted // a second signal ends even a call that does not watch ctx
		os.Exit(exitFailed)
	}()
	go func() {
		<-stopped
		cancel(errStopped)
		// A shell that ends sends SIGHUP again at once; ignore that for a second. A later
		// signal ends portknock even in a call that does not watch ctx.
		time.Sleep(time.Second)
		signal.Reset(terminations()...)
	}()
}

// await returns what f returns. If ctx ends first, await returns the cause at once and does
// not wait for f: f may still wait for a terminal, or for the other end of a pipe.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	var value T
	var err error
	done := make(chan struct{})
	go func() {
		value, err = f()
		close(done)
	}()
	select {
	case <-done:
		return value, err
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	}
}

// main finds the command that args ask for, and starts it. ssh gives a host and a port, and
// a host may have the name of a command. So two operands are always a host and a port if
// the second is a number.
func (a *app) main(ctx context.Context, args []string) error {
	r := find("connect")
	flags := a.flagSet(r)
	flags.SetInterspersed(false)
	flags.BoolP("version", "V", false, "")
	err := parse(flags, args)
	operands := flags.Args()
	switch {
	case err != nil:
		return usageError("%w", err)
	case flags.Changed("help"):
		return new(printHelp).run(ctx, a, nil)
	case flags.Changed("version"):
		return new(printVersion).run(ctx, a, nil)
	case len(operands) == 2 && isNumber(operands[1]):
		return a.run(ctx, r, operands)
	}
	if r = find(flags.Arg(0)); r == nil {
		return unknownCommand(operands)
	}
	// The flags before the name of the command belong to the command too.
	return a.start(ctx, r, slices.Concat(args[:len(args)-len(operands)], operands[1:]))
}

// start parses the flags and operands in args and runs a command with them. For a command of a group, the
// second word of its name comes before its operands.
func (a *app) start(ctx context.Context, r *row, args []string) error {
	a.command = r.name
	flags := a.flagSet(r)
	err := parse(flags, args)
	switch {
	case err != nil:
		return usageError("%s: %w", r.name, err)
	case flags.Changed("help") && (r.command != nil || flags.NArg() == 0):
		return new(printHelp).run(ctx, a, []string{r.name})
	case r.command == nil:
		return a.startMember(ctx, r, flags, args)
	}
	return a.run(ctx, r, flags.Args()[strings.Count(r.name, " "):])
}

// run runs a command whose flags are parsed. For a login, main has parsed the flags and
// calls run directly, so that they are not parsed twice.
func (a *app) run(ctx context.Context, r *row, operands []string) error {
	a.command = r.name
	err := a.log.open(ctx)
	if c, ok := r.command.(interface{ check() error }); ok && err == nil {
		err = c.check()
	}
	if err != nil {
		return err
	}
	if len(operands) < r.min || len(operands) > r.max {
		return usageError("%s", r.operandsError)
	}
	return r.command.run(ctx, a, operands)
}

// startMember starts the command of a group that the first operand names. The flag set all
// has the flags of the whole group and has parsed args.
func (a *app) startMember(ctx context.Context, group *row, all *pflag.FlagSet, args []string) (err error) {
	name := all.Arg(0)
	r := find(group.name + " " + name)
	if r == nil {
		if guess := typo.Hint(name, names(group.name+" ")...); guess != "" {
			return usageError("unknown command \"%s %s\"%s", group.name, name, guess)
		}
		return usageError("%s", group.operandsError)
	}
	all.Visit(func(f *pflag.Flag) {
		var takers []string
		for _, m := range group.members() {
			if a.flagSet(&m).Lookup(f.Name) != nil {
				takers = append(takers, strings.TrimPrefix(m.name, group.name+" "))
			}
		}
		if !slices.Contains(takers, name) {
			err = usageError("-%s is for %s %s", cmp.Or(f.Shorthand, "-"+f.Name), group.name, strings.Join(takers, " and "))
		}
	})
	if err != nil {
		return err
	}
	return a.start(ctx, r, args)
}

// unknownCommand returns the error for operands without a known command. Its hint guesses
// what the user meant.
func unknownCommand(operands []string) error {
	if len(operands) == 0 || len(operands) == 1 && operands[0] == "" {
		return usageError("no host given")
	}
	name := operands[0]
	guess := typo.Hint(name, names("")...)
	switch {
	case len(operands) == 1:
		return &failure{exitUsage, fmt.Errorf("unknown command %q%s", name, cmp.Or(guess, "; to connect to a host, add a port")),
			fmt.Sprintf("portknock %[1]s 22, or portknock knock %[1]s", name)}
	case len(operands) == 2 && guess == "":
		return &failure{exitUsage, fmt.Errorf("unknown command %q, and %q is not a port number to connect to", name, operands[1]),
			"portknock HOST PORT, or portknock help"}
	}
	return usageError("unknown command %q%s", name, guess)
}

// names returns the names of all commands that begin with a prefix, without the prefix: "" for
// the commands and groups, and the name of a group and a space for the commands of the group.
func names(prefix string) (all []string) {
	for _, r := range table() {
		if name, ok := strings.CutPrefix(r.name, prefix); ok && !strings.Contains(name, " ") {
			all = append(all, name)
		}
	}
	return all
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// flagSet returns the flags of a command, or those of all commands of a group.
func (a *app) flagSet(r *row) *pflag.FlagSet {
	f := pflag.NewFlagSet("portknock", pflag.ContinueOnError)
	f.SortFlags = false
	f.BoolP("help", "h", false, "")
	f.Lookup("help").Hidden = true
	if r.command != nil {
		r.command.flags(a, f)
	}
	for _, m := range r.members() {
		f.AddFlagSet(a.flagSet(&m))
	}
	return f
}

// parse reads flags. A flag with an empty value is an error, because the value is a variable
// that is not set, as in --output "$FILE". If portknock went on without the value, it would
// do something other than the user asked for. Only --log-file may be empty, which turns the
// log off.
func parse(f *pflag.FlagSet, args []string) error {
	err := f.ParseAll(args, func(flag *pflag.Flag, value string) error {
		if value == "" && slices.Contains([]string{"string", "list"}, flag.Value.Type()) && flag.Name != "log-file" {
			return fmt.Errorf("--%s needs a value", flag.Name)
		}
		return f.Set(flag.Name, value)
	})
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok && unknown.GetSpecifiedShortnames() == "" {
		var known []string
		f.VisitAll(func(flag *pflag.Flag) { known = append(known, "--"+flag.Name) })
		return fmt.Errorf("%w%s", err, typo.Hint("--"+unknown.GetSpecifiedName(), known...))
	}
	return err
}

// report writes why the command failed to stderr and the log. It returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	interrupted := context.Cause(ctx) == errInterrupted
	if interrupted {
		err = errInterrupted // not an error that followed from it
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == os.Stdout.Name() && errors.Is(e, syscall.EPIPE) {
		return exitFailed // a reader such as head(1) has read all that it needs
	}
	f := &failure{code: exitFailed, err: err}
	errors.As(err, &f)
	if f.err == nil {
		return f.code
	}
	if !a.log.opened { // the flags were not read to their end, so -q does not count
		a.log.quiet = false
		_ = a.log.open(ctx) // report only err, not a second error
	}
	if f.hint == helpHint {
		f.hint = strings.TrimSpace(helpHint + " " + a.command)
	}
	last := lastFailure{Time: now().UTC(), Code: f.code, Text: oneLine(err.Error())}
	a.log.say(always, "%s", last.Text)
	for line := range strings.Lines(f.hint) {
		a.log.say(always, "hint: %s", line)
		last.Hint += oneLine(line) + "\n"
	}
	if a.connecting != "" && !interrupted { // ^C is not a failure of the host
		_ = last.save(a.connecting)
	}
	return f.code
}

// oneLine returns a text on one line, without characters that change how a terminal works or
// looks. A text from the user, another program or a library can have such characters.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' || r == '\t' }), " ")
	quoted := strconv.Quote(s)
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(quoted[1 : len(quoted)-1])
}

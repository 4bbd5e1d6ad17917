package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/portknock/portknock/knock/typo"
)

const usage = `Usage: portknock [FLAGS] HOST PORT           knock, connect, join stdin and stdout
       portknock connect [FLAGS] HOST PORT   the same
       portknock knock [FLAGS] HOST [PORT]   only send the knocks
       portknock sequence [FLAGS] HOST       print what a client would send now
       portknock check [FLAGS] HOST [PORT]   say why a login works, or where it stops
       portknock deploy [FLAGS] HOST...      set up a server over ssh, or change it
       portknock undeploy [FLAGS] HOST...    remove that from the server
       portknock emit-rules [FLAGS] HOST...  print the rules for the server
       portknock status                      print all profiles and what is wrong with them
       portknock profile add NAME            add a profile with new secrets
       portknock profile rotate NAME         draw new secrets for a profile
       portknock profile edit                edit the profile file, with a check
       portknock profile remove NAME         remove a profile
       portknock profile list|show           print what the profile file contains
       portknock profile import FILE         import profiles from fwknop's .fwknoprc
       portknock keygen [FILE]               make a new key (not for Scheme static)
       portknock version | help [COMMAND]

Common flags ("portknock help COMMAND" lists those of a command):
  -c, --config FILE         the profile file; - is standard input
  -o, --option KEYWORD=VALUE
                            a setting that overrides the file
      --profile NAME        use the profile NAME, not the one that matches HOST
  -4, -6                    IPv4 only, IPv6 only
  -F, --fdpass              pass the connected socket to ssh and exit, for
                            ProxyUseFdpass yes
  -v, -vv                   print what happens; -vv also prints the knocks
  -q, --quiet               print nothing, not even errors
      --log-file FILE       write a log to the end of FILE (or set PORTKNOCK_LOG=FILE)

Exit status: 0 done, 1 connecting or writing failed, 2 wrong usage, 3 the profile or the
key is missing or wrong, 4 the knocks could not be sent, 5 the port did not open in time,
6 not deployed: the server has the rules from before, 7 nobody knows which rules the
server has.

Example, in ~/.ssh/config:
  Host vps
      HostName 203.0.113.7
      ProxyCommand portknock %h %p
and in ~/.config/portknock/config (mode 0600):
  Host vps
      HostName 203.0.113.7
      Sequence 41380/udp 5917/tcp 23046/udp`

// printHelp is the command that prints the usage text, or the help of one command.
type printHelp struct{ noFlags }

func (*printHelp) run(_ context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return a.print("%s\n", usage)
	}
	r := find(strings.Join(args, " "))
	if r == nil {
		name := strings.Join(args, " ")
		return usageError("there is no help for %q%s", name, typo.Hint(name, names("")...))
	}
	text := strings.TrimSpace("Usage: portknock "+r.name+" "+r.synopsis) + "\n" + r.about + "\n"
	for _, m := range r.members() {
		text += "\nportknock " + m.name + " " + m.synopsis + "\n" + m.about + "\n"
	}
	if flags := a.flagSet(r).FlagUsages(); flags != "" && r.command != nil {
		text += "\n" + flags
	}
	return a.print("%s", text)
}

// version is the version of a release. The linker sets it; it is "" in any other build.
var version string

// printVersion is the command that prints the version.
type printVersion struct{ noFlags }

func (*printVersion) run(_ context.Context, a *app, _ []string) error {
	return a.print("portknock %s %s/%s %s\n", programVersion(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// programVersion returns the version of this program.
func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}

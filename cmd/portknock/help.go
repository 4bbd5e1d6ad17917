package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"strings"
)

const usage = `Usage: portknock [FLAGS] HOST PORT           knock, connect, join stdin and stdout
       portknock connect [FLAGS] HOST PORT   the same
       portknock knock [FLAGS] HOST [PORT]   knock only
       portknock sequence [FLAGS] HOST       what would be sent
       portknock emit-rules [FLAGS] HOST...  the rules for the server
       portknock profile list|show           what the profile file says
       portknock profile import FILE         take over fwknop's .fwknoprc
       portknock keygen [FILE]               a new key, for a scheme that takes one
       portknock version | help [COMMAND]

Flags of most commands ("portknock help COMMAND" lists them all):
  -c, --config FILE         the profile file; - is standard input
  -o, --option KEY=VALUE    a setting before those of the file, as in ssh
      --profile NAME        the profile, if HOST does not name it
  -4, -6                    IPv4 only, IPv6 only
  -F, --fdpass              hand ssh the connected socket and leave, for
                            ProxyUseFdpass yes
  -v, -vv                   say what happens; -vv also what is sent
  -q, --quiet               say nothing, not even why it failed
      --log-file FILE       say it to FILE too (or set PORTKNOCK_LOG)

Exit status: 0 done, 1 connecting or writing failed, 2 usage, 3 profile, 4 the
knocks could not be sent, 5 the port did not open.

Example, in ~/.ssh/config:
  Host vps
      HostName 203.0.113.7
      ProxyCommand portknock %h %p
and in ~/.config/portknock/config (mode 0600):
  Host vps
      HostName 203.0.113.7
      Sequence 7000/udp 8000/tcp 9000/udp`

// printHelp prints the usage text, or the page of one command.
type printHelp struct{ noFlags }

func (*printHelp) run(_ context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return a.print("%s\n", usage)
	}
	r := find(strings.Join(args, " "))
	if r == nil {
		return usageError("there is no help on %q", strings.Join(args, " "))
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

// version is set when a release is linked.
var version string

type printVersion struct{ noFlags }

func (*printVersion) run(_ context.Context, a *app, _ []string) error {
	v := version
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	return a.print("portknock %s %s/%s %s\n", v, runtime.GOOS, runtime.GOARCH, runtime.Version())
}

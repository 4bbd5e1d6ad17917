package main

import (
	"context"
	"embed"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/portknock/portknock/knock/typo"
)

const usage = `Usage: portknock [FLAGS] HOST PORT           knock, connect, join stdin and stdout

From nothing to a login:
  portknock profile add --ssh-config --host 203.0.113.7 vps
  portknock deploy vps
  ssh vps

Profiles and keys, on this computer:
  profile add NAME       make a profile with random knocks, or with a key
  profile edit | remove NAME | rotate NAME
                         change the file; remove a profile; replace its knocks or key
  profile list | show NAME
                         print what the profile file contains
  profile import FILE    import profiles from the file of another program
  ssh-config [NAME...]   print the lines for ~/.ssh/config
  keygen [FILE]          make a new key (not for Scheme static)
  status                 print all profiles and what is wrong with them

Servers:
  deploy HOST...         set up a server over ssh, or change it
  undeploy HOST...       remove that from the server
  emit-rules HOST...     print the rules for the server

Connections:
  connect HOST PORT      the same as portknock HOST PORT
  check HOST [PORT]      say why a login works, or where it stops
  knock HOST [PORT]      only send the knocks
  sequence HOST          print what a client would send now

  version | help [COMMAND|TOPIC]

Topics ("portknock help TOPIC"):
  config                 the profile file, with all keywords
  schemes                what is sent: static, rotating, token, md5-hourly, fwknop
  server                 deploy, the server's rules and how to change them, firewalls
  ssh                    ~/.ssh/config, jump hosts, mosh, programs other than ssh
  trouble                a login fails: check, logs, exit status

Common flags ("portknock help COMMAND" lists those of a command):
  -c, --config FILE      the profile file; - is standard input
  -o, --option KEYWORD=VALUE
                         a setting that overrides the file
      --profile NAME     use the profile NAME, not the one that matches HOST
  -4, -6                 IPv4 only, IPv6 only
  -F, --fdpass           pass the connected socket to ssh and exit, for
                         ProxyUseFdpass yes
  -v, -vv                print what happens; -vv also prints the knocks
  -q, --quiet            print nothing, not even errors
      --log-file FILE    write a log to the end of FILE (or set PORTKNOCK_LOG=FILE)

Exit status: 0 done, 1 connecting or writing failed, 2 wrong usage, 3 the profile or the
key is missing or wrong, 4 the knocks could not be sent, 5 the port did not open in time,
6 not deployed: the server has the rules from before, 7 nobody knows which rules the
server has.`

// topicFiles has the text of each topic of the help. A text has one form, so that it can also
// become a manual page. See TestTopicsHaveOneForm.
//
//go:embed help/*.txt
var topicFiles embed.FS

// topic returns the text of a topic, or "" if there is no such topic.
func topic(name string) string {
	text, _ := topicFiles.ReadFile("help/" + name + ".txt")
	return string(text)
}

// topics returns the names of all topics.
func topics() (names []string) {
	files, _ := topicFiles.ReadDir("help")
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".txt"))
	}
	return names
}

// topicOf has the topic that tells more about a command or a group.
var topicOf = map[string]string{
	"connect": "ssh", "knock": "ssh", "ssh-config": "ssh",
	"profile": "config", "sequence": "schemes", "keygen": "schemes",
	"deploy": "server", "undeploy": "server", "emit-rules": "server",
	"check": "trouble", "status": "trouble",
}

// printHelp is the command that prints the usage text, or the help of one command or topic.
type printHelp struct{ noFlags }

func (*printHelp) run(_ context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return a.print("%s\n", usage)
	}
	name := strings.Join(args, " ")
	r := find(name)
	switch {
	case r == nil && topic(name) != "":
		return a.print("%s", topic(name))
	case r == nil:
		return usageError("there is no help for %q%s", name, typo.Hint(name, append(names(""), topics()...)...))
	}
	text := strings.TrimSpace("Usage: portknock "+r.name+" "+r.synopsis) + "\n" + r.about + "\n"
	for _, m := range r.members() {
		text += "\nportknock " + m.name + " " + m.synopsis + "\n" + m.about + "\n"
	}
	if flags := a.flagSet(r).FlagUsages(); flags != "" && r.command != nil {
		text += "\n" + flags
	}
	group, _, _ := strings.Cut(r.name, " ")
	if more := topicOf[group]; more != "" {
		text += "\nMore: portknock help " + more + "\n"
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

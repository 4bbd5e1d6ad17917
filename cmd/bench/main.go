// Command bench measures portknock and the programs that people use today, in one run on
// one machine. It measures how soon the SSH banner arrives, on a good link and on bad
// links, and what a connection costs. bench needs Linux and root, because it creates
// network namespaces and emulates the links.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

const usage = `Usage: go run ./cmd/bench [flags]

Measure portknock and comparable programs in one run. bench needs Linux and root.

  -n, --runs N         run each contestant N times in each cell (default 30)
      --only REGEXP    measure only the names that match, such as ^clean/ or
                       portknock$. The names are LINK/SERVER/CONTESTANT,
                       stream/DIRECTION/CONTESTANT, start, keystroke, loaded,
                       stalled, crowd, rules, strangers, guesses and size
      --quick          smoke test: one run, small transfers, few connections
      --output PATH    write PATH.json and PATH.md; if PATH is a folder, write
                       bench.json and bench.md into it
      --portknock FILE measure this program instead of building one

Example: go run ./cmd/bench --runs 200 --output report
`

// options holds the flags of the command line.
type options struct {
	runs      int
	quick     bool
	only      *regexp.Regexp // nil selects everything
	output    string
	portknock string
}

// wants reports whether --only selects name.
func (o *options) wants(name string) bool { return o.only == nil || o.only.MatchString(name) }

// errHelp means that main must print the usage.
var errHelp = errors.New("help")

func parse(args []string) (*options, error) {
	o := &options{}
	var only string
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.IntVarP(&o.runs, "runs", "n", 30, "")
	f.StringVar(&only, "only", "", "")
	f.BoolVar(&o.quick, "quick", false, "")
	f.StringVar(&o.output, "output", "", "")
	f.StringVar(&o.portknock, "portknock", "", "")
	switch err := f.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return nil, errHelp
	case err != nil:
		return nil, err
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.runs < 1:
		return nil, errors.New("--runs must be at least 1")
	}
	if only != "" {
		var err error
		if o.only, err = regexp.Compile(only); err != nil {
			return nil, fmt.Errorf("--only: %w", err)
		}
	}
	if o.quick && !f.Changed("runs") {
		o.runs = 1
	}
	return o, nil
}

// limit is the time that the whole program may take.
func (o *options) limit() time.Duration {
	return 10 * time.Minute * time.Duration(max(30, o.runs)) / 30
}

func main() {
	runLabHost()
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, errHelp):
		fmt.Print(usage)
		return
	case err != nil:
		printError("%v", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit(), fmt.Errorf("not finished after %v", o.limit()))
	err = run(ctx, o, os.Stdout)
	cancel()
	stop()
	if err != nil {
		printError("%v", err)
		os.Exit(1)
	}
}

func printError(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// run measures, prints the tables, and writes the files of --output.
func run(ctx context.Context, o *options, out io.Writer) error {
	r, err := measure(ctx, o)
	if err != nil {
		return err
	}
	if err := r.print(out); err != nil {
		return err
	}
	if o.output == "" {
		return nil
	}
	return r.write(o.output)
}

// write writes the report as path.json and path.md. If path is a folder, the files are
// bench.json and bench.md in that folder.
func (r *Report) write(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "bench")
	}
	for suffix, print := range map[string]func(io.Writer) error{".json": r.printJSON, ".md": r.printMarkdown} {
		f, err := os.Create(path + suffix)
		if err != nil {
			return err
		}
		err = print(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

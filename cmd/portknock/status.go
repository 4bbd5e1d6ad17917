package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/portknock/portknock/knock/profile"
)

// printStatus is the command that prints what this computer knows of each profile: the last logins,
// and what the server has. It asks no server, and runs no KeyCommand.
type printStatus struct{ printFlags }

// profileStatus is what status prints of a profile.
type profileStatus struct {
	Name        string       `json:"name"`
	Scheme      string       `json:"scheme,omitempty"` // "" if the profile file does not have the profile
	Problems    []problem    `json:"problems"`         // the most urgent first
	LastSuccess time.Time    `json:"lastSuccess,omitzero"`
	LastFailure *lastFailure `json:"lastFailure,omitempty"`
	ValidUntil  time.Time    `json:"validUntil,omitzero"` // when the server's rules expire, as far as this computer knows
	Deployed    *deployment  `json:"deployed,omitempty"`
}

// problem is a reason why a login fails, or may fail soon.
type problem struct {
	ID   problemID `json:"id"`
	Text string    `json:"text"`
}

// problemID is the name of a problem.
type problemID string

const (
	problemExpired    problemID = "expired"    // the server's rules have expired
	problemFailed     problemID = "failed"     // the last attempt to connect has failed
	problemUnreadable problemID = "unreadable" // the profile, its key or its deployment cannot be used
	problemChanged    problemID = "changed"    // the profile has changed since it was deployed
	problemExpiring   problemID = "expiring"   // the server's rules expire soon
	problemRemoved    problemID = "removed"    // the profile file no longer has a deployed profile
)

// urgency has the problems, the most urgent first.
var urgency = []problemID{problemExpired, problemFailed, problemUnreadable, problemChanged, problemExpiring, problemRemoved}

// rank returns the urgency of a profile's first problem. Without a problem, it is the least urgent
// rank.
func (s *profileStatus) rank() int {
	if len(s.Problems) == 0 {
		return len(urgency)
	}
	return slices.Index(urgency, s.Problems[0].ID)
}

func (s *profileStatus) add(id problemID, format string, args ...any) {
	s.Problems = append(s.Problems, problem{id, oneLine(fmt.Sprintf(format, args...))})
}

// addError adds that a file cannot be used.
func (s *profileStatus) addError(err error) {
	text := err.Error()
	if f, ok := errors.AsType[*failure](err); ok && f.hint != "" {
		text += "; " + f.hint
	}
	s.add(problemUnreadable, "%s", text)
}

func (c *printStatus) run(ctx context.Context, a *app, args []string) error {
	file, err := c.file(ctx, a)
	if err != nil {
		return err
	}
	all, err := c.all(ctx, file)
	if err != nil {
		return err
	}
	if c.json {
		return a.printJSON(all)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "NAME\tSTATE\tLAST LOGIN (UTC)\tVALID UNTIL\tDEPLOYED\tFORMAT\tSERVER\tVERSION\n")
	for _, s := range all {
		s.printRow(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	lines := ""
	for _, s := range all {
		for _, p := range s.Problems {
			lines += s.Name + ": " + p.Text + "\n"
		}
	}
	if lines == "" {
		return nil
	}
	return a.print("\n%s", lines)
}

// all returns the status of each profile with a name in the file, and of each other profile
// that has a deployment. Profiles with problems come first.
func (c *printStatus) all(ctx context.Context, file *profile.File) ([]*profileStatus, error) {
	all, known := []*profileStatus{}, map[string]bool{}
	add := func(name string) {
		p, err := file.Lookup(name, c.settings...)
		if err == nil {
			name = p.Name
		}
		if !known[fileName(name)] && !errors.Is(err, profile.ErrNoProfile) {
			known[fileName(name)] = true
			all = append(all, newStatus(ctx, c.path, name, p, err))
		}
	}
	for _, e := range file.Entries() {
		for _, pattern := range e.Patterns {
			if isName(pattern) {
				add(pattern)
			}
		}
	}
	files, err := deploymentFiles(c.path)
	if err != nil {
		return nil, &failure{code: exitProfile, err: err}
	}
	for _, path := range files {
		f := filepath.Base(path)
		d, err := loadDeployedFile(c.path, path, "")
		switch {
		case known[f]:
		case err != nil:
			s := &profileStatus{Name: f}
			s.addError(err)
			all = append(all, s)
		case d != nil:
			// A profile may have no entry any more. The user may have copied a file.
			if add(d.profile.Name); !known[f] && fileName(d.profile.Name) == f {
				all = append(all, newStatus(ctx, c.path, d.profile.Name, nil, nil))
			}
		}
	}
	slices.SortStableFunc(all, func(s, t *profileStatus) int {
		return cmp.Or(cmp.Compare(s.rank(), t.rank()), strings.Compare(s.Name, t.Name))
	})
	return all, nil
}

// newStatus returns the status of a profile. If the profile file has it no longer, p and err
// are nil. If it cannot be used, err says why.
func newStatus(ctx context.Context, config, name string, p *profile.Profile, err error) *profileStatus {
	s := &profileStatus{Name: name, Problems: []problem{}}
	if err != nil {
		s.addError(err)
	}
	state := loadState(name)
	s.LastSuccess = state.LastSuccess
	if !state.LastFailure.Time.IsZero() {
		s.LastFailure = &state.LastFailure
	}
	if state.hasFailed() {
		s.add(problemFailed, "the login at %s failed with exit code %d: %s", utc(state.LastFailure.Time),
			state.LastFailure.Code, strings.TrimPrefix(state.LastFailure.Text, name+": "))
	}
	d, err := loadDeployment(config, name)
	if err != nil {
		s.addError(err)
	}
	if d != nil {
		s.Deployed, s.ValidUntil = d, d.profile.ValidUntil
	}
	switch {
	case p != nil:
		s.Scheme = p.Scheme
		p.ValidUntil = cmp.Or(p.ValidUntil, s.ValidUntil)
		s.ValidUntil = p.ValidUntil
		s.compare(ctx, p, d)
	case d != nil:
		s.add(problemRemoved, "deployed to %s, but not in the profile file; run: portknock undeploy %s", d.Server, name)
		p = d.profile
	}
	if p != nil {
		if text := expiryText(p, d); text != "" {
			id := problemExpiring
			if !p.ValidUntil.After(now()) {
				id = problemExpired
			}
			s.add(id, "%s", text)
		}
	}
	slices.SortStableFunc(s.Problems, func(a, b problem) int {
		return cmp.Compare(slices.Index(urgency, a.ID), slices.Index(urgency, b.ID))
	})
	return s
}

// compare adds a problem if the knocks of a profile and of its deployment differ, or if a key
// cannot be read. The deployment may be nil. A KeyCommand may ask the user, so profiles with a
// KeyCommand are not compared.
func (s *profileStatus) compare(ctx context.Context, p *profile.Profile, d *deployment) {
	if len(p.KeyCommand) > 0 || d != nil && len(d.profile.KeyCommand) > 0 {
		return
	}
	server, err := p.Server(ctx)
	if err != nil {
		s.add(problemUnreadable, "the key cannot be read: %v", err)
	}
	if err != nil || d == nil {
		return
	}
	switch deployed, err := d.profile.Server(ctx); {
	case err != nil:
		s.add(problemUnreadable, "the deployed key cannot be read: %v"+deployAdvice+"%s", err, s.Name)
	case deployed.Fingerprint != d.Fingerprint:
		s.add(problemUnreadable, "%s: not the key that was deployed"+deployAdvice+"%s", d.profile.KeyFile, s.Name)
	case !sameKnocks(p, d.profile, server, deployed):
		s.add(problemChanged, "the profile has changed since it was deployed"+deployAdvice+"%s", s.Name)
	}
}

// printRow writes the row of a profile.
func (s *profileStatus) printRow(w *tabwriter.Writer) {
	var state []string
	for _, p := range s.Problems {
		state = append(state, string(p.ID))
	}
	if len(state) == 0 && (s.Deployed != nil || !s.LastSuccess.IsZero()) {
		state = []string{"ok"}
	}
	d := cmp.Or(s.Deployed, &deployment{})
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, cmp.Or(strings.Join(state, ","), "-"), date(s.LastSuccess, "2006-01-02 15:04"),
		date(s.ValidUntil, time.DateOnly), date(d.Time, time.DateOnly), cmp.Or(d.Format, "-"), cmp.Or(d.Server, "-"), cmp.Or(d.Version, "-"))
}

// date returns a time in UTC, or "-" for the zero time.
func date(t time.Time, layout string) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(layout)
}

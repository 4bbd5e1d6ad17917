package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dependencies lists the modules that the command may be linked with. The README's table
// gives the reason for each module.
var dependencies = []string{
	"github.com/adrg/xdg",
	"github.com/kevinburke/ssh_config",
	"github.com/portknock/portknock",
	"github.com/spf13/pflag",
	"golang.org/x/sys",
	"golang.org/x/term",
}

// TestCommandLinksOnlyListedModules checks the modules of the command on every system.
func TestCommandLinksOnlyListedModules(t *testing.T) {
	needGo(t)
	for _, system := range []string{"linux", "darwin", "windows", "freebsd", "openbsd"} {
		c := exec.Command("go", "list", "-buildvcs=false", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")
		c.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		var stderr strings.Builder
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.String())
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		for _, module := range slices.Compact(got) {
			if !slices.Contains(dependencies, module) {
				t.Errorf("%s: the command is linked with %s, which is not in dependencies", system, module)
			}
		}
	}
}

// TestPackagesImportOnlyAllowedPackages checks which packages of this module may import which
// others.
func TestPackagesImportOnlyAllowedPackages(t *testing.T) {
	const ours = "github.com/portknock/portknock/"
	allowed := map[string][]string{
		"knock":          nil,
		"proxy":          nil,
		"knock/spa":      {"knock"},
		"knock/secret":   nil,
		"knock/typo":     nil,
		"knock/profile":  {"knock/typo", "knock", "knock/spa", "knock/secret"},
		"knock/importer": {"knock/profile"},
		"knock/rules":    {"knock/typo", "knock", "knock/spa"},
		"cmd/portknock":  {"knock/typo", "knock", "knock/importer", "knock/profile", "knock/rules", "knock/secret", "knock/spa", "proxy"},
	}
	for dir, mayImport := range allowed {
		for _, imported := range imports(t, filepath.Join("..", "..", filepath.FromSlash(dir))) {
			if name, isOurs := strings.CutPrefix(imported, ours); isOurs && !slices.Contains(mayImport, name) {
				t.Errorf("%s imports %s, which is not allowed", dir, name)
			}
		}
	}
}

// TestOnlyHalvesImportsProfileAndRules: only halves.go turns a profile into a Dialer or a Guard.
func TestOnlyHalvesImportsProfileAndRules(t *testing.T) {
	for _, file := range goFiles(t, ".") {
		got := fileImports(t, file)
		rules, profile := false, false
		for _, i := range got {
			rules = rules || strings.HasSuffix(i, "/knock/rules")
			profile = profile || strings.HasSuffix(i, "/knock/profile")
		}
		if rules && profile && filepath.Base(file) != "halves.go" {
			t.Errorf("%s imports both knock/profile and knock/rules; only halves.go may", file)
		}
	}
}

// TestEachPackageHasOnePackageComment: each package describes its purpose in exactly one file.
func TestEachPackageHasOnePackageComment(t *testing.T) {
	err := filepath.WalkDir(filepath.Join("..", ".."), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); name == "testdata" || strings.HasPrefix(name, ".") && name != ".." {
			return filepath.SkipDir
		}
		files := goFiles(t, path)
		comments := 0
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				return err
			}
			if f.Doc != nil {
				comments++
			}
		}
		if len(files) > 0 && comments != 1 {
			t.Errorf("%s has %d package comments, want 1", path, comments)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goFiles returns the Go files of a folder except tests.
func goFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}

func imports(t *testing.T, dir string) (all []string) {
	t.Helper()
	files := goFiles(t, dir)
	if len(files) == 0 {
		t.Fatalf("no code in %s", dir)
	}
	for _, file := range files {
		all = append(all, fileImports(t, file)...)
	}
	return all
}

func fileImports(t *testing.T, file string) (all []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		all = append(all, strings.Trim(i.Path.Value, `"`))
	}
	return all
}

// TestStrippedBinaryIsSmall: users copy the binary to machines with little storage.
func TestStrippedBinaryIsSmall(t *testing.T) {
	needGo(t)
	const maxSize = 6_000_000 // bytes
	file := filepath.Join(t.TempDir(), "portknock")
	c := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", file, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", info.Size())
	if info.Size() > maxSize {
		t.Errorf("the stripped binary has %d bytes, more than %d", info.Size(), maxSize)
	}
}

// needGo skips a test on a machine without Go, to which the tests have been copied.
func needGo(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
}

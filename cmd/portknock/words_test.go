package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/rules"
	"github.com/spf13/pflag"
)

// libraries are the folders of the packages that other modules can import.
var libraries = []string{"knock", "knock/importer", "knock/profile", "knock/rules", "knock/secret", "knock/spa", "proxy"}

// eachFile calls f for each Go file in a folder except tests.
func eachFile(t *testing.T, dir string, f func(name string, set *token.FileSet, file *ast.File)) {
	t.Helper()
	for _, name := range goFiles(t, filepath.Join("..", "..", filepath.FromSlash(dir))) {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		f(name, set, file)
	}
}

// compared returns the string literals that a file compares with something, with ==, != or a
// case of a switch. The map's values are the strings without quotes.
func compared(file *ast.File) map[*ast.BasicLit]string {
	found := map[*ast.BasicLit]string{}
	note := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				found[lit], _ = strconv.Unquote(lit.Value)
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if n.Op == token.EQL || n.Op == token.NEQ {
				note(n.X, n.Y)
			}
		case *ast.CaseClause:
			note(n.List...)
		}
		return true
	})
	return found
}

// TestOnlyProfileComparesSchemeNames: knock/profile has everything that differs from scheme
// to scheme. No other package compares a string with a scheme's name.
func TestOnlyProfileComparesSchemeNames(t *testing.T) {
	_, err := profile.ParseSetting("-o", "Scheme=?")
	_, names, ok := strings.Cut(err.Error(), "the schemes are ")
	if !ok {
		t.Fatalf("the error does not list the schemes: %v", err)
	}
	schemes := strings.Split(names, ", ")
	for _, dir := range append(slices.Clone(libraries), "cmd/portknock") {
		if dir == "knock/profile" {
			continue
		}
		eachFile(t, dir, func(name string, set *token.FileSet, file *ast.File) {
			for lit, text := range compared(file) {
				if slices.Contains(schemes, text) {
					t.Errorf("%v: compares a string with the scheme %q; only knock/profile may", set.Position(lit.Pos()), text)
				}
			}
		})
	}
}

// TestOnlyFormatFilesCompareFormatNames: only the table of formats, and the files whose names
// begin with a format's name, compare a string with that name.
func TestOnlyFormatFilesCompareFormatNames(t *testing.T) {
	for _, dir := range []string{"knock/rules", "cmd/portknock"} {
		eachFile(t, dir, func(name string, set *token.FileSet, file *ast.File) {
			base := filepath.Base(name)
			for lit, text := range compared(file) {
				if slices.Contains(rules.Formats(), rules.Format(text)) && base != "format.go" && !strings.HasPrefix(base, text) {
					t.Errorf("%v: compares a string with the format %q; only format.go and the format's file may", set.Position(lit.Pos()), text)
				}
			}
		})
	}
}

// TestLibrariesDoNotNameFlags: a program that uses a library does not have portknock's flags.
// So errors and doc comments of the libraries do not name flags. Text that is emitted for a
// server may name flags.
func TestLibrariesDoNotNameFlags(t *testing.T) {
	var names []string
	for _, r := range table() {
		new(app).flagSet(&r).VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	}
	slices.Sort(names)
	flag := regexp.MustCompile(`(^|[\s"'(])(--(` + strings.Join(slices.Compact(names), "|") + `)\b|-[coqvF46]\s)`)
	for _, dir := range libraries {
		eachFile(t, dir, func(name string, set *token.FileSet, file *ast.File) {
			check := func(pos token.Pos, text string) {
				if found := flag.FindString(text); found != "" {
					t.Errorf("%v: the text of a library names the flag %q", set.Position(pos), strings.TrimSpace(found))
				}
			}
			if file.Doc != nil {
				check(file.Doc.Pos(), file.Doc.Text())
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					check(n.Pos(), n.Doc.Text())
				case *ast.GenDecl:
					check(n.Pos(), n.Doc.Text())
				case *ast.Field:
					check(n.Pos(), n.Doc.Text()+n.Comment.Text())
				case *ast.ValueSpec:
					check(n.Pos(), n.Doc.Text()+n.Comment.Text())
				case *ast.CallExpr:
					called := ""
					switch f := n.Fun.(type) {
					case *ast.Ident:
						called = f.Name
					case *ast.SelectorExpr:
						called = f.Sel.Name
					}
					if !slices.Contains([]string{"New", "Errorf", "refuse", "warn", "leaveOut", "fault"}, called) {
						break
					}
					for _, arg := range n.Args {
						if lit, ok := arg.(*ast.BasicLit); ok && lit.Kind == token.STRING {
							check(lit.Pos(), lit.Value)
						}
					}
				}
				return true
			})
		})
	}
}

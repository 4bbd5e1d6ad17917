package importer

import (
	"errors"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock/profile"
)

// converted returns what a file becomes: the Host blocks, the error, and the warnings.
func converted(program, file string, o Options) string {
	imports, warnings, err := Convert(program, "f", []byte(file), o)
	var b strings.Builder
	for _, i := range imports {
		b.Write(i.Block)
	}
	if err != nil {
		b.WriteString(err.Error() + "\n")
	}
	for _, w := range warnings {
		b.WriteString(w + "\n")
	}
	return b.String()
}

// expectConverted checks what a file becomes.
func expectConverted(t *testing.T, program, file string, o Options, want string) {
	t.Helper()
	if got := converted(program, file, o); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRecognize(t *testing.T) {
	for name, tt := range map[string]struct{ file, want string }{
		"fwknop":                     {"# sequence = 1\n\n[default]\n\n[h]\nSPA_SERVER 192.0.2.1\nKEY: x=y\n", "fwknop"},
		"knockd":                     {debianKnockd, "knockd"},
		"knockd with an alias":       {"[x]\ncommand=KEY x\n", "knockd"},
		"knockd with options only":   {"[options]\n\tUseSyslog\n", "knockd"},
		"portknocker":                {"[DEFAULT]\ninterval: 500\n", "portknocker"},
		"portknocker in upper case":  {"[a]\n  IPADDR=192.0.2.1\r\n", "portknocker"},
		"one good line":              {"[vps]\nSPA_SERVER=192.0.2.1\nKEY x\n", "fwknop"},
		"empty":                      {"", "f: unknown kind"},
		"titles only":                {"[vps]\n[options]\n", "f: unknown kind"},
		"a profile file":             {"Host vps\n    HostName 192.0.2.1\n    Sequence 7000 8000\n", "f: unknown kind"},
		"access.conf of fwknopd":     {"SOURCE ANY\n", "f: unknown kind"},
		"/etc/default/knockd":        {"START_KNOCKD=1\nKNOCKD_OPTS=\"-i eth1\"\n", "f: unknown kind"},
		"another INI file":           {"[Unit]\nDescription = x\nports=\n", "portknocker"},
		"lines of two programs":      {"[a]\nipaddr = 192.0.2.1\nports = 1:TCP\nsequence = 7000\n", "f:4: unknown kind"},
		"binary":                     {"\x7fELF\x00\x01", "f: unknown kind"},
		"fwknop variable with equal": {"[a]\nKEY = x\n", "f: unknown kind"},
	} {
		got, err := Recognize("f", []byte(tt.file))
		if errors.Is(err, ErrUnclear) {
			got = err.Error()
		}
		if got == "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, tt.want)
		}
	}
}

func TestRecognizeNamesFilesAndLines(t *testing.T) {
	for file, want := range map[string]string{
		"":                               "f: unknown kind of file; expected a .fwknoprc, knockd.conf or portknocker.ini",
		"ports = 1\n\nsequence = 7000\n": "f:3: unknown kind of file: this line is for knockd, but line 1 for portknocker",
	} {
		if _, err := Recognize("f", []byte(file)); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestConvertChecksOptions: Convert returns an error for options that do not fit the file.
func TestConvertChecksOptions(t *testing.T) {
	for _, tt := range []struct {
		program, file string
		options       Options
		want          string
	}{
		{"knokd", "", Options{}, `unknown program "knokd"; the programs are fwknop, knockd, portknocker`},
		{"knockd", debianKnockd, Options{}, "f: the file does not contain the address of the server"},
		{"fwknop", plain, Options{Host: "x"}, "f: a .fwknoprc contains the addresses of its servers, so no other can be given"},
		{"portknocker", homeINI, Options{Host: "x"}, "f: a portknocker.ini contains the addresses of its servers, so no other can be given"},
		{"portknocker", homeINI + "[b]\nipaddr=192.0.2.2\ninterval=1\nports=1:tcp\n", Options{Name: "x"},
			"f: 2 profiles cannot all have the name x; choose one by its name in the file"},
	} {
		imports, _, err := Convert(tt.program, "f", []byte(tt.file), tt.options)
		if err == nil || err.Error() != tt.want || imports != nil {
			t.Errorf("%s: got %v, want %s", tt.program, err, tt.want)
		}
		if errors.Is(err, ErrNoHost) != (tt.program == "knockd") {
			t.Errorf("%s: ErrNoHost does not match", tt.program)
		}
	}
}

// TestNameOption: the profile of a chosen stanza gets another name, and so do its key files.
func TestNameOption(t *testing.T) {
	imports, _, err := Convert("fwknop", "f", []byte(plain), Options{Section: "h", Name: "vps"})
	if err != nil || imports[0].Name != "vps" || !strings.Contains(string(imports[0].Block), "Host vps\n") || imports[0].Keys[0].File != "vps.key" {
		t.Errorf("got %+v, %v", imports, err)
	}
}

// checkImports checks what must be true for the imports of every file.
func checkImports(t *testing.T, data []byte, imports []Import, warnings []string, err error) {
	t.Helper()
	if (err == nil) != (len(imports) > 0) {
		t.Fatalf("%d imports and the error %v", len(imports), err)
	}
	for _, i := range imports {
		f, err := profile.Parse("config", i.Block)
		if err != nil {
			t.Fatalf("%v in\n%s", err, i.Block)
		}
		p, err := f.Lookup(i.Name)
		if err != nil || p.HostName == "" || len(p.Sequence) == 0 {
			t.Fatalf("profile %+v, error %v in\n%s", p, err, i.Block)
		}
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("the error has several lines: %v", err)
	}
	for _, w := range warnings {
		if !strings.HasPrefix(w, "f:") {
			t.Errorf("the warning has no place: %s", w)
		}
	}
}

func FuzzRecognize(f *testing.F) {
	for _, file := range []string{plain, debianKnockd, homeINI} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if program, err := Recognize("f", data); (program == "") != errors.Is(err, ErrUnclear) {
			t.Errorf("got %q, %v", program, err)
		}
	})
}

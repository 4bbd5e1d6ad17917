package lab

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func addrPort(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// recorder is a test that records how it ends.
type recorder struct {
	testing.TB
	skipped, failed string // messages of Skipf and Fatalf
}

func (r *recorder) Helper() {}
func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
}

func TestRequireNamesAllMissingPrograms(t *testing.T) {
	for mode, want := range map[string]recorder{
		"":        {skipped: "the lab needs no-such-a, no-such-b"},
		"require": {failed: "the lab needs no-such-a, no-such-b, and PORTKNOCK_LAB=require"},
	} {
		t.Setenv("PORTKNOCK_LAB", mode)
		if os.Geteuid() != 0 {
			t.Skip("without root, the message would also name root")
		}
		r := recorder{}
		Require(&r, "sh", "no-such-a", "ls", "no-such-b")
		if r != want {
			t.Errorf("PORTKNOCK_LAB=%s: Require recorded %+v", mode, r)
		}
	}
}

func TestEditFileFailsWithoutChange(t *testing.T) {
	t.Parallel()
	file := File(t, "file", "a b")
	EditFile(t, file, "a", "c")
	if got := ReadFile(t, file); got != "c b\n" {
		t.Errorf("the edited file is %q", got)
	}
	r := recorder{}
	if EditFile(&r, file, "z", "c"); r.failed == "" {
		t.Error("an edit without a change did not fail the test")
	}
}

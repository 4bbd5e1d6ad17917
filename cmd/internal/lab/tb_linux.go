package lab

// TB is what the lab asks of a test: any testing.TB will do, and so will a
// program that measures, which is none.
type TB interface {
	Helper()
	Cleanup(func())
	TempDir() string
	Failed() bool
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	// These do not return.
	FailNow()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

package lab

// TB has the methods of a test that the lab uses. Every testing.TB has them. A program
// that measures can implement them too.
type TB interface {
	Helper()
	Cleanup(func())
	TempDir() string
	Failed() bool
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	// FailNow, Fatal, Fatalf and Skipf do not return.
	FailNow()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

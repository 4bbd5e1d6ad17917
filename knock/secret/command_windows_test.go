package secret

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain makes the test's program the commands of the tests below.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 {
		os.Exit(m.Run())
	}
	address := os.Args[2]
	switch os.Args[1] {
	case "echo": // until the test closes the connection
		conn, err := net.Dial("tcp", address)
		if err != nil {
			os.Exit(1)
		}
		io.Copy(conn, conn)
	case "agent", "hang": // start a process, and print a key or hang
		if err := exec.Command(os.Args[0], "echo", address).Start(); err != nil {
			os.Exit(1)
		}
		if os.Args[1] == "hang" {
			time.Sleep(time.Minute)
		}
		fmt.Println("key")
	case "run": // run the command that hangs
		Runner{}.Run(context.Background(), []string{os.Args[0], "hang", address}, "a key")
	}
}

// listen returns the address to which the command echo connects, and a function that waits
// for the connection.
func listen(t *testing.T) (address string, accept func() net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String(), func() net.Conn {
		t.Helper()
		l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
}

// wantEnd fails the test if the process at the other end of conn goes on.
func wantEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := conn.Read(make([]byte, 1))
	if timeout, ok := err.(net.Error); err == nil || ok && timeout.Timeout() {
		t.Errorf("the process that the command has started goes on: %v", err)
	}
}

func TestHangingCommandIsKilledWithChildren(t *testing.T) {
	address, accept := listen(t)
	_, err := Runner{Limit: 3 * time.Second}.Run(t.Context(), []string{os.Args[0], "hang", address}, "a key")
	if err == nil || err.Error() != "did not print a key within 3s" {
		t.Errorf("got the error %v", err)
	}
	wantEnd(t, accept())
}

// TestCommandEndsWithThisProcess: another process runs the command, and is killed.
func TestCommandEndsWithThisProcess(t *testing.T) {
	address, accept := listen(t)
	c := exec.Command(os.Args[0], "run", address)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	conn := accept()
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	wantEnd(t, conn)
}

// TestAgentOutlivesItsCommand: a process goes on if the command that has started it ends by
// itself.
func TestAgentOutlivesItsCommand(t *testing.T) {
	address, accept := listen(t)
	text, err := Runner{}.Run(t.Context(), []string{os.Args[0], "agent", address}, "a key")
	if string(text) != "key" || err != nil {
		t.Fatalf("got %q, error %v", text, err)
	}
	conn := accept()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("the agent has ended: %v", err)
	}
}

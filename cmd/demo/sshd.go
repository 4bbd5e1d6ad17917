package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"

	"golang.org/x/crypto/ssh"
)

// The server answers every command with these two texts. It does not run the command.
const (
	greeting = "Hello from behind a closed port."
	farewell = "This session is still open, although the port is closed again."
)

// sshServer sends the greeting at once, and the farewell when finish is closed.
type sshServer struct {
	config ssh.ServerConfig
	finish <-chan struct{}
}

// newSSHServer returns a server with one host key that accepts one client key.
func newSSHServer(hostKey ssh.Signer, client ssh.PublicKey, finish <-chan struct{}) *sshServer {
	s := &sshServer{finish: finish}
	s.config.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), client.Marshal()) {
			return nil, errors.New("this is not the key of the demo")
		}
		return nil, nil
	}
	s.config.AddHostKey(hostKey)
	return s
}

// newKey returns a new key, and a signer that uses the key.
func newKey() (ed25519.PrivateKey, ssh.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromKey(key)
	return key, signer, err
}

// serve speaks SSH on c until the client disconnects or ctx is done. It closes c.
func (s *sshServer) serve(ctx context.Context, c net.Conn) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	conn, channels, requests, err := ssh.NewServerConn(c, &s.config)
	if err != nil {
		return // not reported here: the demo's own client reports its errors
	}
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		if ch.ChannelType() != "session" {
			ch.Reject(ssh.UnknownChannelType, "only sessions are supported")
			continue
		}
		session, requests, err := ch.Accept()
		if err != nil {
			return
		}
		go s.session(ctx, session, requests)
	}
	conn.Wait()
}

func (s *sshServer) session(ctx context.Context, session ssh.Channel, requests <-chan *ssh.Request) {
	defer session.Close()
	for r := range requests {
		if r.Type != "exec" {
			r.Reply(r.Type == "env", nil)
			continue
		}
		r.Reply(true, nil)
		go ssh.DiscardRequests(requests)
		io.WriteString(session, greeting+"\n")
		select {
		case <-s.finish:
		case <-ctx.Done():
			return
		}
		io.WriteString(session, farewell+"\n")
		session.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{0}))
		return
	}
}

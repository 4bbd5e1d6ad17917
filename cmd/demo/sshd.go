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

// What the server has to say, whatever command it is given: it runs nothing.
const (
	greeting = "Hello from behind a closed port."
	farewell = "Still here: a session outlives the opening."
)

// sshServer greets, and takes its leave when goOn is closed.
type sshServer struct {
	config ssh.ServerConfig
	goOn   <-chan struct{}
}

// newSSHServer returns a server that shows one key and accepts one.
func newSSHServer(hostKey ssh.Signer, client ssh.PublicKey, goOn <-chan struct{}) *sshServer {
	s := &sshServer{goOn: goOn}
	s.config.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), client.Marshal()) {
			return nil, errors.New("not the key of this demo")
		}
		return nil, nil
	}
	s.config.AddHostKey(hostKey)
	return s
}

// newKey returns a fresh key, as itself and as what signs with it.
func newKey() (ed25519.PrivateKey, ssh.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromKey(key)
	return key, signer, err
}

// serve speaks SSH until the client leaves or ctx is done.
func (s *sshServer) serve(ctx context.Context, c net.Conn) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	conn, channels, requests, err := ssh.NewServerConn(c, &s.config)
	if err != nil {
		return // some other client: ours says itself what is wrong
	}
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		if ch.ChannelType() != "session" {
			ch.Reject(ssh.UnknownChannelType, "only sessions here")
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
		case <-s.goOn:
		case <-ctx.Done():
			return
		}
		io.WriteString(session, farewell+"\n")
		session.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{0}))
		return
	}
}

package proxy_test

import (
	"context"
	"log"
	"net/netip"
	"os"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/proxy"
)

// The example is a client for a server whose sequence changes every hour.
func Example() {
	key, err := knock.ParseKey(os.Getenv("KNOCK_KEY"))
	if err != nil {
		log.Fatal(err)
	}
	ports := knock.PortRange{Transport: knock.UDP, First: 20000, Last: 59999}
	client := knock.Client{
		Schedule:     knock.Rotating{Key: key, Ports: ports, Knocks: 5, Period: time.Hour},
		Skew:         2 * time.Minute,
		KnockTimeout: 5 * time.Second,
	}
	d := proxy.Dialer{
		Source:  knock.Source,
		Timeout: 9 * time.Second,
		Knock: func(ctx context.Context, from, to netip.Addr, n int) (proxy.Sent, error) {
			r, err := client.Round(time.Now(), from, to, n)
			if err != nil {
				return proxy.Sent{}, err
			}
			return proxy.Sent{}, knock.Sender{From: from}.Send(ctx, to, r.Send, r.Pause)
		},
	}
	conn, err := d.Connect(context.Background(), "vps.example", 22)
	if err != nil {
		log.Fatal(err)
	}
	if err := proxy.Splice(context.Background(), conn, os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

package knock_test

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/portknock/portknock/knock"
)

// A Client tells what to send in a round.
func ExampleClient() {
	key, err := knock.ParseKey("portknock-key-1:aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri")
	if err != nil {
		log.Fatal(err)
	}
	client := knock.Client{
		Schedule: knock.Rotating{
			Key: key, Ports: knock.PortRange{Transport: knock.UDP, First: 20000, Last: 59999}, Knocks: 3, Period: time.Hour,
		},
		Skew: 2 * time.Minute,
	}
	now := time.Date(2026, 11, 20, 23, 30, 0, 0, time.UTC)
	from, to := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")
	round, err := client.Round(now, from, to, 0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(round.Send), "knocks, the first by", round.Send[0].Transport)
	// Output: 3 knocks, the first by udp
}

// A Sender sends the knocks of a sequence in order.
func ExampleSender() {
	sequence, err := knock.ParseSequence("7001/udp 8003/tcp 9005/udp")
	if err != nil {
		log.Fatal(err)
	}
	to := netip.MustParseAddr("127.0.0.1")
	if err := (knock.Sender{}).Send(context.Background(), to, sequence, time.Millisecond); err != nil {
		log.Fatal(err)
	}
	fmt.Println("sent")
	// Output: sent
}

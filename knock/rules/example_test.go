package rules_test

import (
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// A guard goes in, and the rules come out as text.
func ExampleFormat_Emit() {
	sequence, err := knock.ParseSequence("7001/udp 8003/tcp 9005/udp")
	if err != nil {
		log.Fatal(err)
	}
	guard := rules.Guard{
		Name:         "vps",
		Schedule:     sequence,
		OpenPorts:    []knock.PortRange{{Transport: knock.TCP, First: 22, Last: 22}},
		OpenFor:      30 * time.Second,
		KnockTimeout: 5 * time.Second,
	}
	var text strings.Builder
	if err := rules.Format("nftables").Emit(&text, []rules.Guard{guard}, rules.Options{}); err != nil {
		log.Fatal(err)
	}
	first, _, _ := strings.Cut(text.String(), "\n")
	fmt.Println(first)
	// Output: # portknock: guards 22/tcp for vps
}

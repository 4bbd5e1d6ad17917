package profile_test

import (
	"fmt"
	"log"

	"github.com/portknock/portknock/knock/profile"
)

// A profile file has a block for each host and the syntax of ssh_config.
func ExampleParse() {
	file, err := profile.Parse("config", []byte("Host vps\n    HostName 203.0.113.7\n    Sequence 7001/udp 8003/tcp\n"))
	if err != nil {
		log.Fatal(err)
	}
	p, err := file.Lookup("vps")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.HostName, p.Scheme, p.Sequence)
	// Output: 203.0.113.7 static 7001/udp 8003/tcp
}

// Package lab gives tests real hosts on a real network: a client, a server and
// an attacker, with real firewalls, sshd and knockd. It needs Linux and root;
// without them a test that asks for a host is skipped, or fails if
// PORTKNOCK_LAB is "require".
//
// A host is the test binary executed once more, in network, PID and mount
// namespaces of its own with a private /run. It lives until its standard input
// ends, so that the kernel cleans up whatever way the test ends, kill -9
// included. The TestMain of a package that uses the lab calls [Main] first.
//
// # Order on the wire
//
// Nothing here sleeps to find out that a packet did not come. A virtual link
// hands packets over on the processor that sends them, first in, first out, so
// an ARP probe sent after a packet is answered after everything that packet
// causes in the kernels along the way, and no rule of a firewall sees it. Raw
// packets therefore leave from one processor, and a [Capture] is complete as
// soon as the probes it sent from every processor are answered.
//
// # A long way
//
// [LinkWAN] joins two hosts by an emulated wide-area link instead, for which no
// kernel module is needed: late, lossy, out of order. There the order above
// does not hold.
package lab

// Package lab gives tests real hosts on a real network: a client, a server and
// an attacker, with real firewalls, sshd and knockd. The lab needs Linux and root.
// If they are missing, a test that asks for a host is skipped, or fails if
// PORTKNOCK_LAB is "require".
//
// A host is another process that runs the test binary, in network, PID, UTS and
// mount namespaces of its own, with a private /run. The host ends when its
// standard input ends. The kernel therefore cleans up however the test ends, even
// by kill -9. The TestMain of a package that uses the lab calls [Main] first.
//
// # Order on the wire
//
// The lab never sleeps to find out that a packet did not arrive. A virtual link
// delivers a packet on the processor that sent the packet, first in, first out.
// An ARP probe that is sent after a packet is therefore answered after everything
// that the packet causes in the kernels along the way. No firewall rule sees the
// ARP probe. To keep this order, all raw packets leave from one processor. A
// [Capture] sends a probe from every processor, and is complete as soon as all
// probes are answered.
//
// # Wide-area links
//
// [LinkWAN] joins two hosts by an emulated wide-area link instead, which delays,
// loses and reorders packets. The link needs the TUN driver, but no kernel module
// that emulates a network. The order above does not hold on such a link.
//
// # Machines
//
// A [Machine] is a Debian server that boots. systemd runs in a container of
// systemd-nspawn, inside a host of the lab, so that the kernel cleans up here too.
// Each boot has a new host with a new network. The disk is an overlay in memory over
// an image, and a host that lives as long as the test holds it. mmdebstrap makes the
// image of each release once, in /var/cache/portknock-lab. A machine shares the
// kernel of the computer that runs the test, with its clock and its modules.
//
// Tests with a machine are skipped unless PORTKNOCK_LAB_BOOT is 1.
package lab

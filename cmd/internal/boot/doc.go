// Package boot tests the built command and the emitted rules on Debian machines that
// boot, reboot and lose their power. A file tests what its name says, without
// _linux_test.go:
//
//	daemon      installed scripts for knockd and fwknopd
//	deploy      deploys: logins, other firewalls, formats, interruptions, several servers
//	firewall    rules that the firewall's own service loads at boot
//	quickstart  a user who has nothing but an ssh login follows the outputs, to the end
//	recipes     the recipes for Ansible and cloud-init in testdata
//	recording   the picture of the quick start in testdata, which .ci/record makes
//
// Other files help the tests: main (builds the command), terminal (types at a shell).
//
// The tests run only if the environment variable PORTKNOCK_LAB_BOOT is 1, because they
// download a Debian to make the machines' images. .ci/full sets the variable.
package boot

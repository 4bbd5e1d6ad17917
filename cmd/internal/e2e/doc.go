// Package e2e tests the built command against real firewalls, daemons and clients,
// on hosts of the lab.
package e2e

// Package importer converts files of other programs into profiles. Each program has
// its own Go file.
//
// An importer accepts only lines that mean what they seem to mean. For a line that the
// other program reads differently from how a person reads it, the importer returns an
// error. The error names the line and the expected form. Without this error, a user would
// find out much later that a profile does not open the ports, or asks for something else.
package importer

// Import is a profile made from another program's file.
type Import struct {
	Name  string // host that the profile is for
	Block []byte // Host block of the profile, for [profile.Insert]
	Keys  []Key  // keys that Block refers to
}

// Key is a key that an [Import] refers to, as a KeyFile or an HMACKeyFile.
type Key struct {
	File string // name of the key file, in the folder of the profile file
	Text []byte // text of the key file
}

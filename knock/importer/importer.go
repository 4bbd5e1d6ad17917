// Package importer makes profiles out of the files of other programs, one Go file
// for each program.
//
// An importer takes the plain form of a file. It refuses what the other program
// reads in another way than a person does, with the place and the plain way to
// write it: a profile that opens nothing, or asks for something else, would be
// found out much later.
package importer

// Import is one profile out of another program's file.
type Import struct {
	Name  string // the host that the profile is for
	Block []byte // its Host block, for [profile.Insert]
	Keys  []Key  // the keys that the block refers to
}

// Key is a key that an [Import] refers to, as a KeyFile or an HMACKeyFile.
type Key struct {
	File string // the name of its file, in the folder of the profile file
	Text []byte // what to write into the file
}

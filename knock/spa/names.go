package spa

import (
	"fmt"
	"slices"
	"strings"
)

// named is the constraint for types whose values have names.
type named interface {
	Mode | Digest | Via

	// names returns the names of all values of the type, in the order of the values.
	names() []string
}

func nameOf[T named](v T) string {
	if names := v.names(); int(v) < len(names) {
		return names[v]
	}
	return "unknown"
}

// Parse reads the name of a [Mode], a [Digest] or a [Via] in upper or lower case. Parse
// also reads the name of a hash function as fwknop writes it, such as "SHA3_256".
func Parse[T named](s string) (T, error) {
	names := T(0).names()
	same := func(name string) bool { return strings.EqualFold(name, strings.ReplaceAll(s, "_", "-")) }
	if i := slices.IndexFunc(names, same); i >= 0 {
		return T(i), nil
	}
	return 0, fmt.Errorf("%q is not %s", s, choice(names))
}

// choice returns the names as an error lists them. Up to three names become a text such
// as "udp, tcp or http". A longer list begins with "one of".
func choice(names []string) string {
	if last := len(names) - 1; last < 3 {
		return strings.Join(names[:last], ", ") + " or " + names[last]
	}
	return "one of " + strings.Join(names, ", ")
}

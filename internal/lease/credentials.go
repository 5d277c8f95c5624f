package lease

import (
	"strings"

	"github.com/lessor-dev/lessor/internal/store"
)

// Credentials yields the names of the rows of all dynamic leases whose credential is not confirmed gone, in no order.
func Credentials(v store.View, yield func(row string)) error {
	for row, err := range v.Scan(store.Due, dueDynamic, store.PrefixEnd(dueDynamic)) {
		if err != nil {
			return err
		}
		if name, ok := CredentialDue(row.Name); ok {
			yield(name)
		}
	}
	for row, err := range v.Scan(store.LeaseIdx, queuePrefix, store.PrefixEnd(queuePrefix)) {
		if err != nil {
			return err
		}
		if _, _, name, ok := parseQueue(row.Name); ok {
			yield(name)
		}
	}
	return nil
}

// CredentialDue tells, of the name of a row of store.Due, which dynamic lease it is about: the name of that lease's row. A
// dynamic lease has such a row from the commit that puts it until it is ended.
func CredentialDue(name string) (row string, ok bool) {
	rest, ok := strings.CutPrefix(name, dueDynamic)
	if !ok || len(rest) < 8 {
		return "", false
	}
	return rest[8:], true
}

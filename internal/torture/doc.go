// Package torture is a test: three lessor nodes, processes of their own, over a PostgreSQL primary with a synchronous standby, and a
// real target database, under 32 clients, while processes are killed and paused, the standby takes over, links are cut, slow
// or silent, disks fill and clocks are wrong.
//
// What the clients saw is a history, checked for linearizability object by object (model_test.go). What must hold besides is checked
// when all is healed and quiet (after_test.go): nothing acknowledged is lost, nothing took effect without its record, the chain verifies, no credential
// outlived its lease by more than a stated bound, no account is left without a lease.
//
// "go test" runs it for half a minute. "make torture" runs it for an hour, or as LESSOR_TORTURE says; its faults, and what the
// clients choose to do, follow from the seed, which it prints.
package torture

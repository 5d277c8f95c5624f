package session

// Verification is what verifying the audit chain found.
type Verification struct {
	OK       bool    `json:"ok"`
	First    uint64  `json:"first_seq"` // commits
	Last     uint64  `json:"last_seq"`
	Records  uint64  `json:"records"`
	HeadHash string  `json:"head_hash"`
	Broken   *Broken `json:"broken,omitempty"` // the first record that does not fit
}

// Broken names a record that does not fit the chain, and why.
type Broken struct {
	Seq    uint64 `json:"seq"`
	Index  uint64 `json:"index"`
	Reason string `json:"reason"`
}

// PrintVerification tells what was found; a broken chain ends the program with code 2.
func (a *Session) PrintVerification(found Verification) error {
	err := a.Print(found, func() error {
		if found.OK {
			return a.Say("The chain holds: commits %d to %d, %d records, head %s", found.First, found.Last, found.Records, found.HeadHash)
		}
		broken := found.Broken
		if broken == nil {
			broken = &Broken{Reason: "no reason was given"}
		}
		if broken.Seq == 0 {
			return a.Say("The chain is BROKEN: %s", PrintableLine(broken.Reason))
		}
		return a.Say("The chain is BROKEN at commit %d, record %d: %s", broken.Seq, broken.Index, PrintableLine(broken.Reason))
	})
	if err == nil && !found.OK {
		return ExitCode(ExitRemote)
	}
	return err
}

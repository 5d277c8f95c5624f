package lessor

import (
	"context"
	"io"
	"time"
)

// Answer is what an operation answers, in the terms of Vault's envelope. It leaves the server only after the commit
// that carries its audit record.
type Answer struct {
	Status   int            // HTTP status; 0: 200, or 204 when there is nothing to say
	Data     map[string]any // nil: null
	Lease    Terms
	Auth     *Auth
	Wrap     *Wrap
	Warnings []string
	Mount    string // type of the mount that answered
	Flat     bool   // data's keys are repeated at the top level
	Bare     bool   // data is the whole body

	Verbatim *SecretJSON                                  // the whole body, ready (an unwrapped answer)
	Raw      func(ctx context.Context, w io.Writer) error // the whole body, streamed
	RawType  string                                       // its content type
	Feed     Feed                                         // messages, one by one, instead of a body
}

// Feed is messages that a client hears until it leaves. It is for one goroutine at a time.
type Feed interface {
	// Open begins; an error, an *api.Error, refuses. After it, nothing else is called.
	Open() error
	// Next waits for messages. The errors are ctx's, after which it may be called again, and an *api.Error that ends it.
	Next(ctx context.Context) ([][]byte, error)
	// Close is called once, when it was opened and nobody listens any more.
	Close()
}

// Terms are those of a lease as clients see them.
type Terms struct {
	ID        string
	Renewable bool
	Duration  time.Duration
	Version   uint64 // of the static secret that the lease is on, for clients who said that they renew; else 0
}

// Auth is a token that was given, or renewed.
type Auth struct {
	Token            Secret
	Accessor         string
	Policies         []string // token's and identity's
	TokenPolicies    []string
	IdentityPolicies []string
	Metadata         map[string]string
	Duration         time.Duration
	Renewable        bool
	Entity           string
	Kind             TokenKind
	Orphan           bool
	NumUses          int
}

// Wrap describes a wrapping token.
type Wrap struct {
	Token           Secret
	Accessor        string
	TTL             time.Duration
	Created         time.Time
	Path            string // the path that was wrapped
	WrappedAccessor string // accessor of the token inside, if there is one
}

// Empty reports whether there is nothing to say: a 204.
func (a *Answer) Empty() bool {
	return a.Data == nil && a.Auth == nil && a.Wrap == nil && a.Lease.ID == "" && len(a.Warnings) == 0 &&
		a.Verbatim == nil && a.Raw == nil && a.Feed == nil
}

// Append writes the answer's body as Vault's clients expect it, nulls included. It reveals the secrets in it.
func (a *Answer) Append(b []byte, request string) []byte {
	switch {
	case a.Verbatim != nil:
		return append(b, a.Verbatim.Reveal()...)
	case a.Bare:
		return AppendJSON(b, a.Data)
	}
	if a.Wrap != nil {
		request = ""
	}
	b = append(b, `{"request_id":`...)
	b = appendString(b, request)
	b = append(b, `,"lease_id":`...)
	b = appendString(b, a.Lease.ID)
	b = append(b, `,"renewable":`...)
	b = AppendJSON(b, a.Lease.Renewable)
	b = append(b, `,"lease_duration":`...)
	b = AppendJSON(b, seconds(a.Lease.Duration))
	b = append(b, `,"data":`...)
	if a.Wrap != nil || a.Data == nil {
		b = append(b, "null"...)
	} else {
		b = AppendJSON(b, a.Data)
	}
	b = append(b, `,"wrap_info":`...)
	b = a.Wrap.append(b)
	b = append(b, `,"warnings":`...)
	if len(a.Warnings) == 0 {
		b = append(b, "null"...)
	} else {
		b = AppendJSON(b, a.Warnings)
	}
	b = append(b, `,"auth":`...)
	b = a.Auth.append(b)
	b = append(b, `,"mount_type":`...)
	b = appendString(b, a.Mount)
	if a.Flat {
		for _, k := range sortedKeys(a.Data) {
			switch k {
			case "request_id", "lease_id", "renewable", "lease_duration", "data", "wrap_info", "warnings", "auth", "mount_type":
				continue
			}
			b = append(b, ',')
			b = appendString(b, k)
			b = append(b, ':')
			b = AppendJSON(b, a.Data[k])
		}
	}
	return append(b, '}')
}

func (w *Wrap) append(b []byte) []byte {
	if w == nil {
		return append(b, "null"...)
	}
	m := map[string]any{
		"token": w.Token, "accessor": w.Accessor, "ttl": seconds(w.TTL),
		"creation_time": w.Created, "creation_path": w.Path,
	}
	if w.WrappedAccessor != "" {
		m["wrapped_accessor"] = w.WrappedAccessor
	}
	return AppendJSON(b, m)
}

func (a *Auth) append(b []byte) []byte {
	if a == nil {
		return append(b, "null"...)
	}
	m := map[string]any{
		"client_token": a.Token, "accessor": a.Accessor, "policies": nonNil(a.Policies),
		"metadata": a.Metadata, "lease_duration": seconds(a.Duration), "renewable": a.Renewable, "entity_id": a.Entity,
		"token_type": a.Kind.String(), "orphan": a.Orphan, "mfa_requirement": nil, "num_uses": a.NumUses,
	}
	if len(a.TokenPolicies) > 0 {
		m["token_policies"] = a.TokenPolicies
	}
	if len(a.IdentityPolicies) > 0 {
		m["identity_policies"] = a.IdentityPolicies
	}
	return AppendJSON(b, m)
}

// seconds rounds to the nearest second, but never a live duration down to 0: clients take 0 for "no lease".
func seconds(d time.Duration) int64 {
	if d > 0 && d < time.Second {
		return 1
	}
	return int64(d.Round(time.Second) / time.Second)
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

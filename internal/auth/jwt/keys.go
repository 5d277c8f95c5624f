package jwt

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine"
)

const (
	longest    = 64 << 10         // bytes of a token
	mostKeys   = 100              // of one issuer that are kept
	shortest   = 2048             // bits of an RSA key
	keysAge    = 10 * time.Minute // after which keys are fetched again: one that an issuer withdraws is good for so much longer
	keysOld    = time.Hour        // up to which they will do while new ones are on their way
	keysMoment = 2 * time.Second  // that a login waits for new ones if it need not
	keysPause  = 5 * time.Second  // between two fetches for the sake of a key that is not known: strangers can make up as many as they like
	longPause  = time.Minute      // between two fetches at most, from an issuer that does not answer
	mostTries  = 10               // fetches that failed, as far as they are counted
	keysTime   = 10 * time.Second // of one fetch
)

// algorithms are those that a token may be signed with. All have a public half: a key that is meant to verify never signs.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// signed is a token that was parsed and not yet verified.
type signed struct {
	jws *jose.JSONWebSignature
	kid string // of the key that it says it was signed with; may be empty
}

// errSignature refuses a token that nobody known signed. It does not say what is wrong with it.
var errSignature = api.Errorf(api.Invalid, "error validating token: error verifying token signature: no known key successfully validated the token signature")

// parse reads a token in compact form that is signed in one of the ways.
func parse(token string, permitted []string) (*signed, error) {
	ways := algorithms
	if len(permitted) > 0 {
		ways = nil
		for _, name := range permitted {
			ways = append(ways, jose.SignatureAlgorithm(name))
		}
	}
	if len(token) > longest {
		return nil, api.Errorf(api.Invalid, "the token is longer than %d bytes", longest)
	}
	jws, err := jose.ParseSignedCompact(token, ways)
	if err != nil || len(jws.Signatures) != 1 {
		return nil, api.Errorf(api.Invalid, "error validating token: not a JWT that is signed in a way which is accepted here")
	}
	return &signed{jws: jws, kid: jws.Signatures[0].Protected.KeyID}, nil
}

// verify returns what was signed, if one of the keys did it. A key that says what it is for signs nothing else; a token that
// names its key is by no other.
func (s *signed) verify(keys []jose.JSONWebKey) ([]byte, error) {
	alg := s.jws.Signatures[0].Protected.Algorithm
	for _, k := range keys {
		if k.Algorithm != "" && k.Algorithm != alg || s.kid != "" && k.KeyID != "" && k.KeyID != s.kid {
			continue
		}
		if payload, err := s.jws.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	return nil, errSignature
}

// names reports whether one of the keys may be the one that a token names.
func names(keys []jose.JSONWebKey, kid string) bool {
	return kid == "" || slices.ContainsFunc(keys, func(k jose.JSONWebKey) bool { return k.KeyID == "" || k.KeyID == kid })
}

// publicKeys reads keys in PEM: public keys, or certificates of them. Errors are of kind Invalid.
func publicKeys(texts []string) ([]jose.JSONWebKey, error) {
	var keys []jose.JSONWebKey
	for _, text := range texts {
		key, err := publicKey(text)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "error parsing public key: %v", err)
		}
		keys = append(keys, jose.JSONWebKey{Key: key})
	}
	return keys, nil
}

func publicKey(text string) (any, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("it is not in PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "CERTIFICATE":
		var c *x509.Certificate
		if c, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = c.PublicKey
		}
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	default:
		return nil, errors.New("it is neither a public key nor a certificate")
	}
	if err != nil {
		return nil, errors.New("it cannot be read")
	}
	return key, sound(key)
}

// sound refuses keys that nothing should be trusted to.
func sound(key any) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < shortest {
			return fmt.Errorf("an RSA key has %d bits at least", shortest)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return errors.New("it is for no algorithm that is accepted here")
	}
	return nil
}

// readKeys reads a JSON Web Key Set. What is no public key that verifies signatures is passed over.
func readKeys(text []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, errors.New("it is no JSON Web Key Set")
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || k.Use != "" && k.Use != "sig" || !k.IsPublic() || sound(k.Key) != nil {
			continue
		}
		if keys = append(keys, k); len(keys) == mostKeys {
			break
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no key that verifies signatures")
	}
	return keys, nil
}

// A source is where an issuer's keys are.
type source struct {
	url       string // of the keys or, for discovery, of the issuer
	ca        string // PEM of the authorities to trust; empty: the system's
	discovery bool
}

// fetch asks the issuer for its keys and, for discovery, for what else it says about itself.
func (s source) fetch(ctx context.Context) ([]jose.JSONWebKey, *provider, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTime)
	defer cancel()
	w, err := newWeb(s.ca)
	if err != nil {
		return nil, nil, err
	}
	defer w.close()
	at := s.url
	var p *provider
	if s.discovery {
		if p, err = discover(ctx, w, s.url); err != nil {
			return nil, nil, err
		}
		at = p.Keys
	}
	text, err := w.get(ctx, at)
	if err != nil {
		return nil, p, err
	}
	keys, err := readKeys(text)
	if err != nil {
		return nil, p, fmt.Errorf("%s: %w", at, err)
	}
	return keys, p, nil
}

// A keySet is what this node knows of one source. It keeps what it has while the issuer is out of reach.
type keySet struct {
	source

	mu       sync.Mutex
	keys     []jose.JSONWebKey
	provider *provider
	fetched  time.Time // when keys came last; zero: never
	tried    time.Time // when they were asked for last
	failures int       // in a row
	trouble  error     // of the last fetch
	flight   chan struct{}
}

// moment is what a keySet knows at a time.
type moment struct {
	keys     []jose.JSONWebKey
	provider *provider
	good     bool                      // the keys are recent, and one of them may be the one that is looked for
	learn    func(ctx context.Context) // nil: it knows what can be known now
}

// see tells what is known at now, and how to find out more if a token that names the key kid needs it.
func (s *keySet) see(now time.Time, kid string) moment {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := moment{keys: s.keys, provider: s.provider}
	v.good = names(s.keys, kid) && (s.younger(now, keysAge) || s.flight != nil && s.younger(now, keysOld))
	if v.good {
		return v
	}
	if s.flight != nil || s.tried.IsZero() || now.Sub(s.tried) >= s.pause() {
		patience := keysTime
		if s.younger(now, keysOld) && names(s.keys, kid) {
			patience = keysMoment
		}
		v.learn = func(ctx context.Context) { s.learn(ctx, now, patience) }
	}
	return v
}

// pause is how long after a fetch there is no other one; s.mu is held.
func (s *keySet) pause() time.Duration { return min(keysPause<<s.failures, longPause) }

// younger reports whether keys came less than age ago; s.mu is held.
func (s *keySet) younger(now time.Time, age time.Duration) bool {
	return !s.fetched.IsZero() && now.Sub(s.fetched) < age
}

// learn fetches, or joins the fetch that is under way, and waits for it as long as patience says.
func (s *keySet) learn(ctx context.Context, now time.Time, patience time.Duration) {
	s.mu.Lock()
	flight := s.flight
	if flight == nil {
		if !s.tried.IsZero() && now.Sub(s.tried) < s.pause() {
			s.mu.Unlock()
			return // somebody was faster
		}
		flight = make(chan struct{})
		s.flight, s.tried = flight, now
		go s.fly(context.WithoutCancel(ctx), flight, now) // for all who wait: it does not end with the first who asked
	}
	s.mu.Unlock()
	enough := time.NewTimer(patience)
	defer enough.Stop()
	select {
	case <-flight:
	case <-enough.C:
	case <-ctx.Done():
	}
}

// fly is one fetch.
func (s *keySet) fly(ctx context.Context, flight chan struct{}, now time.Time) {
	keys, p, err := s.fetch(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(flight)
	s.flight, s.trouble = nil, err
	if err != nil {
		s.failures = min(s.failures+1, mostTries)
		return
	}
	s.keys, s.provider, s.fetched, s.failures = keys, p, now, 0
}

// keyring is what this node knows of all mounts' issuers. It is a cache: what is not in it is fetched.
type keyring struct {
	mu     sync.Mutex
	mounts map[string]*known // by UUID
}

// known are the key sets of one mount, as one version of its configuration names them.
type known struct {
	version uint64
	sets    []*keySet
}

// mostMounts bounds what is kept of mounts that may be gone.
const mostMounts = 1000

// sets are the key sets of a mount whose configuration has that version.
func (k *keyring) sets(mount string, version uint64, sources []source) []*keySet {
	k.mu.Lock()
	defer k.mu.Unlock()
	if m := k.mounts[mount]; m != nil && m.version == version {
		return m.sets
	}
	if k.mounts == nil {
		k.mounts = map[string]*known{}
	}
	if len(k.mounts) >= mostMounts {
		clear(k.mounts)
	}
	m := &known{version: version}
	for _, s := range sources {
		m.sets = append(m.sets, &keySet{source: s})
	}
	k.mounts[mount] = m
	return m.sets
}

// keys are those that may have signed a token which names the key kid. An *engine.Unknown asks for them to be fetched first.
func (b *Backend) keys(r *engine.Request, c *config, version uint64, kid string) ([]jose.JSONWebKey, error) {
	if len(c.PublicKeys) > 0 {
		return publicKeys(c.PublicKeys)
	}
	var keys []jose.JSONWebKey
	var learn []func(context.Context)
	var found bool
	for _, s := range b.known.sets(r.Mount.UUID, version, c.sources()) {
		v := s.see(r.Now, kid)
		keys = append(keys, v.keys...)
		found = found || v.good && kid != ""
		if v.learn != nil {
			learn = append(learn, v.learn)
		}
	}
	switch {
	case found: // what the other issuers have does not matter
	case len(learn) > 0:
		return nil, &engine.Unknown{Learn: all(learn)}
	case len(keys) == 0:
		return nil, errKeys
	}
	return keys, nil
}

var errKeys = api.Errorf(api.Unavailable, "what the issuer says of itself cannot be fetched at present; try again. To an administrator, a read of this method's config tells why")

// all does several things at once.
func all(tasks []func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		for _, task := range tasks {
			wg.Go(func() { task(ctx) })
		}
		wg.Wait()
	}
}

// troubles tell what went wrong with the last fetch of each source.
func (b *Backend) troubles(r *engine.Request, c *config, version uint64) []string {
	var out []string
	for _, s := range b.known.sets(r.Mount.UUID, version, c.sources()) {
		s.mu.Lock()
		if s.trouble != nil {
			out = append(out, fmt.Sprintf("the keys at %s could not be fetched by this node at %s: %s", s.url, s.tried.UTC().Format(time.RFC3339), strings.TrimSpace(s.trouble.Error())))
		}
		s.mu.Unlock()
	}
	return out
}

package ldap

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	goldap "github.com/go-ldap/ldap/v3"

	"github.com/lessor-dev/lessor/internal/lessor"
)

var issued = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// made is what LDIF makes for somebody.
func made(t *testing.T, raw string) []Step {
	t.Helper()
	s, err := parseLDIF(raw, &secret)
	if err != nil {
		t.Fatal(err)
	}
	about := about("u1", "Ann, of Ops", "team/app", issued, issued.Add(time.Hour))
	about.Password = "pw"
	steps, err := s.fill("lease", issued, about)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func TestLDIF(t *testing.T) {
	got := made(t, "version: 1\r\n# who\r\n it is\r\ndn: cn={{.Username}},ou=a\r\n b,dc=x\r\nobjectClass: top\r\nobjectclass:person\r\n"+
		"sn:: w7w=\r\ncn: {{.DisplayName}} {{if eq .RoleName \"team-app\"}}yes{{else}}no{{end}}\r\ndescription:\r\n"+
		"\r\n\r\ndn:: Y249eHt7LlVzZXJuYW1lfX0=\r\nchangetype: modify\r\nadd: member\r\nmember: a\r\nmember: b\r\n-\r\ndelete: sn\r\n-\r\n"+
		"replace: unicodePwd\r\nunicodePwd::{{ printf \"%q\" .Password | utf16le | base64 }}\r\n\r\n"+
		"dn: cn=y\r\nchangetype: delete\r\n\r\ndn: cn=z-{{.IssueTimeSeconds}}-{{.ExpirationTimeSeconds}}\ncn: {{.IssueTime}} {{.ExpirationTime}}")
	want := []Step{
		{Verb: Add, DN: "cn=u1,ou=ab,dc=x", Values: []Values{
			{"objectClass", []string{"top", "person"}}, {"sn", []string{"ü"}}, {"cn", []string{"Ann--of-Ops yes"}}, {"description", []string{""}},
		}},
		{Verb: Modify, DN: "cn=xu1", Changes: []Change{
			{AddValues, Values{"member", []string{"a", "b"}}}, {DeleteValues, Values{"sn", nil}}, {ReplaceValues, Values{"unicodePwd", []string{"\"\x00p\x00w\x00\"\x00"}}},
		}},
		{Verb: Delete, DN: "cn=y"},
		{Verb: Add, DN: "cn=z-1767323045-1767326645", Values: []Values{{"cn", []string{"2026-01-02T03:04:05Z 2026-01-02T04:04:05Z"}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// What a function makes is escaped in a DN.
func TestEscapes(t *testing.T) {
	got := made(t, `dn: cn={{printf "%s,ou=x" .Username}}+sn={{"#a\"b "}},o={{.RoleName | base64}}`+"\ncn: x")[0].DN
	if want := `cn=u1\,ou\=x+sn=\#a\"b\20,o=dGVhbS1hcHA\=`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, text := range []string{" a ", "#", `a,b+c"d\e<f>g;h=i`, "\x00\n", "ü", ""} {
		parsed, err := goldap.ParseDN("cn=" + escapeDN(text) + ",o=x")
		if err != nil || len(parsed.RDNs) != 2 || parsed.RDNs[0].Attributes[0].Value != text {
			t.Errorf("%q: %+v, %v", text, parsed, err)
		}
	}
}

// An entry is added with a password that nobody knows, and given its own last, by what demands the entry; steps that undo it are in reverse.
func TestMaking(t *testing.T) {
	s, err := parseLDIF("dn: cn=a\nuserPassword: {{.Password}}\n\ndn: cn=b\nother: x{{.Password}}\nother: y\n\n"+
		"dn: cn=a\nchangetype: modify\nreplace: p\np: {{.Password}}\n\ndn: cn=g\nchangetype: modify\nadd: member\nmember: cn=a", &secret)
	if err != nil {
		t.Fatal(err)
	}
	own, nobodys := lessor.NewSecret("own"), lessor.NewSecret("nobodys")
	steps, err := s.making("lease", issued, about("u", "d", "r", issued, issued), own, nobodys)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Verb: Add, DN: "cn=a", Values: []Values{{"userPassword", []string{"nobodys"}}}},
		{Verb: Add, DN: "cn=b", Values: []Values{{"other", []string{"xnobodys", "y"}}}},
		{Verb: Modify, DN: "cn=a", Changes: []Change{{ReplaceValues, Values{"p", []string{"own"}}}}, Secret: true},
		{Verb: Modify, DN: "cn=g", Changes: []Change{{AddValues, Values{"member", []string{"cn=a"}}}}},
		{Verb: Password, DN: "cn=a", Password: own, Secret: true},
		{Verb: Modify, DN: "cn=b", Changes: []Change{{ReplaceValues, Values{"other", []string{"xown", "y"}}}}, Secret: true},
	}
	if !reflect.DeepEqual(steps, want) {
		t.Errorf("\n got %+v\nwant %+v", steps, want)
	}
	undo, err := undoing(steps)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Step{
		{Verb: Modify, DN: "cn=g", Changes: []Change{{DeleteValues, Values{"member", []string{"cn=a"}}}}},
		{Verb: Delete, DN: "cn=b"}, {Verb: Delete, DN: "cn=a"},
	}; !reflect.DeepEqual(undo, want) {
		t.Errorf("\n got %+v\nwant %+v", undo, want)
	}
	if dns := added(steps); fmt.Sprint(dns) != "[cn=a cn=b]" {
		t.Errorf("added %v", dns)
	}
}

// FuzzLDIF: whatever the LDIF and whoever asks, what is filled in changes neither how many records there are, nor their kinds, attributes, or the
// number of their values; DNs keep their number of names.
func FuzzLDIF(f *testing.F) {
	f.Add("dn: cn={{.Username}},ou={{.DisplayName}}\nsn: {{.RoleName}}\nuserPassword: {{.Password}}", "x\n\ndn: cn=y", "a,b", "p")
	f.Add("dn: cn={{.Username}}\nchangetype: modify\nadd: m\nm: {{.DisplayName}}\n-", "ü", "\x00", "\n-\ndelete: x")
	f.Add("dn:: Y249eHt7LlVzZXJuYW1lfX0=\nsn:: {{.DisplayName | base64}}", " ", "#", "{")
	f.Fuzz(func(t *testing.T, raw, display, role, password string) {
		s, err := parseLDIF(raw, &secret)
		if err != nil || strings.Contains(raw, "if") { // a condition says itself what differs
			return
		}
		shape := func(display, role, password string) string {
			a := about("user", display, role, issued, issued)
			a.Password = password
			steps, err := s.fill("lease", issued, a)
			if err != nil {
				return ""
			}
			var b strings.Builder
			for _, step := range steps {
				dn, err := goldap.ParseDN(step.DN)
				if err != nil {
					t.Fatalf("%q is no DN", step.DN)
				}
				fmt.Fprint(&b, step.Verb, len(dn.RDNs))
				for _, v := range step.Values {
					fmt.Fprint(&b, v.Attribute, len(v.Values))
				}
				for _, c := range step.Changes {
					fmt.Fprint(&b, c.Kind, c.Values.Attribute, len(c.Values.Values))
				}
			}
			return b.String()
		}
		if got, plain := shape(display, role, password), shape("a", "b", base64.StdEncoding.EncodeToString([]byte("c"))); got != "" && plain != "" && got != plain {
			t.Errorf("%q becomes %q and %q", raw, got, plain)
		}
	})
}

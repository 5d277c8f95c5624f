// Package policy decides who may do what. It is pure: it parses policies, compiles those of a principal into an ACL,
// and answers with a Decision. It reads no clock, no store and no network; whatever it has to know is an argument.
//
// # How a decision is made, top to bottom
//
//  1. A background act (Principal.System, no token) is granted by the rule "system:NAME". Code, not policy, started it.
//  2. An open route (Facts.Open: login, health, lookup of a wrapping) is granted to anybody by the rule "open".
//  3. The root policy, held by a root principal, grants everything by the rule "*".
//  4. Otherwise exactly one path of the compiled ACL applies, and if none does the answer is no:
//     the path itself; for a LIST also the path without its trailing "/"; then the best of the paths with wildcards.
//     Best is: the first wildcard stands further right; no "*" at the end; fewer "+" segments; longer; the later one in
//     byte order. A LIST looks for wildcards without its trailing "/" first, and with it only if nothing was found.
//  5. That path must not deny, and must have the operation's capability. For a write the existence check decides
//     whether that is create or update; without such a check it is update.
//  6. A root-protected path needs sudo too.
//  7. If the path bounds the time of wrapping, the answer has to be wrapped within those bounds.
//  8. Parameters, for all but list and delete: required ones are there, none is denied, and each is allowed.
//  9. If the path asks for approvals (control_group) for this capability, they are missing, and the answer is no.
//
// Nothing else can say yes, and saying yes is the only way to a [Grant]: its fields are unexported, [Decide] alone
// makes it, and it is bound to the digest of the operation.
//
// # How policies unite
//
// Several stanzas for the same path, in one policy or in several, are one: deny wins over everything; else
// capabilities unite, required, denied and allowed parameters unite (an empty list of values means any value), and the
// smallest bound on wrapping counts. So a stanza with allowed_parameters restricts the union, even if another stanza
// for the same path allows everything. Paths that differ never unite: the best one applies alone.
//
// # Templates
//
// A path may hold {{identity.entity.id}}, .name, .metadata.KEY, .aliases.ACCESSOR.id (.name, .metadata.KEY), and
// {{identity.groups.ids.ID.name}} or {{identity.groups.names.NAME.id}} (.metadata.KEY). [Compile] fills them in. A path
// whose template finds no value, an empty one, or one with a wildcard in it, does not exist for that principal.
package policy

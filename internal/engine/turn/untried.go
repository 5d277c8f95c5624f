package turn

import (
	"context"
	"errors"
	"slices"

	"github.com/lessor-dev/lessor/api"
	"github.com/lessor-dev/lessor/internal/engine/target"
)

// Untried has tried what a request writes of a static role and its target has not been asked about yet, before it is stored (engine.Reply.First): the accounts
// that are not among those that it had before, and the password in force, if it was sent. What the target says is wrong refuses the role. That the
// target cannot be asked, or does not say, is warned of: people write roles while their targets are away. nil: there is nothing to try.
//
// A new role that is rotated at once needs none of it, since its rotation finds out the same (whole).
func (t *Turn) Untried(before Names, sent bool) func(context.Context) (warnings []string, err error) {
	var slots []uint8
	for i, username := range t.Terms.Accounts {
		if !slices.Contains(before, username) {
			slots = append(slots, uint8(i))
		}
	}
	if len(slots) == 0 && !sent {
		return nil
	}
	return func(ctx context.Context) ([]string, error) {
		err := t.changeable(ctx, slots...)
		verdict := target.Accepted
		if err == nil && sent {
			verdict, err = t.known(ctx)
		}
		switch {
		case errors.Is(err, target.ErrUnreachable):
			return []string{"whether lessor can rotate this was not tried, and what is wrong with it the first rotation finds out: " + err.Error()}, nil
		case api.KindOf(err) == api.Upstream:
			return nil, &api.Error{Kind: api.Invalid, Text: "the static role was not written: " + err.Error(), Cause: err}
		case verdict == target.Barred:
			return []string{"the password that was sent is that of the account, but that may not log in: it is locked or disabled at the target"}, err
		case verdict == target.Unknown:
			return []string{"the password that was sent could not be tried: the target does not let the account log in from here, or by password"}, err
		}
		return nil, err
	}
}

// whole sees that a pair that is made is there as it was said to be, before the first of its accounts is touched.
func (t *Turn) whole(ctx context.Context) error {
	if err := t.changeable(ctx, 1-t.Turn()); err != nil || t.Passwords.Current.Empty() {
		return err
	}
	_, err := t.known(ctx)
	return err
}

// changeable asks the target whether the passwords of accounts can be changed.
func (t *Turn) changeable(ctx context.Context, slots ...uint8) error {
	for _, slot := range slots {
		there, err := t.keeper.Reach(ctx, t, slot)
		if err == nil {
			err = there.Changeable(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// known tries the password in force, which somebody has sent. That it is wrong is an error.
func (t *Turn) known(ctx context.Context) (target.Verdict, error) {
	there, err := t.keeper.Reach(ctx, t, t.Slot)
	if err != nil {
		return 0, err
	}
	verdict, err := there.Login(ctx, t.Passwords.Current)
	if err == nil && verdict == target.Refused {
		err = api.Errorf(api.Upstream, "the password that was sent is not the one of the account %q: the target refuses it", t.Username(t.Slot))
	}
	return verdict, err
}

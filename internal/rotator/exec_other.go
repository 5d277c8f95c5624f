//go:build !linux

package rotator

import (
	"context"

	"github.com/lessor-dev/lessor/api"
)

var errLinux = api.Errorf(api.Invalid, "rotators that are programs run on Linux only")

type nobody struct{}

func (k *Caller) identity(*Rotator) (nobody, error) { return nobody{}, errLinux }

func (k *Caller) run(context.Context, *Rotator, *Call, []byte) ([]byte, error) { return nil, errLinux }

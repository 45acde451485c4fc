package progress

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testclock "k8s.io/utils/clock/testing"
)

func TestStepsAreTimed(t *testing.T) {
	clk := testclock.NewFakeClock(time.Unix(0, 0))
	var out bytes.Buffer
	l := &Log{Out: &out, Clock: clk}
	require.NoError(t, l.Step("boot", func() error { clk.Step(1500 * time.Millisecond); return nil }))
	broken := errors.New("no")
	require.ErrorIs(t, l.Step("join", func() error { return broken }), broken)
	require.Contains(t, out.String(), "boot")
	require.Contains(t, out.String(), "1.5s\n")
	require.Contains(t, out.String(), "failed after 0s")
}

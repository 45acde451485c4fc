package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/pflag"

	"theseus.dev/theseus/internal/ledger"
)

// registerLimits adds the flags of the ledger's limits: what a person says when the defaults do not suit the fleet, or when
// a storm of condemnations is none.
func registerLimits(f *pflag.FlagSet, l *ledger.Limits) {
	f.Var((*freeze)(&l.Freeze), "freeze", "Planned: nothing that can wait is replaced; All: nothing is, not even what is sick")
	f.StringVar(&l.FreezeWhy, "freeze-why", "", "why, for people")
	l.PlannedShare, l.UrgentShare, l.RepairsShare = ledger.DefaultPlannedShare, ledger.DefaultUrgentShare, ledger.DefaultRepairsShare
	l.StormFraction = ledger.DefaultStormFraction
	f.Var((*fraction)(&l.PlannedShare), "limit-planned", "share of all instances of which planned replacements may be under way at once, at least one")
	f.Var((*fraction)(&l.UrgentShare), "limit-requests", "the same of drains and requests, at least three")
	f.Var((*fraction)(&l.RepairsShare), "limit-repairs", "the same of repairs, at least three")
	f.Var((*breaker)(&l.StormFraction), "storm-fraction", "share of the nodes (more than five) on which instances must be condemned within the window to stop condemnation; 0 turns this off")
	f.DurationVar(&l.StormWindow, "storm-window", ledger.DefaultStormWindow, "how long a condemnation counts for that")
}

// freeze is the flag of the ledger's switch.
type freeze ledger.Freeze

// String implements pflag.Value.
func (f *freeze) String() string { return string(*f) }

// Type implements pflag.Value.
func (*freeze) Type() string { return "what" }

// Set implements pflag.Value.
func (f *freeze) Set(s string) error {
	switch ledger.Freeze(s) {
	case ledger.FreezeNone, ledger.FreezePlanned, ledger.FreezeAll:
		*f = freeze(s)
		return nil
	}
	return fmt.Errorf("%q is neither %s nor %s nor empty", s, ledger.FreezePlanned, ledger.FreezeAll)
}

// fraction is the flag of a share that is never nothing: to stop something there is the switch.
type fraction float64

// String implements pflag.Value.
func (f *fraction) String() string { return strconv.FormatFloat(float64(*f), 'g', -1, 64) }

// Type implements pflag.Value.
func (*fraction) Type() string { return "share" }

// Set implements pflag.Value.
func (f *fraction) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v > 0 && v <= 1) {
		return fmt.Errorf("%q is not more than 0 and at most 1; to stop replacements use --freeze", s)
	}
	*f = fraction(v)
	return nil
}

// breaker is the flag of the storm breaker, whose 0 is off. The ledger's zero is its default, and what is negative off.
type breaker float64

// String implements pflag.Value.
func (b *breaker) String() string { return strconv.FormatFloat(max(float64(*b), 0), 'g', -1, 64) }

// Type implements pflag.Value.
func (*breaker) Type() string { return "share" }

// Set implements pflag.Value.
func (b *breaker) Set(s string) error {
	switch v, err := strconv.ParseFloat(s, 64); {
	case err != nil || !(v >= 0 && v <= 1):
		return fmt.Errorf("%q is not between 0 and 1", s)
	case v == 0:
		*b = -1
	default:
		*b = breaker(v)
	}
	return nil
}

// checkLimits refuses what the flags' own types cannot.
func checkLimits(l ledger.Limits) error {
	if l.StormWindow <= 0 {
		return errors.New("--storm-window must be positive; to turn the breaker off use --storm-fraction=0")
	}
	return nil
}

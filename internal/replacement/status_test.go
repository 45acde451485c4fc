package replacement

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"theseus.dev/theseus/api/v1alpha1"
)

// filled has a value in every field: a field that is added and not stored would be lost at every restart.
func filled() Status {
	var s Status
	v := reflect.ValueOf(&s).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(t0.Add(time.Duration(i)*time.Second + 123*time.Microsecond)))
		case bool:
			f.SetBool(true)
		case int:
			f.SetInt(int64(i + 1))
		default:
			f.SetString(v.Type().Field(i).Name)
		}
	}
	return s
}

func TestStatusSurvivesTheObject(t *testing.T) {
	want := filled()
	var object v1alpha1.ReplacementStatus
	ToObject(Decision{Status: want, Waiting: "for Godot"}, &object, t0)
	text, err := json.Marshal(object)
	require.NoError(t, err)
	var back v1alpha1.ReplacementStatus
	require.NoError(t, json.Unmarshal(text, &back))
	got := FromObject(back)
	gv, wv := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range gv.NumField() {
		name := gv.Type().Field(i).Name
		if when, ok := wv.Field(i).Interface().(time.Time); ok {
			require.True(t, when.Equal(gv.Field(i).Interface().(time.Time)), name)
			continue
		}
		require.Equal(t, wv.Field(i).Interface(), gv.Field(i).Interface(), name)
	}
	require.Equal(t, "for Godot", back.Waiting)

	var empty v1alpha1.ReplacementStatus
	ToObject(Decision{}, &empty, t0)
	require.Equal(t, Status{}, FromObject(empty))
}

// The whole way through the object, serialized after every step as an operator that restarts all the time would see it.
func TestStepsAreKept(t *testing.T) {
	w := newWorld(1, 3, v1alpha1.ReasonExpired, 0)
	var object v1alpha1.ReplacementStatus
	for w.now.Before(t0.Add(time.Hour)) && !w.status.Phase.Finished() {
		d := Next(w.observe(), Timeouts{})
		ToObject(d, &object, w.now)
		if d.Status.Successor != w.status.Successor {
			w.names++
		}
		w.status, w.leaving = FromObject(object), d.Leaving
		w.act(d.Action)
		w.pass(time.Second)
	}
	require.Equal(t, Done, w.status.Phase)
	var phases []v1alpha1.ReplacementPhase
	for i, s := range object.Steps {
		phases = append(phases, s.Phase)
		require.NotNil(t, s.FinishedAt)
		if i > 0 {
			require.Equal(t, object.Steps[i-1].FinishedAt.Time, s.StartedAt.Time)
		}
	}
	require.Equal(t, []v1alpha1.ReplacementPhase{"Surging", "Seeding", "CatchingUp", "Reparenting", "Retiring"}, phases)

	for i := range 100 {
		ToObject(Decision{Status: Status{Phase: []Phase{Surging, RollingBack}[i%2]}}, &object, t0)
	}
	require.Len(t, object.Steps, maxSteps)
}

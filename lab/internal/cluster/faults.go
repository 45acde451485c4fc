package cluster

import (
	"context"
	"fmt"
	"strings"

	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/state"
	"theseus.dev/theseus/lab/volume"
)

// Direction says which packets a cut drops, seen from the node.
type Direction string

// The directions of a cut.
const (
	Both     Direction = "both"
	Incoming Direction = "in"
	Outgoing Direction = "out"
)

// cutsFor lists the one-way cuts that separate a node from a peer
// (state.Everyone for all).
func cutsFor(node, peer string, d Direction) ([]state.Cut, error) {
	out, in := state.Cut{From: node, To: peer}, state.Cut{From: peer, To: node}
	switch d {
	case Both:
		return []state.Cut{out, in}, nil
	case Outgoing:
		return []state.Cut{out}, nil
	case Incoming:
		return []state.Cut{in}, nil
	}
	return nil, fmt.Errorf("direction %q is not one of %s, %s, %s", d, Both, Incoming, Outgoing)
}

// NodeCut separates a node from a peer machine, or from everyone when peer is
// empty. What runs on the node goes on, and can still talk to itself.
func (c *Cluster) NodeCut(ctx context.Context, name, peer string, d Direction) error {
	return c.locked(ctx, "node cut "+name, func() error {
		if _, err := c.running(name); err != nil {
			return err
		}
		what := "cut " + name + " off"
		if peer == "" {
			peer = state.Everyone
		} else {
			if peer == name || c.state.Machine(peer) == nil {
				return fmt.Errorf("there is no other machine %q to cut %s from: `lab status` lists machines", peer, name)
			}
			what += " from " + peer
		}
		cuts, err := cutsFor(name, peer, d)
		if err != nil {
			return err
		}
		return c.log.Step(what, func() error {
			if err := c.update(func(s *state.Lab) { s.AddCuts(cuts...) }); err != nil {
				return err
			}
			return network.ApplyCuts(ctx, c.name, c.state.Cuts)
		})
	})
}

// NodeHeal undoes every cut of a node, or only those towards a peer.
func (c *Cluster) NodeHeal(ctx context.Context, name, peer string) error {
	return c.locked(ctx, "node heal "+name, func() error {
		if _, err := c.node(name); err != nil {
			return err
		}
		return c.log.Step("heal the network of "+name, func() error {
			if err := c.update(func(s *state.Lab) { s.Heal(name, peer) }); err != nil {
				return err
			}
			return network.ApplyCuts(ctx, c.name, c.state.Cuts)
		})
	})
}

// NodeFreeze stops every process of a node where it is, or lets them go on. The
// node's kernel still answers: connections stay open and are accepted, nobody
// serves them.
func (c *Cluster) NodeFreeze(ctx context.Context, name string, frozen bool) error {
	verb := "freeze"
	if !frozen {
		verb = "thaw"
	}
	return c.locked(ctx, "node "+verb+" "+name, func() error {
		m, err := c.running(name)
		if err != nil {
			return err
		}
		return c.log.Step(verb+" "+name, func() error {
			// Recorded as frozen before it is, and until it no longer is: a
			// kill has to know in doubt.
			if frozen {
				if err := c.update(func(*state.Lab) { m.Frozen = true }); err != nil {
					return err
				}
			}
			if err := c.host.Freeze(ctx, name, frozen); err != nil {
				return err
			}
			return c.update(func(*state.Lab) { m.Frozen = frozen })
		})
	})
}

// VolumeStall makes writes to a claim's volume hang; claim is NAMESPACE/NAME.
func (c *Cluster) VolumeStall(ctx context.Context, claim string) error {
	return c.locked(ctx, "volume stall "+claim, func() error {
		return c.log.Step("stall the volume of "+claim, func() error {
			namespace, name, _ := strings.Cut(claim, "/")
			return volume.Stall(c.volumeDir(), namespace, name)
		})
	})
}

// VolumeResume lets writes go on.
func (c *Cluster) VolumeResume(ctx context.Context, claim string) error {
	return c.locked(ctx, "volume resume "+claim, func() error {
		return c.log.Step("resume the volume of "+claim, func() error {
			namespace, name, _ := strings.Cut(claim, "/")
			return volume.Resume(c.volumeDir(), namespace, name)
		})
	})
}

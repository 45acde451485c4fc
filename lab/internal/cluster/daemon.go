package cluster

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"sync"

	"theseus.dev/theseus/lab/internal/forward"
	"theseus.dev/theseus/lab/internal/kubeconf"
	"theseus.dev/theseus/lab/internal/network"
	"theseus.dev/theseus/lab/internal/plan"
	"theseus.dev/theseus/lab/internal/serviceproxy"
	"theseus.dev/theseus/lab/volume"
)

// Daemon does what somebody has to keep doing while a lab is up: it offers the
// API on loopback, keeps the client's Service rules, provisions volumes, and
// answers calls about machines. It
// runs until ctx ends. What it set up stays in force if it dies; `up` restarts it.
func (c *Cluster) Daemon(ctx context.Context, log *slog.Logger) error {
	lab, err := c.store.Load()
	if err != nil {
		return err
	}
	c.state = lab
	listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(lab.APIPort))
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	address := net.JoinHostPort(plan.ControlPlane.String(), strconv.Itoa(plan.APIPort))
	log.Info("daemon started", "api", listener.Addr().String(), "inside", kubeconf.APIServerURL())
	jobs := map[string]func(context.Context) error{
		"api": func(ctx context.Context) error {
			return forward.Serve(ctx, listener, func(ctx context.Context) (net.Conn, error) {
				return network.Dial(ctx, c.name, plan.ControlPlaneName, address)
			}, log)
		},
		"services": func(ctx context.Context) error {
			return serviceproxy.Run(ctx, client, func(ctx context.Context, rules string) error {
				return network.NFT(ctx, c.name, plan.ClientName, rules)
			}, log)
		},
		"machines": func(ctx context.Context) error { return c.serveMachines(ctx, log) },
		"volumes": func(ctx context.Context) error {
			return volume.Run(ctx, volume.Config{
				Kubeconfig: c.KubeconfigPath(), StateDir: c.volumeDir(), Nodes: c.volumeNodes, Log: log,
			})
		},
	}
	var wg sync.WaitGroup
	for name, job := range jobs {
		wg.Go(func() {
			if err := job(ctx); err != nil {
				log.Error("stopped working", "part", name, "error", err)
			}
		})
	}
	wg.Wait()
	return nil
}

// volumeNodes lists the nodes that can hold volumes now. The daemon shares
// nothing with other commands but the state file, so it reads that.
func (c *Cluster) volumeNodes() []volume.Node {
	lab, err := c.store.Load()
	if err != nil {
		return nil
	}
	var out []volume.Node
	for _, m := range lab.RunningNodes() {
		if m.Init.Alive() {
			out = append(out, volume.Node{Name: m.Name, PID: m.Init.PID, Zone: m.Zone})
		}
	}
	return out
}

package gateway

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one gateway. Every name begins with theseus_gateway_.
type metrics struct {
	registry *prometheus.Registry

	term, mode       prometheus.Gauge
	moves, cuts      prometheus.Counter
	pauses           *prometheus.CounterVec
	pauseSeconds     prometheus.Histogram
	refused          prometheus.Counter
	restarts         prometheus.Counter
	watches          prometheus.Gauge
	pool             *prometheus.GaugeVec
	consoleFailures  prometheus.Counter
	poolerReloads    prometheus.Counter
	serverConnection prometheus.GaugeFunc
}

func newMetrics(open func() float64) *metrics {
	name := func(n, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "theseus", Subsystem: "gateway", Name: n, Help: help}
	}
	gauge := func(n, help string) prometheus.Gauge { return prometheus.NewGauge(prometheus.GaugeOpts(name(n, help))) }
	counter := func(n, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(name(n, help)))
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		term:     gauge("term", "Term of the primary served last."),
		mode:     gauge("mode", "0 hold, 1 drain, 2 serve."),
		moves:    counter("moves_total", "Changes to another primary or term."),
		cuts:     counter("cuts_total", "Times server connections were dropped because their term was over."),
		pauses: prometheus.NewCounterVec(prometheus.CounterOpts(name("pauses_total",
			"Times new transactions were held, by why: drain (planned) or hold (no primary).")), []string{"mode"}),
		pauseSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "theseus", Subsystem: "gateway", Name: "pause_seconds",
			Help:    "How long new transactions were held, from leaving serve to the next serve.",
			Buckets: []float64{.025, .05, .1, .15, .25, .5, .8, 1.5, 3, 5, 15, 60},
		}),
		refused:         counter("refused_logins_total", "Logins refused because there was no primary for longer than max-pause."),
		restarts:        counter("pgbouncer_restarts_total", "Times PgBouncer ended by itself and was started again."),
		watches:         gauge("agents_watched", "Agents whose status stream is open."),
		consoleFailures: counter("console_failures_total", "Commands that PgBouncer's console failed."),
		poolerReloads:   counter("pgbouncer_reloads_total", "Reloads of PgBouncer for a new certificate."),
		pool: prometheus.NewGaugeVec(prometheus.GaugeOpts(name("pgbouncer_connections",
			"PgBouncer's connections over all pools, by the columns of SHOW POOLS.")), []string{"state"}),
		serverConnection: prometheus.NewGaugeFunc(prometheus.GaugeOpts(name("server_connections",
			"Server connections, those that wait for a primary included.")), open),
	}
	m.registry.MustRegister(m.term, m.mode, m.moves, m.cuts, m.pauses, m.pauseSeconds, m.refused, m.restarts,
		m.watches, m.consoleFailures, m.poolerReloads, m.pool, m.serverConnection)
	return m
}

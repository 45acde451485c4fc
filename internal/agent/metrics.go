package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"theseus.dev/theseus/internal/agentapi/agentpb"
)

// collector makes metrics of the status at the moment it is asked.
type collector struct{ agent *Agent }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("theseus_agent_"+name, help, labels, nil)
}

var (
	descRole        = desc("role", "1 for the role the instance has now.", "role")
	descTerm        = desc("term", "Highest term accepted.")
	descEstablished = desc("established", "1 while an established primary.")
	descFenced      = desc("fenced", "1 while the agent keeps PostgreSQL stopped by itself.")
	descFlushed     = desc("flushed_bytes", "End of the flushed WAL.")
	descReplayed    = desc("replayed_bytes", "End of the replayed WAL of a standby.")
	descPeerFlushed = desc("peer_flushed_bytes", "End of the WAL a standby has flushed, as its primary knows it.", "instance")
	descProbe       = desc("probe_seconds", "Latency of the last successful probe.", "probe")
	descProbeFailed = desc("probe_failures", "Consecutive failures of a probe.", "probe")
	descProbeWait   = desc("probe_pending_seconds", "Age of the probe under way.", "probe")
	descDiskSize    = desc("disk_size_bytes", "Size of the data volume.")
	descDiskFree    = desc("disk_available_bytes", "Space available on the data volume.")
	descClients     = desc("clients", "Sessions of clients.")
	descOpen        = desc("open_transactions", "Sessions of clients in a transaction.")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descRole, descTerm, descEstablished, descFenced, descFlushed, descReplayed, descPeerFlushed, descProbe,
		descProbeFailed, descProbeWait, descDiskSize, descDiskFree, descClients, descOpen,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.agent.status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descRole, 1, st.GetRole().String())
	gauge(descTerm, float64(st.GetTerm()))
	gauge(descEstablished, flag(st.GetEstablished()))
	gauge(descFenced, flag(st.GetFenced() != ""))
	gauge(descFlushed, float64(st.GetFlushed().GetLsn()))
	gauge(descReplayed, float64(st.GetReplayedLsn()))
	for _, p := range st.GetPeers() {
		gauge(descPeerFlushed, float64(p.GetFlushedLsn()), p.GetInstance())
	}
	for name, p := range map[string]*agentpb.Probe{
		"write": st.GetWriteProbe(), "disk": st.GetDiskProbe(), "connect": st.GetConnectProbe(), "commit": st.GetCommitProbe(),
	} {
		gauge(descProbe, (time.Duration(p.GetLatencyUs()) * time.Microsecond).Seconds(), name)
		gauge(descProbeFailed, float64(p.GetFailures()), name)
		pending := 0.0
		if since := p.GetPendingSinceUnixMs(); since > 0 {
			pending = float64(st.GetAtUnixMs()-since) / 1000
		}
		gauge(descProbeWait, pending, name)
	}
	gauge(descDiskSize, float64(st.GetDisk().GetSizeBytes()))
	gauge(descDiskFree, float64(st.GetDisk().GetAvailableBytes()))
	gauge(descClients, float64(st.GetClients()))
	gauge(descOpen, float64(st.GetOpenTransactions()))
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

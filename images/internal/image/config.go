package image

import (
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// What is fixed about the user and the paths in both images. Charts, the agent and the
// Dockerfiles rely on them; README.md lists them.
const (
	// UID and GID are those of the user every process in the images runs as.
	UID, GID = 10001, 10001
	// Binary is where the theseus binary is.
	Binary = "usr/local/bin/theseus"
	// PGBin is a link to the directory of PostgreSQL's programs, whatever the major.
	PGBin = "usr/lib/theseus/pgbin"
	// RunDir holds the Unix sockets; an emptyDir is mounted there.
	RunDir = "run/theseus"
	// VolumeDir is where the instance's volume is mounted.
	VolumeDir = "var/lib/theseus"
	// CACerts is the bundle of certificate authorities, as every TLS library finds it.
	CACerts = "etc/ssl/certs/ca-certificates.crt"
)

// PGBinTarget is where Debian puts the programs of a PostgreSQL major.
func PGBinTarget(major string) string { return "/usr/lib/postgresql/" + major + "/bin" }

// OperandConfig is the configuration of the operand image. version may be empty.
func OperandConfig(major, version string) v1.Config {
	return v1.Config{
		User:       fmt.Sprintf("%d:%d", UID, GID),
		Entrypoint: []string{"/" + Binary},
		WorkingDir: "/",
		StopSignal: "SIGTERM",
		Env: []string{
			"PATH=/" + PGBin + ":/usr/local/bin:/usr/sbin:/usr/bin:/bin",
			"LANG=C.UTF-8",
			"HOME=/" + VolumeDir,
			"PGBIN=/" + PGBin,
			"PGDATA=/" + VolumeDir + "/pgdata",
			"PGHOST=/" + RunDir,
			"PG_MAJOR=" + major,
		},
		Labels: labels("Theseus operand: PostgreSQL "+major, version, map[string]string{"theseus.dev/postgresql-major": major}),
	}
}

// OperatorConfig is the configuration of the operator image. version may be empty.
func OperatorConfig(version string) v1.Config {
	return v1.Config{
		User:       fmt.Sprintf("%d:%d", UID, GID),
		Entrypoint: []string{"/" + Binary},
		WorkingDir: "/",
		Env:        []string{"PATH=/usr/local/bin", "LANG=C.UTF-8"},
		Labels:     labels("Theseus operator", version, nil),
	}
}

// labels returns the image's labels: a title, a version if there is one, and more.
func labels(title, version string, more map[string]string) map[string]string {
	out := map[string]string{"org.opencontainers.image.title": title}
	if version != "" {
		out["org.opencontainers.image.version"] = version
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

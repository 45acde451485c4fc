// Command lab-init is pid 1 of every machine of the lab. It is its own small
// executable because one of it runs per machine.
package main

import (
	"log/slog"
	"os"

	"theseus.dev/theseus/lab/internal/initd"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if len(os.Args) != 2 {
		log.Error("usage: lab-init SPEC; it is started by `lab`, never by hand")
		os.Exit(2)
	}
	if err := initd.Main(os.Args[1], log); err != nil {
		log.Error("the machine could not be set up", "error", err)
		os.Exit(1)
	}
}

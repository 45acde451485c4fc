# Theseus. `make help` lists the targets; `make demo` and `make test` do all their own set-up on a fresh Debian machine
# with Go, as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN      ?= bin
BUILD    ?= build
PG_MAJOR ?= 17
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# The lab that tests use. The demo's lab has the default name, so that both can be up at once.
TEST_LAB ?= theseus-test
# The lab's own packages; the rest of lab/cmd only compiles Kubernetes.
LAB_OWN  := ./internal/... ./volume/... ./e2e/... ./cmd/lab/... ./cmd/lab-init/...
# Tests that have not passed ten times in a row yet, or take minutes: `make test-more` runs them, RUN= runs them by name.
E2E_NEW  ?= TestSomeNamespacesAreWatched|TestCertificatesRotate|TestPrimaryFails|TestPlannedReparentUnderDifficulties|TestALifetimeOfMinutes|TestControlPlaneDownDuringAReplacement
E2E_SKIP ?= $(E2E_NEW)
export PATH := $(CURDIR)/$(BIN):$(PATH)

include lab/lab.mk
include images/images.mk
include bench/bench.mk

GO_SOURCES := $(shell find api cmd internal -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum

##@ What you will want
# Your own cluster needs neither a Kubernetes compiled here nor images built here.
demo_needs := $(if $(filter current,$(CLUSTER)),$(BIN)/helm,packages binaries images)

.PHONY: demo
demo: $(demo_needs) $(BIN)/theseus-demo ## Start a lab, install Theseus, run the quickstart, replace everything (STORY=false: do not); CLUSTER=current uses your kubeconfig, IMAGE= names pushed images
	$(BIN)/theseus-demo --cluster=$(or $(CLUSTER),lab) $(if $(IMAGE),--image=$(IMAGE)) $(if $(STORY),--story=$(STORY))

.PHONY: test
test: packages lint test-unit test-integration test-lab test-e2e ## Lint, unit, integration (real API server, PostgreSQL, PgBouncer), lab and end-to-end tests
	@echo "make test: all passed"

.PHONY: test-more
test-more: ## What make test leaves out because it is new: end-to-end tests, Karpenter's own controllers, faults of a fixed seed
	$(MAKE) test-karpenter
	$(MAKE) test-e2e RUN='$(E2E_NEW)'
	$(MAKE) test-robustness SEED=2 FAULTS=4

.PHONY: clean-lab
clean-lab: ## Remove every process, mount, namespace, cgroup and file of the labs
	@if [ -x $(BIN)/lab ]; then for name in theseus $(TEST_LAB); do $(BIN)/lab --name $$name clean; done; $(BIN)/lab clean --all; else echo "no lab was ever built here"; fi

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z0-9_.-]+:.*##/ {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Parts of make test
.PHONY: lint
lint: $(BIN)/tools/staticcheck $(BIN)/tools/gofumpt ## gofumpt, vet and staticcheck over every module
	@echo "lint: gofumpt"; out=$$($(BIN)/tools/gofumpt -l $$(git ls-files -co --exclude-standard '*.go' | grep -v -e zz_generated -e '\.pb\.go$$')); if [ -n "$$out" ]; then echo "not formatted (run make fmt):"; echo "$$out"; exit 1; fi
	@echo "lint: vet"; go vet -tags integration,e2e,karpenter ./... && (cd lab && CGO_ENABLED=0 go vet -tags e2e $(LAB_OWN))
	@echo "lint: staticcheck"; $(BIN)/tools/staticcheck -tags integration,e2e,karpenter ./... && (cd lab && CGO_ENABLED=0 $(abspath $(BIN))/tools/staticcheck -tags e2e $(LAB_OWN))

.PHONY: test-unit
test-unit: $(BIN)/helm ## Unit tests with the race detector, and the simulator's full budget without it; those of the chart render it
	go test -race -timeout 15m ./...
	go test -timeout 15m ./internal/sim/
	cd lab && CGO_ENABLED=0 go test -timeout 5m $(LAB_OWN)

.PHONY: test-integration
test-integration: packages $(BIN)/kube $(BIN)/etcd $(BIN)/kubectl $(BIN)/theseus images image-operand-15 ## Against a real kube-apiserver and etcd, real PostgreSQL, real PgBouncer
	KUBEBUILDER_ASSETS=$(abspath $(BIN)) go test -tags integration -timeout 15m -count 1 -p 1 $$(grep -rl --include='*_test.go' '^//go:build integration' images internal test | xargs -n1 dirname | sort -u | sed 's|^|./|')

.PHONY: test-karpenter
test-karpenter: packages $(BIN)/kube $(BIN)/etcd $(BIN)/tools/karpenter-kwok ## Drains and expiry of nodes against Karpenter's own controllers (its KWOK provider)
	KUBEBUILDER_ASSETS=$(abspath $(BIN)) go test -tags integration,karpenter -timeout 10m -count 1 -run KarpenterItself ./test/integration

.PHONY: test-lab
test-lab: packages lab-binaries ## Every verb of the lab
	cd lab && CGO_ENABLED=0 THESEUS_LAB=theseus-lab-e2e go test -tags e2e -timeout 15m -count 1 -p 1 ./e2e/...

.PHONY: test-e2e
test-e2e: packages binaries images image-operand-15 ## End-to-end in the lab; RUN= selects tests, COUNT= repeats them, KEEP=1 leaves the lab up
	THESEUS_LAB=$(TEST_LAB) go test -tags e2e -timeout 45m -count $(or $(COUNT),1) -v -p 1 $(if $(RUN),-run '$(RUN)',-skip '$(E2E_SKIP)') ./test/e2e/...

.PHONY: test-robustness
test-robustness: packages binaries images $(BIN)/robustness-clients ## Clients, faults at random, and a check of what clients saw; FAULTS= how many, SEED= or SCHEDULE= to repeat a run, COUNT= to do so several times
	THESEUS_LAB=$(TEST_LAB) FAULTS=$(FAULTS) SEED=$(SEED) SCHEDULE=$(SCHEDULE) go test -tags e2e -timeout 3h -count $(or $(COUNT),1) -v -run TestRobustness ./test/robustness

##@ Simulation
SEED     ?=
SIM_OUT  ?= $(BUILD)/sim-fleet
.PHONY: sim sim-soak sim-fleet
sim: ## One shard under random faults; SEED= replays a run
	go run ./internal/sim/cmd/sim $(if $(SEED),-seed $(SEED))

sim-soak: ## The same for as long as you like; SOAK= is a duration
	go run ./internal/sim/cmd/sim -for $(or $(SOAK),1h)

sim-fleet: ## Two years of 10,000 shards side by side, in which nodes expire and in which instances do: ages, replacement rates, plots
	go run ./internal/simfleet/cmd/sim-fleet -out $(SIM_OUT)

##@ Building
.PHONY: binaries
binaries: lab-binaries $(BIN)/theseus $(BIN)/theseus-load $(BIN)/helm ## All executables

$(BIN)/theseus $(BIN)/theseus-load $(BIN)/theseus-demo: $(GO_SOURCES)
	@mkdir -p $(BIN)
	$(call timed,build $(@F),CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.release=$(VERSION)' -o $@ ./cmd/$(@F) && touch $@)

$(BIN)/robustness-clients: $(GO_SOURCES) $(shell find test/robustness -name '*.go' -not -name '*_test.go' 2>/dev/null)
	@mkdir -p $(BIN)
	$(call timed,build $(@F),CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ ./test/robustness/cmd/$(@F))

# The same program for instances and gateways, without the drivers of evidence buckets: an agent has no use for them.
$(BIN)/theseus-instance: $(GO_SOURCES)
	@mkdir -p $(BIN)
	$(call timed,build $(@F),CGO_ENABLED=0 go build -trimpath -tags nobuckets -ldflags '-s -w -X main.release=$(VERSION)' -o $@ ./cmd/theseus && touch $@)

$(BIN)/helm: tools/helm/go.mod tools/helm/go.sum
	@mkdir -p $(BIN)
	$(call timed,build $(@F),cd tools/helm && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(abspath $@) helm.sh/helm/v4/cmd/helm && touch $(abspath $@))

# The version that the tests know the checksum of.
$(BIN)/tools/karpenter-kwok: test/integration/modules_test.go
	@mkdir -p $(BIN)/tools/karpenter
	version=$$(sed -n 's/.*"sigs.k8s.io\/karpenter", "\([^"]*\)".*/\1/p' $<) && test -n "$$version" && \
		cd / && GOBIN=$(abspath $(BIN))/tools/karpenter CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' sigs.k8s.io/karpenter/kwok@$$version
	mv $(BIN)/tools/karpenter/kwok $@ && rmdir $(BIN)/tools/karpenter && touch $@

$(BIN)/tools/staticcheck $(BIN)/tools/gofumpt $(BIN)/tools/controller-gen $(BIN)/tools/protoc-gen-go $(BIN)/tools/protoc-gen-go-grpc &: tools/go.mod tools/go.sum
	@mkdir -p $(BIN)/tools
	$(call timed,build the tools,cd tools && GOBIN=$(abspath $(BIN))/tools go install tool && touch $(abspath $(BIN))/tools/*)

.PHONY: packages
packages: ## Install the Debian packages that building and testing need
	@hack/install-packages.sh lab/packages.txt images/packages-host.txt hack/packages.txt

.PHONY: generate
generate: $(BIN)/tools/controller-gen $(BIN)/tools/protoc-gen-go $(BIN)/tools/protoc-gen-go-grpc ## Deep copies, CRDs and the agent protocol, after a change of api/ or agent.proto
	$(BIN)/tools/controller-gen object paths=./api/...
	$(BIN)/tools/controller-gen crd:maxDescLen=400 paths=./api/... output:crd:dir=charts/theseus/crds
	PATH=$(abspath $(BIN))/tools:$$PATH protoc --go_out=. --go_opt=module=theseus.dev/theseus --go-grpc_out=. --go-grpc_opt=module=theseus.dev/theseus internal/agentapi/agentpb/agent.proto

.PHONY: fmt
fmt: $(BIN)/tools/gofumpt ## Format every Go file
	$(BIN)/tools/gofumpt -w $$(git ls-files -co --exclude-standard '*.go' | grep -v -e zz_generated -e '\.pb\.go$$')

# The lab's executables. Included by the root Makefile, which may set
#   BIN    where executables go                     (default: bin)
#   BUILD  where intermediate files go              (default: build)
# and usable alone: make -f lab/lab.mk lab-binaries
BIN   ?= bin
BUILD ?= build

KUBE_VERSION   := v1.37.2
LAB_COMPONENTS := kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy
LAB_CNI        := ptp host-local loopback

# Version checks between components fail on binaries that do not know their
# version, and `go build` alone leaves it empty.
LAB_LDFLAGS := -s -w \
  -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) \
  -X k8s.io/component-base/version.gitMajor=1 \
  -X k8s.io/component-base/version.gitMinor=37 \
  -X k8s.io/component-base/version.gitTreeState=clean

# $(call timed,WHAT,COMMAND) says what is done and, when it was, how long it took. A command of several parts joins them with &&.
timed = @start=$$(date +%s) && echo "▸ $(1) …" && { $(2); } && echo "✓ $(1) ($$(($$(date +%s) - start)) s)"

lab_build = $(call timed,build $(@F),cd lab && CGO_ENABLED=0 go build -trimpath -ldflags '$(LAB_LDFLAGS)' -o $(abspath $@) ./cmd/$(@F) && touch $(abspath $@))
lab_mod   := lab/go.mod lab/go.sum lab/lab.mk

.PHONY: lab-binaries
lab-binaries: $(BIN)/lab $(BIN)/lab-init $(BIN)/pause $(BIN)/kube $(BIN)/etcd $(BIN)/kubectl $(BIN)/coredns $(BIN)/containerd

# Everything of Kubernetes but its client, in one executable: 4 to 8 minutes
# from an empty cache on two cores, under a minute after that.
$(BIN)/kube: $(wildcard lab/cmd/kube/*.go) $(lab_mod)
	@mkdir -p $(BIN)
	$(lab_build)
	@for c in $(LAB_COMPONENTS); do ln -sf kube $(BIN)/$$c; done

# The names integration tests (envtest) look for beside each other.
$(addprefix $(BIN)/,$(LAB_COMPONENTS)): $(BIN)/kube

$(BIN)/etcd: $(wildcard lab/cmd/etcd/*.go) $(lab_mod)
	@mkdir -p $(BIN)
	$(lab_build)

$(BIN)/kubectl: $(wildcard lab/cmd/kubectl/*.go) $(lab_mod)
	@mkdir -p $(BIN)
	$(lab_build)

$(BIN)/coredns: $(wildcard lab/cmd/coredns/*.go) $(lab_mod)
	@mkdir -p $(BIN)
	$(lab_build)

$(BIN)/pause: $(wildcard lab/cmd/pause/*.go) $(lab_mod)
	@mkdir -p $(BIN)
	$(lab_build)

lab_sources := $(shell find lab -name '*.go' -not -name '*_test.go' -not -path 'lab/cmd/kube/*' 2>/dev/null)

$(BIN)/lab $(BIN)/lab-init: $(lab_sources) $(lab_mod)
	@mkdir -p $(BIN)
	$(lab_build)

# containerd, runc and the CNI plugins come from the machine's own Debian
# mirror and are unpacked beside the rest; nothing is installed.
$(BIN)/containerd: lab/packages-extract.txt lab/lab.mk
	@mkdir -p $(BIN)/cni $(BUILD)/lab-debs
	@rm -rf $(BUILD)/lab-debs && mkdir -p $(BUILD)/lab-debs
	$(call timed,fetch containerd,cd $(BUILD)/lab-debs && pkgs="$$(grep -v '^#' $(abspath lab/packages-extract.txt))" && \
	  get="apt-get -q -o APT::Sandbox::User=root download" && \
	  { $$get $$pkgs || { apt-get -q update && $$get $$pkgs; }; } && \
	  for d in *.deb; do dpkg -x $$d x; done)
	install -m 755 $(addprefix $(BUILD)/lab-debs/x/usr/bin/,containerd containerd-shim-runc-v2 ctr) $(BUILD)/lab-debs/x/usr/sbin/runc $(BIN)/
	install -m 755 $(addprefix $(BUILD)/lab-debs/x/usr/lib/cni/,$(LAB_CNI)) $(BIN)/cni/
	@rm -rf $(BUILD)/lab-debs && touch $@

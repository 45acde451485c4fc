# Comparing failovers. Included by the root Makefile, which sets BIN, BUILD and VERSION.
BENCH_N          ?= 10
BENCH_FLAGS      ?=
PATRONI_IMAGE    ?= theseus.local/patroni:pg17
PATRONI_TAR       = $(IMAGES)/patroni-pg17.tar

$(PATRONI_TAR): $(IMAGEBUILD) $(BIN)/theseus bench/patroni/packages-operand.txt images/suites.txt images/slim.txt
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(IMAGEBUILD) operand -recipe bench/patroni -major 17 -name $(PATRONI_IMAGE) -out $@ $(IMAGE_FLAGS)

$(BIN)/tools/failover: $(GO_SOURCES) $(shell find bench -name '*.go' -not -name '*_test.go') $(wildcard bench/failover/internal/*/*.yaml)
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build -trimpath -o $@ ./bench/failover

.PHONY: image-patroni bench-failover bench-report
image-patroni: $(PATRONI_TAR)
bench-failover: packages binaries images image-patroni $(BIN)/tools/failover ## Theseus and Patroni under the same faults, in turns; about 2½ hours; BENCH_N=2 for a short one, BENCH_FLAGS=-resume to go on
	$(BIN)/tools/failover -n $(BENCH_N) -version '$(VERSION)' $(BENCH_FLAGS)

bench-report: $(BIN)/tools/failover ## Make the table and the plot anew from the results that are there
	$(BIN)/tools/failover -n $(BENCH_N) -version '$(VERSION)' -report

.PHONY: bench-replacement
bench-replacement: packages binaries images ## An instance of BENCH_MB (5120) is replaced under load, against pg_basebackup by hand
	REPLACED_MB=$(or $(BENCH_MB),5120) REPLACED_OUT=$(abspath bench/results)/replacement.md $(MAKE) test-e2e RUN=TestALargeInstanceIsReplaced

# Building the images. Included by the root Makefile; every variable can be overridden.
BIN            ?= bin
BUILD          ?= build
PG_MAJOR       ?= 17
OPERAND_IMAGE  ?= theseus.local/operand:pg$(PG_MAJOR)
OPERATOR_IMAGE ?= theseus.local/operator:dev
IMAGE_VERSION  ?=
# FRESH=1 asks the mirror for its newest packages instead of using the cached root file system.
FRESH          ?=
# The newest timestamp inside the images. It is a constant so that equal inputs give
# equal images on any day; 1767225600 is the first second of 2026.
SOURCE_DATE_EPOCH ?= 1767225600

IMAGES       := $(BUILD)/images
OPERAND_TAR   = $(IMAGES)/operand-pg$(PG_MAJOR).tar
OPERATOR_TAR  = $(IMAGES)/operator.tar
IMAGEBUILD   := $(BIN)/tools/imagebuild
IMAGE_LISTS  := images/suites.txt images/packages-operand.txt images/slim.txt
IMAGE_FLAGS   = -cache $(IMAGES)/cache -version "$(IMAGE_VERSION)" $(if $(FRESH),-fresh)

$(IMAGEBUILD): go.mod $(shell find images -name '*.go' -not -name '*_test.go')
	@mkdir -p $(@D)
	$(call timed,build $(@F),CGO_ENABLED=0 go build -trimpath -o $@ ./images/cmd/imagebuild)

$(IMAGES)/operand-pg%.tar: $(IMAGEBUILD) $(BIN)/theseus-instance $(IMAGE_LISTS)
	$(call timed,make $(@F),SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(IMAGEBUILD) operand -major $* -binary $(BIN)/theseus-instance \
		-name $(if $(filter $*,$(PG_MAJOR)),$(OPERAND_IMAGE),theseus.local/operand:pg$*) -out $@ $(IMAGE_FLAGS))

$(OPERATOR_TAR): $(IMAGEBUILD) $(BIN)/theseus $(IMAGE_LISTS)
	$(call timed,make $(@F),SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(IMAGEBUILD) operator -major $(PG_MAJOR) -binary $(BIN)/theseus \
		-name $(OPERATOR_IMAGE) -out $@ $(IMAGE_FLAGS))

# Both share a cached root file system, so they are made one after the other.
$(OPERATOR_TAR): | $(OPERAND_TAR)

.PHONY: images image-operand image-operator image-operand-15
images: image-operand image-operator ## Build the operand and operator images (build/images/*.tar), without Docker
image-operand: $(OPERAND_TAR)
image-operator: $(OPERATOR_TAR)
image-operand-15: $(IMAGES)/operand-pg15.tar ## Build the operand image with PostgreSQL 15

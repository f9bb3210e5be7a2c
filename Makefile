# Everything that people do with this repository. "make help" lists it.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# A test binary of its own for each package: two at a time fit two cores and their databases.
TESTFLAGS ?= -race -timeout 40m -p 2

.PHONY: help deps build test bench demo lint fmt clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## install what is missing (Debian packages; needs root)
	@scripts/install-deps.sh

build: ## leave bin/sluice and bin/sluice-gateway
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/sluice ./cmd/sluice-gateway

test: deps build ## install what is missing and run every test
	$(GO) vet ./...
	$(GO) test $(TESTFLAGS) $$($(GO) list ./... | grep -v /test/vm)
	$(GO) test $(TESTFLAGS) ./test/vm/... # alone: its machines take both cores

bench: deps build ## run the benchmarks; prints a table, writes bench/results/*.json
	$(GO) run ./bench

demo: deps build ## a query through an injected gateway, on this machine; ONCE=1 ends after the answer
	@scripts/demo.sh

lint: ## run golangci-lint (pinned; built on first use)
	@scripts/lint.sh

fmt: ## format the code
	gofmt -w .

clean: ## remove what was built
	rm -rf bin bench/results

# lessor: two commands to begin with.
#   make quickstart   builds lessor, and shows it lease, renew, expire and audit a real PostgreSQL credential
#   make test         installs the servers that the tests need, and runs everything

export CGO_ENABLED ?= 0
GO      ?= go
VERSION ?= $(shell scripts/version)
LDFLAGS  = -s -w -X github.com/lessor-dev/lessor/internal/version.Version=$(VERSION)
SEED    ?= 0
ROLES   ?= 10000

.PHONY: build quickstart test check race bench bench-cluster bench-rotation bench-scale soak sim torture drill others fuzz dist release docs servers clients clean

build: ## one static binary: bin/lessor
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lessor ./cmd/lessor

quickstart: servers build ## the main job, narrated; KEEP=1 leaves it running
	@KEEP='$(KEEP)' scripts/quickstart bin/lessor

servers: ## installs PostgreSQL on Debian where it is missing; elsewhere says what to install
	@scripts/servers

test: servers build ## everything: vet, unit and system tests, real clients (which take Node.js)
	@scripts/servers tests
	scripts/check
	$(GO) test -timeout 30m ./...
	cd test/clients && LESSOR_LOOPS=$${LESSOR_LOOPS:-2m} $(GO) test ./...

race: servers ## the same under the race detector
	@scripts/servers tests
	CGO_ENABLED=1 $(GO) test -race -timeout 30m ./...

check: ## gofmt, vet, staticcheck, import rules, linked modules, govulncheck where its data can be had
	scripts/check

sim: servers ## a long seeded simulation; SEED=n replays one
	LESSOR_SIM_LONG=1 LESSOR_SIM_SEED=$(SEED) $(GO) test ./internal/sim -run TestSimulation -v -timeout 60m

torture: servers ## three nodes over PostgreSQL with a standby, under faults, for LESSOR_TORTURE (1h); SEED=n replays a run's faults
	LESSOR_TORTURE=$${LESSOR_TORTURE:-1h} LESSOR_TORTURE_SEED=$(SEED) $(GO) test ./internal/torture -run 'TestTorture$$' -count 1 -v -timeout 0

drill: servers ## LESSOR_DRILL (100) rotations at each kind of database, under services that never stop: by the Go client, lessor run, the agent; lessor is killed in each step
	@scripts/servers tests
	LESSOR_DRILL=$${LESSOR_DRILL:-100} $(GO) test ./internal/drill -run 'TestDrill$$' -count 1 -v -timeout 0

others: ## the drivers' tests at servers that are not this machine's: MySQL, Valkey, Samba, and newer versions of all; as root, on Linux
	scripts/others

bench: servers build ## writes a table of figures beside their limits, measured in the same run
	$(GO) run ./test/bench -lessor bin/lessor

bench-cluster: servers build ## the same load on one node embedded, on one and on three over PostgreSQL, beside their limits
	$(GO) run ./test/bench -lessor bin/lessor -cluster

bench-rotation: servers build ## ROLES (10,000) rotated by time, beside databases that are dead, too; a rotation under 10,000 holders; 25 minutes
	$(GO) run ./test/bench -lessor bin/lessor -rotation -roles $(ROLES)

bench-scale: servers build ## what leases, secrets, policies and audit records cost as they grow; an hour, 60 GB of disk; plots go to docs/scale
	$(GO) run ./test/bench -lessor bin/lessor -scale

soak: servers build ## an hour at half load with leases coming and going: does anything grow?
	$(GO) run ./test/bench -lessor bin/lessor -soak 1h

dist: ## what is released, for amd64 and arm64: programs, bills of materials, archives, Debian packages, image folders
	scripts/dist

release: ## the same for this machine, built twice and compared, and tried: package, service, image
	scripts/dist $(shell $(GO) env GOARCH)
	scripts/reproducible $(shell $(GO) env GOARCH)
	scripts/package-test
	scripts/image

docs: servers build ## runs every command and program in the documents
	@scripts/servers tests
	scripts/docs-test

fuzz: ## every parser for ten minutes; the inputs that reach what no others do are kept
	KEEP=1 scripts/fuzz 10m

clean:
	rm -rf bin dist

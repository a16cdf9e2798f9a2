# criod. `make help` lists what there is.

CARGO ?= cargo
GO ?= go
PREFIX ?= /usr
DESTDIR ?=
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system

# Where cargo builds; another place is CARGO_TARGET_DIR's to name.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# The programs in the one folder that the tests and the demo take them from.
STAGE := $(TARGET)/stage
MUSL := $(shell uname -m)-unknown-linux-musl
export CARGO_TARGET_DIR := $(TARGET)
export CRIOD_BIN := $(STAGE)

LOCKED := --locked
INSTALL := install

.DELETE_ON_ERROR:
.PHONY: help build monitors daemon failpoints install demo test lint fmt-check clippy house deny \
	unit e2e conformance kubernetes chaos soak vm bench bench-memory setup clean

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | \
		awk -F'\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

# --- building

build: daemon monitors ## Build everything in release mode, into target/stage

# The test images' program shares the daemon's dependencies, and so is built along with it.
daemon:
	$(CARGO) build $(LOCKED) --release -p criod -p test-images
	@mkdir -p $(STAGE)
	@$(INSTALL) -C -m 755 $(addprefix $(TARGET)/release/,criod test-images) $(STAGE)

# Each in an invocation of its own: what one asks of a shared dependency would be built into all.
monitors:
	$(CARGO) build $(LOCKED) --profile monitor --target $(MUSL) -p criod-monitor
	$(CARGO) build $(LOCKED) --profile monitor --target $(MUSL) -p criod-keeper
	$(CARGO) build $(LOCKED) --profile monitor --target $(MUSL) -p criod-pause
	$(CARGO) build $(LOCKED) --profile stream --target $(MUSL) -p criod-stream
	@mkdir -p $(STAGE)
	@$(INSTALL) -C -m 755 \
		$(addprefix $(TARGET)/$(MUSL)/monitor/,criod-monitor criod-keeper criod-pause) \
		$(TARGET)/$(MUSL)/stream/criod-stream $(STAGE)

# criod as a test kills it at each durable step; in a folder of its own, with what is compiled shared.
failpoints:
	CARGO_BUILD_BUILD_DIR=$(TARGET) $(CARGO) build $(LOCKED) -p criod --features failpoints \
		--target-dir $(TARGET)/failpoints
	@mkdir -p $(STAGE)
	@$(INSTALL) -C -m 755 $(TARGET)/failpoints/debug/criod $(STAGE)/criod-failpoints

install: ## Install below DESTDIR with PREFIX (default /usr), building first where needed
	@if [ -z "$(NO_BUILD)" ]; then $(MAKE) --no-print-directory build; fi
	$(INSTALL) -D -m 755 $(STAGE)/criod $(DESTDIR)$(PREFIX)/bin/criod
	for each in criod-monitor criod-keeper criod-pause criod-stream; do \
		$(INSTALL) -D -m 755 $(STAGE)/$$each $(DESTDIR)$(PREFIX)/libexec/criod/$$each || exit 1; \
	done
	$(INSTALL) -d -m 755 $(DESTDIR)$(SYSCONFDIR)/crio/crio.conf.d $(DESTDIR)$(PREFIX)/share/criod
	tests/setup/keep conf/crio.conf $(DESTDIR)$(SYSCONFDIR)/crio/crio.conf
	tests/setup/keep conf/registries.conf $(DESTDIR)$(SYSCONFDIR)/containers/registries.conf
	tests/setup/keep conf/policy.json $(DESTDIR)$(SYSCONFDIR)/containers/policy.json
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(PREFIX)/share/criod/crio.conf.d conf/crio.conf.d/*
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(PREFIX)/share/criod/cni conf/*.conflist
	$(INSTALL) -d -m 755 $(DESTDIR)$(UNITDIR)
	for each in systemd/*; do \
		sed -e 's|/usr/bin/criod|$(PREFIX)/bin/criod|; s|/usr/libexec/criod|$(PREFIX)/libexec/criod|' \
			$$each >$(DESTDIR)$(UNITDIR)/$${each##*/} || exit 1; \
		chmod 644 $(DESTDIR)$(UNITDIR)/$${each##*/}; \
	done
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/criod README.md LICENSE

# --- showing

demo: ## Show that killing criod and a monitor loses nothing
	@tests/setup/install demo
	@$(MAKE) --no-print-directory --quiet build
	@tests/demo/run

# --- testing

test: ## Everything below, a check that nothing is left behind, and totals
	@tests/setup/stages setup lint build unit e2e conformance kubernetes bench-memory demo

setup: ## Install what the tests need and is missing
	@tests/setup/install test

lint: fmt-check clippy house deny ## Formatting, clippy, the house's rules, licences and bans

fmt-check:
	$(CARGO) fmt --all -- --check

clippy:
	$(CARGO) clippy $(LOCKED) --workspace --all-targets --features api-monitor/ttrpc -- -D warnings
	$(CARGO) clippy $(LOCKED) -p criod -p failpoint -p storage -p namespace -p cni -p hostport -p cgroup \
		--features criod/failpoints,failpoint/enabled --all-targets -- -D warnings

house:
	$(CARGO) run $(LOCKED) --quiet -p house

deny:
	$(CARGO) deny --offline --all-features check --hide-inclusion-graph bans licenses sources

unit: ## Tests of each crate
	$(CARGO) test $(LOCKED) --no-fail-fast --workspace --exclude e2e --features api-monitor/ttrpc
	$(CARGO) test $(LOCKED) -p failpoint --features enabled

e2e: build failpoints ## Tests of the built programs with real runtimes, plugins and registries
	$(CARGO) test $(LOCKED) --no-fail-fast -p e2e

conformance: build ## Specs of the CRI, driven by the kubelet's client library
	@tests/setup/conformance

kubernetes: build ## Pods of a real kubelet, alone and joined to an API server, with kubectl
	@tests/setup/kubernetes

vm: build ## Debian with systemd and pure cgroup version 2, in a virtual machine
	@tests/setup/install vm
	@tests/vm/run $(VM_PARTS)

chaos: build ## Two minutes of load while criod, monitors, plugins, registry and disk fail
	@tests/setup/chaos --seconds 120 --pods 40

soak: build ## The same for half an hour, and long versions of other tests
	@tests/setup/chaos --seconds 1800 --pods 40
	CRIOD_KILL_SECONDS=600 $(CARGO) test $(LOCKED) -p e2e --test monitor -- disks::kills output::hundreds
	CRIOD_POWER=all $(CARGO) test $(LOCKED) -p e2e --test power

bench-memory: build ## The memory of monitors and daemon against their promises
	@tests/setup/bench memory

bench: build ## Everything measured, beside containerd and conmon
	@tests/setup/install bench
	@tests/setup/bench all

clean: ## Remove what was built
	$(CARGO) clean

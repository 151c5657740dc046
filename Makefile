# vmpool: `make test` sets everything up on a fresh machine and runs every test; `make check` is the fast gate.
# Caches and built binaries live in $(CACHE), never in the repository.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmpool
# One environment for each checkout and each set of pins: two checkouts never share an editable install.
PINS := $(shell { sed -n '/^\[project/,/^\[tool/p' pyproject.toml; cat requirements/*.txt; } | sha256sum | cut -c1-12)
PLACE := $(shell pwd | sha256sum | cut -c1-8)
VENV := $(CACHE)/venvs/$(PLACE)-$(PINS)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Far sides of the tests that cannot share our environment: moto needs an older dateutil than kubernetes.
MOTO := $(CACHE)/venvs/moto-$(shell sha256sum requirements/moto.txt | cut -c1-12)
export VMPOOL_MOTO_SERVER := $(MOTO)/bin/moto_server
PACKAGES := libvirt-daemon-system libvirt-clients libvirt-dev qemu-system-x86 qemu-utils dnsmasq-base \
	busybox-static linux-image-cloud-amd64 pkg-config gcc slapd ldap-utils libldap-dev libsasl2-dev prometheus \
	faketime
# What a node needs beside: containers, their network, and a Debian to build the image from.
NODE_PACKAGES := runc containernetworking-plugins debootstrap debian-archive-keyring nftables iproute2
AUDIT := $(CACHE)/venvs/audit-$(shell sha256sum requirements/audit.txt | cut -c1-12)
# Two processes with a control plane each share the first; the second have the machine to themselves.
TOGETHER := tests/contract tests/control_plane tests/guide tests/chart tests/deploy tests/rights
ALONE := tests/simulation tests/faults tests/crash tests/e2e
# Which benchmarks, by name; empty is all of them. Medians are over so many pairs of ours and the floor.
BENCH ?=
PAIRS ?= 5
# Minutes in which ``make faults-all`` and ``make faults`` begin trials, minutes of ``make hammer``, seeds of
# ``make simulate``.
MINUTES ?= 60
SAMPLE ?= 15
HAMMER ?= 30
SEEDS ?= 2000

.PHONY: help setup system check test test-node audit test-guide faults faults-all hammer simulate test-e2e test-crash bench bench-profile plots demo demo-stop generate \
	requirements format clean

help: ## Show the targets.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Make the Python environment from the pinned, hashed requirements.

$(READY):
	@echo "setting up $(VENV) (about two minutes the first time)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	@# Real machines are an extra: without libvirt's headers the rest works, and their tests say why they skip.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/libvirt.txt \
		|| echo "note: libvirt-python could not be built; tests of real machines will skip"
	@# So is LDAP.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/ldap.txt \
		|| echo "note: bonsai could not be built; tests of LDAP will skip"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(MOTO)/.ready:
	@echo "setting up $(MOTO) (about a minute the first time)"
	$(PYTHON) -m venv --clear $(MOTO)
	$(MOTO)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/moto.txt
	touch $@

system: ## Install what real machines, LDAP and alerts need (Debian, root); elsewhere say what is left out.
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && [ -z "$${VMPOOL_NO_SYSTEM_PACKAGES:-}" ]; then \
		if ! dpkg -s $(PACKAGES) > /dev/null 2>&1; then \
			echo "installing Debian packages for real machines (VMPOOL_NO_SYSTEM_PACKAGES=1 leaves them out)"; \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends $(PACKAGES) > /dev/null; } \
				|| echo "note: packages could not be installed; tests of real machines will skip"; \
		fi; \
	else echo "note: not root on Debian; tests of real machines run only if libvirt and QEMU are there"; fi

check: setup ## Format, lint, strict types, import contracts, unit tests: under a minute.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy operator/vmpool bench
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/unit tests/contract/test_generated.py tests/contract/test_layout.py

test: system setup $(MOTO)/.ready check audit ## Run every test that a machine without a container engine can.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m vmpool.dev.helm
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TOGETHER)
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/python -m tests.faults sample --minutes $(SAMPLE) --jobs 8 --state "$$(mktemp -d)/trials.jsonl"
	@if $(BIN)/python -m vmpool.dev.node --cached; then $(BIN)/python -m pytest -m "not kind" tests/node; \
		else echo "note: no node's binaries are built; make test-node builds them, and tries the chart on one"; fi

test-node: system setup ## Install the chart on a real node: kubelet and containerd, built once (root, Debian).
	$(MAKE) PACKAGES="$(NODE_PACKAGES)" system
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m vmpool.dev.helm
	$(BIN)/python -m vmpool.dev.node
	$(BIN)/python -m pytest -m "not kind" tests/node

audit: setup $(AUDIT)/.ready ## Ask whether a pinned package has a known weakness.
	VMPOOL_PIP_AUDIT=$(AUDIT)/bin/pip-audit $(BIN)/python -m vmpool.dev.audit requirements/*.txt

$(AUDIT)/.ready:
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt
	touch $@

test-guide: system setup $(MOTO)/.ready ## Try the operator guide's sentences, one test each.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m pytest tests/guide

faults: setup ## Break the operator's requests, one trial each: a part of all trials, 15 minutes on two cores.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m tests.faults sample --minutes $(SAMPLE) --jobs 8 --state "$$(mktemp -d)/trials.jsonl"

faults-all: setup ## Every trial that bench/faults/trials.jsonl lacks; MINUTES=60 of them.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m tests.faults all --together --minutes $(MINUTES) --jobs 8
	$(BIN)/python -m tests.faults report

hammer: setup ## Kill operators and gateways every 0.5 to 5 s under checkout load, for HAMMER=30 minutes.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m tests.faults.hammer --minutes $(HAMMER) --seed 0

simulate: setup ## Play SEEDS=2000 stories of the engine on a virtual clock.
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs 2

test-e2e: system setup ## Run the tests with real machines.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m pytest tests/e2e

test-crash: setup ## Run the tests that kill the operator.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m pytest tests/crash

bench: setup ## Measure what the operator costs beside its floor; BENCH=fill for one, PAIRS=5.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m bench $(BENCH) --pairs $(PAIRS)

bench-profile: setup ## Profile every benchmark into bench/profiles; BENCH=fill for one.
	$(BIN)/python -m vmpool dev build
	$(BIN)/python -m bench.profile $(BENCH)

plots: setup ## Draw the plots and tables of docs/performance.md from bench/results.
	$(BIN)/python -m bench.page

demo: setup ## Show it: a real API server, the operator, a simulated cloud, pools that fill.
	$(BIN)/python -m vmpool demo

demo-stop: setup ## End everything that the demo has started.
	$(BIN)/python -m vmpool demo --stop

generate: setup ## Write the files that are made from the code: CRDs, reference pages, and the base for Git.
	$(BIN)/python -m vmpool.cli.generate
	$(BIN)/python -m vmpool.dev.helm
	$(BIN)/python -m vmpool.cli.gitbase

format: setup ## Format and fix what can be fixed.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

requirements: setup ## Pin again: hashes of every file, no index address.
	$(BIN)/python -m pip install --quiet pip-tools==7.6.2
	for name in runtime test; do \
		$(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
			--no-header --strip-extras --allow-unsafe --annotation-style=line --extra dev \
			$$([ $$name = test ] && echo --extra test --extra bench) -o requirements/$$name.txt pyproject.toml; done

clean: ## Remove this checkout's Python environment.
	rm -rf $(VENV)

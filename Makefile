# Both `make demo` and `make test` install all they need on a bare Debian 12 (as root) and may be repeated.
VENICE = .venv/bin/venice

.PHONY: demo test test-long lint clean setup docs bench data

setup:
	@tools/setup

demo: setup  ## three lab hosts, a deployment over SSH, one event traced into PostgreSQL
	@$(VENICE) lab up --hosts 3
	@$(VENICE) deploy --inventory lab
	@$(VENICE) status --inventory lab

test: lint  ## everything: lint, unit, one engine, real hosts, molecule
	@.venv/bin/python -m pytest $(PYTEST)

test-long: setup  ## the few that take minutes for what others show in part
	@.venv/bin/python -m pytest -m long $(PYTEST)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/ansible-lint --offline

docs: setup  ## docs/variables.md from the roles' argument specs
	@.venv/bin/python tools/variables.py

bench: setup  ## deployments on the lab; the engines need an inventory that has some
	@.venv/bin/python benchmarks/deploy.py
	@echo "the stream processors, side by side: .venv/bin/python -m benchmarks.engines -i INVENTORY (docs/benchmarks.md)"

N ?= 10000
data: setup  ## N transactions (N=10000), sent by ten processes at once
	@$(VENICE) data transactions -n $(N)

clean:  ## the lab, the virtual environment; images and downloads stay in ~/.cache/venice
	@if [ -x $(VENICE) ]; then $(VENICE) lab down; fi
	@rm -rf .venv .pytest_cache .ruff_cache .ansible

# Thin on purpose: every target calls one script or tool in the project's own environment.
SHELL := /bin/bash
ENV := bash scripts/setup.sh && . scripts/env.sh &&

.PHONY: demo test check setup clean

demo:            ## quantize the demo policy, serve it over ROS 2, and measure it
	@$(ENV) python -m demo.run_demo

test:            ## all tests
	@$(ENV) python -m pytest test $(PYTEST_ARGS)

check:           ## format, lint, types, import contracts
	@$(ENV) ruff format --check .
	@$(ENV) ruff check .
	@$(ENV) mypy
	@$(ENV) lint-imports

setup:           ## only make the environment
	@bash scripts/setup.sh

clean:           ## remove the environment and everything built
	rm -rf .venv .cache build install log demo_output *.egg-info

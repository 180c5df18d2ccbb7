# Thin on purpose: every target calls one script or tool in the project's own environment.
SHELL := /bin/bash
ENV := bash scripts/setup.sh && . scripts/env.sh &&

.PHONY: demo test check score-check closed-loop setup clean

demo:            ## quantize the demo policy, serve it over ROS 2, and measure it
	@$(ENV) python -m demo.run_demo

test:            ## all tests
	@$(ENV) python -m pytest test $(PYTEST_ARGS)

check:           ## format, lint, types, import contracts
	@$(ENV) ruff format --check .
	@$(ENV) ruff check .
	@$(ENV) mypy
	@$(ENV) lint-imports

score-check:     ## does the score rank rows as quantizing them one at a time does?
	@$(ENV) python -m demo.assemble --out demo_output/model >/dev/null && qvla measure \
		demo_output/model demo/bags/calibration_* --out demo_output/score_check.safetensors \
		--probes 8 --exact-rows $(or $(ROWS),300)

closed-loop:     ## success in LIBERO, float and packed (after make demo; installs the simulator)
	@$(ENV) bash scripts/closed_loop.sh

setup:           ## only make the environment
	@bash scripts/setup.sh

clean:           ## remove the environment and everything built
	rm -rf .venv .cache build install log demo_output *.egg-info

# Thin on purpose: every target calls one script or tool in the project's own environment.
SHELL := /bin/bash
ENV := bash scripts/setup.sh && . scripts/env.sh &&

.PHONY: demo test check score-check report evidence-method evidence-node closed-loop setup clean

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
		--frames 8 --exact-rows $(or $(ROWS),300)

report:          ## a page about what the demo's quantization did (after make demo)
	@$(ENV) qvla report demo_output --out demo_output/quantization.html

evidence-method: ## everything claimed of the method, measured anew; an hour on two idle cores
	@$(ENV) python -m demo.evidence_method --out evidence/method.json

evidence-node:   ## everything claimed of the node, measured anew (after make demo)
	@$(ENV) python -m demo.node_evidence --out evidence/node.json

closed-loop:     ## success in LIBERO, float and packed (after make demo; installs the simulator)
	@$(ENV) bash scripts/closed_loop.sh

setup:           ## only make the environment
	@bash scripts/setup.sh

clean:           ## remove the environment and everything built
	rm -rf .venv .cache build install log demo_output *.egg-info

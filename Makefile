# Thin on purpose: every target calls one script or tool in the project's own environment.
SHELL := /bin/bash
ENV := bash scripts/setup.sh && . scripts/env.sh &&

.PHONY: demo test check score-check report evidence-method evidence-7b evidence-runtime evidence-node policy closed-loop closed-loop-cells closed-loop-larger closed-loop-calibration evidence-closed-loop test-transformers setup clean

demo:            ## quantize the demo policy, serve it over ROS 2, and measure it
	@$(ENV) python -m demo.run_demo

test:            ## all tests
	@$(ENV) python -m pytest test $(PYTEST_ARGS)

test-transformers: ## the tests that depend on transformers, with 4.49, 4.57 and the newest 5.x
	@$(ENV) bash scripts/test_transformers.sh

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

evidence-7b:     ## everything claimed of 7B models; 25 minutes, 24 GB, 60 GB of disk (FULL=1: an hour)
	@$(ENV) python -m demo.evidence_7b $(if $(FULL),--full) $(EVIDENCE_ARGS)

evidence-runtime: ## everything claimed of kernels and loading, measured anew; a quarter of an hour
	@$(ENV) python -m demo.evidence_runtime $(EVIDENCE_ARGS)

evidence-node:   ## everything claimed of the node, measured anew; at most half an hour
	@$(ENV) python -m demo.node_evidence --out evidence/node.json $(EVIDENCE_ARGS)

policy:          ## collect demonstrations and train the demo policy; hours (SIZE=large: 104 M)
	@$(ENV) bash scripts/closed_loop.sh demo.train.policy $(or $(SIZE),small) $(POLICY_ARGS)

closed-loop:     ## success in LIBERO: float, packed, through ROS 2 (after make demo; installs it)
	@$(ENV) bash scripts/closed_loop.sh paired $(SIM_ARGS)

closed-loop-cells: ## success of every method at every budget; hours, can be interrupted
	@$(ENV) bash scripts/closed_loop.sh cells $(SIM_ARGS)

closed-loop-larger: ## success of the larger policy's checkpoints (after make policy SIZE=large)
	@$(ENV) bash scripts/closed_loop.sh demo.larger_policy $(SIM_ARGS)

closed-loop-calibration: ## success of checkpoints that were calibrated with other states
	@$(ENV) bash scripts/closed_loop.sh demo.calibration_ablation $(SIM_ARGS)

evidence-closed-loop: ## what the kept episodes tell; SIMULATE=1 runs them anew, hours
	@$(ENV) $(if $(SIMULATE),bash scripts/closed_loop.sh,python -m) demo.evidence_closed_loop \
		--out evidence/closed-loop.json $(if $(SIMULATE),--simulate) $(SIM_ARGS)

setup:           ## only make the environment
	@bash scripts/setup.sh

clean:           ## remove the environment and everything built
	rm -rf .venv .cache build install log demo_output *.egg-info

#!/usr/bin/env bash
# Closed-loop success of the demo policy, float and packed, on LIBERO's official initial states.
# Needs the checkpoint of `make demo` and the system packages libegl1 and libgl1-mesa-dri.
# EPISODES (a task) and WORKERS can be set; a run that was interrupted goes on where it stopped.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv-libero"
out="$root/demo_output/closed_loop"
checkpoint="$root/demo_output/policy.qvla.safetensors"

if [ ! -f "$checkpoint" ]; then
    echo "closed-loop: $checkpoint is missing; run make demo first" >&2
    exit 2
fi
if [ ! -f "$venv/ready" ]; then
    # The simulator pins packages that the robot's environment must not be held back by.
    echo "closed-loop: installing LIBERO into ${venv#"$root"/} (2 GB)" >&2
    "$root/.venv/bin/python" -m venv "$venv"
    "$venv/bin/pip" install --quiet "${QVLA_TORCH:-torch==2.13.0}"
    "$venv/bin/pip" install --quiet ".[libero,bag]"
    touch "$venv/ready"
fi
export MUJOCO_GL="${MUJOCO_GL:-egl}" PYTHONPATH="$root" OMP_NUM_THREADS=1
mkdir -p "$out"
rollout() {
    "$venv/bin/python" -m qvla_ros.cli.main rollout --suite libero_spatial --tasks 0,2 \
        --episodes "${EPISODES:-50}" --workers "${WORKERS:-2}" "$@"
}
rollout --policy demo_output/model --out "$out/float.jsonl"
rollout --policy "$checkpoint" --out "$out/packed.jsonl" --against "$out/float.jsonl"

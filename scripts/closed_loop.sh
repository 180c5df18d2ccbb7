#!/usr/bin/env bash
# Runs closed-loop episodes on LIBERO's official initial states: closed_loop.sh paired|cells|keep ...
# (see demo/closed_loop_runs.py), or another module of the demo that simulates, by its name.
# Installs the simulator first; the system packages libegl1 and libgl1-mesa-dri are needed.
# A run that was interrupted goes on where it stopped.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv-libero"

if [ ! -f "$venv/ready" ]; then
    # The simulator pins packages that the robot's environment must not be held back by.
    echo "closed-loop: installing LIBERO into ${venv#"$root"/} (2 GB)" >&2
    "$root/.venv/bin/python" -m venv "$venv"
    "$venv/bin/pip" install --quiet "${QVLA_TORCH:-torch==2.13.0}"
    "$venv/bin/pip" install --quiet ".[libero,bag]"
    touch "$venv/ready"
fi
export MUJOCO_GL="${MUJOCO_GL:-egl}"
case "${1:-}" in
demo.*) exec python -m "$@" ;;
*) exec python -m demo.closed_loop_runs "$@" ;;
esac

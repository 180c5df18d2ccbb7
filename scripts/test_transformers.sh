#!/usr/bin/env bash
# Runs the tests that depend on transformers with each supported series of it.
#
#   scripts/test_transformers.sh [FOLDER]     environments go there; default .cache/transformers
#
# Each environment has its own transformers, with the tokenizers and huggingface_hub that it wants,
# and takes everything else, PyTorch above all, from the project's environment.
# QVLA_TRANSFORMERS names other series, e.g. "4.51 5.0".
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-$root/.cache/transformers}"
packages="$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
tests=(test/models test/cli/test_families.py test/quantize/test_pipeline.py test/test_hf.py)

cd "$root"
failed=()
for series in ${QVLA_TRANSFORMERS:-4.49 4.57 5}; do
    place="$folder/$series"
    if [ ! -e "$place/ready" ]; then
        rm -rf "$place"
        "$root/.venv/bin/python" -m venv --without-pip "$place"
        own="$(echo "$place"/lib/python3*/site-packages)"
        echo "$packages" >"$own/project_environment.pth"
        # The environment's own folder is searched before the project's, which pip leaves alone.
        "$place/bin/python" -m pip install --quiet --upgrade --disable-pip-version-check \
            "transformers==$series.*"
        touch "$place/ready"
    fi
    version="$("$place/bin/python" -c 'import transformers; print(transformers.__version__)')"
    echo "transformers $version:"
    "$place/bin/python" -m pytest "${tests[@]}" -q -p no:cacheprovider ${PYTEST_ARGS:-} ||
        failed+=("$version")
done
if [ "${#failed[@]}" -gt 0 ]; then
    echo "test_transformers: failed with transformers ${failed[*]}" >&2
    exit 1
fi

#!/usr/bin/env bash
# Run all GPU benchmarks: benchmarks/gpu.sh [--output FOLDER] [--smoke]
# PYTHON: the interpreter, default python3. WHEELS: a folder of wheels to install first, beside the interpreter's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" benchmarks/gpu.py "$@"

#!/usr/bin/env bash
# Create the virtual environment from requirements.lock. Called by `make setup`; PYTHON and VENV come from there.
set -euo pipefail

"$PYTHON" - <<'CHECK' || { echo "error: Conceptome needs Python 3.11 or newer with venv; set PYTHON=/path/to/python3" >&2; exit 1; }
import sys, venv
sys.exit(sys.version_info < (3, 11))
CHECK

echo "setting up $VENV (a few minutes, once)"
rm -rf "$VENV"
"$PYTHON" -m venv "$VENV"
lock=$(mktemp)
kernels=$(mktemp)
trap 'rm -f "$lock" "$kernels"' EXIT
# Compiling needs nothing but Python itself, and the downloads leave a core free.
PYTHONPATH=kernels "$PYTHON" -m conceptome_kernels > "$kernels" 2>&1 &
compilation=$!
grep -v '^torch==' requirements.lock > "$lock"
pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet --quiet install --no-deps)
echo "  $(grep "^torch==" requirements.lock) (README.md says how to choose the CPU build)"
"${pip[@]}" "$(grep '^torch==' requirements.lock)"
echo "  everything else, with hashes required"
"${pip[@]}" --require-hashes -r "$lock"
echo "  conceptome itself"
"${pip[@]}" --no-build-isolation --editable .
wait "$compilation" || { cat "$kernels" >&2; exit 1; }
cat "$kernels"

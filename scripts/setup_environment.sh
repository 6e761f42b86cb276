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
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Compiling needs nothing but Python itself.
PYTHONPATH=kernels "$PYTHON" -m conceptome_kernels > "$work/kernels" 2>&1 &
compilation=$!
pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet --quiet install --no-deps)
echo "  $(grep "^torch==" requirements.lock) (README.md says how to choose the CPU build)"
"${pip[@]}" "$(grep '^torch==' requirements.lock)" &
installations=($!)
# pip unpacks on one core: the lock is dealt out to as many as there are cores. No part depends on another (--no-deps).
parts=$(( $(nproc) < 4 ? $(nproc) : 4 ))
echo "  everything else, with hashes required"
for ((part = 0; part < parts; part++)); do
    awk -v part="$part" -v parts="$parts" '/^torch==/ {next} /^[^ #]/ {n++} n % parts == part' requirements.lock > "$work/$part.txt"
    "${pip[@]}" --require-hashes -r "$work/$part.txt" &
    installations+=($!)
done
for installation in "${installations[@]}"; do
    wait "$installation" || { echo "error: pip could not install the packages of requirements.lock (its message is above)" >&2; exit 1; }
done
echo "  conceptome itself"
"${pip[@]}" --no-build-isolation --editable .
wait "$compilation" || { cat "$work/kernels" >&2; exit 1; }
cat "$work/kernels"

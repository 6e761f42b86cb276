#!/usr/bin/env bash
# Create an environment of the peers from envs/peers.txt: setup_peers.sh PYTHON FOLDER [sae-lens]
# With `sae-lens` only the first part of the file is installed. A finished environment is left as it is.
set -euo pipefail
python=$1 folder=$2 part=${3:-all}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(sed '/^# --- /,$d' envs/peers.txt)
[ "$part" = sae-lens ] || wanted=$(cat envs/peers.txt)
mark="$folder/.complete"
[ -f "$mark" ] && [ "$(cat "$mark")" = "$wanted" ] && exit 0
echo "setting up the peers in $folder (a few minutes, once)"
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip --disable-pip-version-check --quiet --quiet install --no-deps --no-compile -r <(printf '%s\n' "$wanted")
printf '%s\n' "$wanted" > "$mark"

#!/usr/bin/env bash
# Create an environment of tools that the lock has no room for: setup_tools.sh PYTHON FOLDER LIST [first]
# LIST pins every package, e.g. envs/peers.txt; with `first` only what stands above its line `# ---` is installed.
# A finished environment is left as it is.
set -euo pipefail
python=$1 folder=$2 list=$3 part=${4:-all}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cat "$list")
[ "$part" = first ] && wanted=$(sed '/^# --- /,$d' "$list")
mark="$folder/.complete"
[ -f "$mark" ] && [ "$(cat "$mark")" = "$wanted" ] && exit 0
echo "setting up $list in $folder (a few minutes, once)"
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip --disable-pip-version-check --quiet --quiet install --no-deps --no-compile -r <(printf '%s\n' "$wanted")
printf '%s\n' "$wanted" > "$mark"

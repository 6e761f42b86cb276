#!/usr/bin/env bash
# Create an environment of tools that the lock has no room for: setup_tools.sh PYTHON FOLDER LIST [first|over]
# LIST pins every package, e.g. envs/peers.txt; with `first` only what stands above its line `# ---` is installed; with
# `over` what PYTHON itself has installed is seen too, so that LIST holds only what comes on top.
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
if [ "$part" = over ]; then
    # By addsitedir, not as a bare path: the other environment's own .pth files (an editable install) count as well.
    site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    printf 'import site; site.addsitedir(%s)\n' "'$(site "$python")'" > "$(site "$folder/bin/python")/over.pth"
fi
printf '%s\n' "$wanted" > "$mark"

#!/usr/bin/env bash
# Resolve requirements.lock again from pyproject.toml, jointly, with hashes for everything but torch. Needs uv.
# Without torchvision, which timm asks for: its wheels are built for another torch (conceptome.models.timm_import).
set -euo pipefail
command -v uv > /dev/null || { echo "error: 'make lock' needs uv on the PATH" >&2; exit 1; }
lock=$(mktemp)
trap 'rm -f "$lock"' EXIT
uv pip compile pyproject.toml --extra test --no-emit-package torchvision --generate-hashes --no-header --no-annotate --python-version 3.11 \
    ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} --output-file "$lock"
{
    sed -n '/^#/p;/^[^#]/q' requirements.lock
    awk '/^[A-Za-z0-9]/ {torch = ($0 ~ /^torch==/); if (torch) {sub(/\+.*| .*/, ""); print; next}} !torch' "$lock"
} > requirements.lock.new
mv requirements.lock.new requirements.lock

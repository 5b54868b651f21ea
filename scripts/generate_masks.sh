#!/usr/bin/env bash
# Turn prompts into mask files. Usage: bash scripts/generate_masks.sh --prompt "a heart", or --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m scripts.generate_masks "$@"

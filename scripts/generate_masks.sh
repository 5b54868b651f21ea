#!/usr/bin/env bash
# Turn prompts into mask files. Usage: bash scripts/generate_masks.sh --prompt "a heart", or --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/root.sh"
bash scripts/setup.sh
exec .venv/bin/python -m scripts.generate_masks "$@"

#!/usr/bin/env bash
# Train stage 2. Usage: bash scripts/train_stage_2.sh [PRESET] [--overrides], or --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/root.sh"
bash scripts/setup.sh
exec .venv/bin/python -m scripts.train_stage_2 "$@"

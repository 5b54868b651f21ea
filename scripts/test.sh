#!/usr/bin/env bash
# Run ruff, mypy and pytest, after making .venv if needed.
# Usage: bash scripts/test.sh [--faults | pytest arguments]; --faults kills and stops trainings in many more ways.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
bash scripts/setup.sh --tests
.venv/bin/ruff check .
.venv/bin/mypy autoencoder.py diffusion.py trainer.py configs data metrics models samplers scripts
if [ "${1:-}" = --faults ]; then
  shift
  exec .venv/bin/python -m pytest -m faults "$@"
fi
if [ "$#" -gt 0 ]; then
  exec .venv/bin/python -m pytest "$@"
fi
exec .venv/bin/python -m pytest -q  # tests/conftest.py runs the fast ones first

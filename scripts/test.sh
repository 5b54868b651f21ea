#!/usr/bin/env bash
# Run ruff, mypy and pytest, after making .venv if needed.
# Usage: bash scripts/test.sh [--faults | pytest arguments]; --faults kills and stops trainings in many more ways.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/root.sh"
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
# The page's tests alone: a browser without a GPU wants the cores for itself.
.venv/bin/python -m pytest -q tests/test_demo.py
# All others in up to four processes, each with its share of the cores; tests/conftest.py puts the fast ones first.
cores=$(.venv/bin/python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
workers=$((cores < 4 ? cores : 4))
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / workers < 4 ? cores / workers : 4))}
export OMP_NUM_THREADS
exec .venv/bin/python -m pytest -q --numprocesses "$workers" --dist worksteal --ignore tests/test_demo.py

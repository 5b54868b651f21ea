#!/usr/bin/env bash
# Make .venv with everything that the project needs, once. Usage: bash scripts/setup.sh [--tests | --demo]
# PYTHON names another interpreter; PIP_ARGS is handed to pip (for example an index with CPU-only builds of torch).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  --tests) wanted=tests/requirements.txt stamp=.venv/.tests-installed ;;
  --demo) wanted=scripts/demo-requirements.txt stamp=.venv/.demo-installed ;;
  *) wanted=requirements.txt stamp=.venv/.installed ;;
esac

if [ -f "$stamp" ] && cmp -s "$wanted" "$stamp"; then
  [ -z "${PIP_ARGS:-}" ] || echo "setup: .venv is complete, so PIP_ARGS changes nothing; to install anew, remove .venv" >&2
  exit 0
fi
if .venv/bin/python -c '' 2>/dev/null; then
  # one whose making was broken off, or that another tool made without pip
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >&2 || {
    echo "setup: .venv has no pip; install pip there, or remove .venv" >&2
    exit 2
  }
elif [ -f .venv/.installed ]; then
  echo "setup: .venv was made for a Python that is not here; make that one available, or remove .venv" >&2
  exit 2
else
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null || {
    echo "setup: there is no $python; install Python 3.10 or newer, or name one with PYTHON=..." >&2
    exit 2
  }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $("$python" --version) is too old; name Python 3.10 or newer with PYTHON=..." >&2
    exit 2
  }
  "$python" -m venv .venv >&2
fi
echo "setup: installing $wanted into .venv (once; torch is large)" >&2
# What is installed is compiled, by all cores: a command then starts in half the time, also where it may not write here
# (a container's user) or is told not to (PYTHONDONTWRITEBYTECODE). Some packages hold files that are no Python.
# shellcheck disable=SC2086  # PIP_ARGS is a list of words
.venv/bin/python -m pip install --disable-pip-version-check --progress-bar on --no-compile ${PIP_ARGS:-} -r "$wanted" >&2
cores=$(.venv/bin/python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
.venv/bin/python -m compileall -qq -j "$cores" .venv/lib || true
cp "$wanted" "$stamp"

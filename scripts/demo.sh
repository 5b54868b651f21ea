#!/usr/bin/env bash
# Open a page on which masks are drawn from prompts. Usage: bash scripts/demo.sh [--checkpoint PATH], or --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/root.sh"
bash scripts/setup.sh
case " $* " in
  *" --help "* | *" -h "*) ;; # needs no page
  *) bash scripts/setup.sh --demo ;;
esac
exec .venv/bin/python -m scripts.demo "$@"

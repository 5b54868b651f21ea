# shellcheck shell=bash
# Sourced by the commands: go to the project's folder, and say so where they were started in another.
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ . -ef "$from" ] || echo "$(basename "$0" .sh): relative paths begin at the project's folder $PWD, not at $from" >&2

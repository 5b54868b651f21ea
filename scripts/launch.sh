#!/usr/bin/env bash
# Run a command in several processes, on this machine or on many.
# Usage: bash scripts/launch.sh PROCESSES train_stage_1|train_stage_2|generate_masks [the command's arguments]
#   bash scripts/launch.sh 2 train_stage_2 animals --train.strategy ddp --train.run-dir runs/mine
#   bash scripts/launch.sh 8 generate_masks --prompts-file prompts.txt --num 100 --out masks --resume True
# On many machines: the same line on each, with NODES (how many), NODE (0, 1 ...), HEAD (address of number 0), and PORT.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/root.sh"
if ! [[ "${1:-} ${2:-}" =~ ^[1-9][0-9]*\ (train_stage_1|train_stage_2|generate_masks)$ ]]; then
  echo "launch: '$*' does not begin with a number of processes and train_stage_1, train_stage_2 or generate_masks," \
    "as in: bash scripts/launch.sh 2 train_stage_2 animals" >&2
  exit 2
fi
processes=$1
command=$2
shift 2
bash scripts/setup.sh
if [ "${NODES:-1}" = 1 ]; then
  meeting=(--standalone)
else
  meeting=(--nnodes "$NODES" --node-rank "${NODE:?number of this machine}" --master-addr "${HEAD:?address of machine 0}"
    --master-port "${PORT:-29500}")
fi
exec .venv/bin/python -m torch.distributed.run --nproc-per-node "$processes" "${meeting[@]}" -m -- "scripts.$command" "$@"  # without --, torchrun takes --num for its own

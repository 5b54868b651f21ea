#!/usr/bin/env bash
# From nothing to text-prompted masks on this machine: set up, train both stages on animal silhouettes, generate.
# Usage: bash scripts/quickstart.sh, or for your own masks: bash scripts/quickstart.sh --data FOLDER [--minutes N]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/root.sh"
if [ "$#" -gt 0 ]; then
  case $1 in
    --*) ;;
    *)
      echo "quickstart: '$*' is not understood; for your own masks: bash scripts/quickstart.sh --data FOLDER [--minutes N]" >&2
      exit 2
      ;;
  esac
  bash scripts/setup.sh
  exec .venv/bin/python -m scripts.quickstart "$@"
fi
bash scripts/setup.sh

mkdir -p runs
run=runs/quickstart
number=1
until mkdir "$run" 2>/dev/null; do # an earlier run is never overwritten
  [ -e "$run" ] || {
    echo "quickstart: $PWD/runs cannot be written; make room on its disk, or make it writable" >&2
    exit 1
  }
  number=$((number + 1))
  run=runs/quickstart-$number
done
began=$SECONDS

echo "== 1 of 3: stage 1, an autoencoder of masks (about 2 minutes on 2 cores with AMX)"
.venv/bin/python -m scripts.train_stage_1 animals-tiny --train.run-dir "$run/stage1"
echo "== 2 of 3: stage 2, masks from prompts in one network step (about 8 minutes)"
.venv/bin/python -m scripts.train_stage_2 animals-tiny --autoencoder "$run/stage1/last.ckpt" --train.run-dir "$run/stage2"
echo "== 3 of 3: masks in 1, 4 and 32 steps"
.venv/bin/python -m scripts.generate_masks --checkpoint "$run/stage2/last.ckpt" --out "$run/masks" \
  --prompt "a giraffe" --prompt "an elephant" --prompt "a horse" --prompt "a cat" --prompt "a bird" --prompt "a cow" \
  --prompt "a bear" --prompt "a zebra" --num 8 --steps 1 4 32 --size 48

seconds=$((SECONDS - began))
echo
echo "Done in $((seconds / 60)) min $((seconds % 60)) s. Look at $run/masks/grid.png (rows: prompts, blocks: 1, 4, 32 steps)."
echo "$run holds stage1/ and stage2/ (checkpoints, config.json, TensorBoard and CSV logs) and masks/ (PNGs, manifest.jsonl)."
echo "More:     bash scripts/generate_masks.sh --checkpoint $run/stage2/last.ckpt --prompt \"a dog\" --num 16 --steps 1"
echo "Measure:  .venv/bin/python -m scripts.evaluate --checkpoint $run/stage2/last.ckpt"

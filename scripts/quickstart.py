"""Own masks in minutes: ``bash scripts/quickstart.sh --data FOLDER`` (the rules: configs/quickstart_cfg.py)."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.autoencoder_cfg import Stage1Cfg
from configs.caption_masks_cfg import CaptionMasksCfg
from configs.check_data_cfg import CheckDataCfg
from configs.checks import ConfigError
from configs.cli import parse
from configs.data_cfg import DataCfg, FolderSource
from configs.diffusion_cfg import Stage2Cfg
from configs.quickstart_cfg import CRISP, JUDGING, SIZES, Facts, QuickstartCfg, own_masks, trained
from scripts.run import refuse_kindly

if TYPE_CHECKING:
    import numpy as np

    from data.masks import MaskSet

PROMPTS, EACH = 8, 8  # rows and columns of the picture
SAMPLE = 1000  # masks at most that are looked at for the size that they want
LEAST_JUDGED, JUDGED = 64, 256  # masks per step count: the more, the more time is kept for judging
LEAST_STEPS, STEPS = 50, 500  # of the training of the classifier that judges, likewise
FEWEST = 50  # masks in the folder, for its held-out tenth to say something


def main(argv: list[str] | None = None) -> None:
    cfg: QuickstartCfg = parse(QuickstartCfg, argv, "scripts/quickstart.sh", "Train on your own masks.")
    with refuse_kindly("quickstart"):
        quickstart(cfg)


def quickstart(cfg: QuickstartCfg) -> Path:
    """Check, caption, choose, train both stages, judge and draw; returns the folder with everything.

    Raises:
        ConfigError: the data cannot be used, for the reasons that are printed.
        FileExistsError: a folder to write to that is not empty.
    """
    import torch

    from data.sources import load_splits
    from scripts.check_data import check

    began = time.monotonic()
    out = free_folder(cfg.out, cfg.data)
    on_gpu = torch.cuda.is_available()
    print("== 1 of 4: the masks", flush=True)
    if not check(CheckDataCfg(cfg.data, image_size=SIZES[-2]), "--data"):
        raise ConfigError(f"{cfg.data} cannot be trained on: see above")
    stage_1, stage_2, prompts = choose(cfg, on_gpu)
    out.mkdir(parents=True, exist_ok=True)

    from trainer import train_stage_1, train_stage_2  # after what can be refused: Lightning takes seconds to import

    if stage_1 is None:
        brought = stage_2.init if stage_2.autoencoder == "auto" else stage_2.autoencoder
        print(f"== 2 of 4: stage 1 is that of {brought}, which comes with the project", flush=True)
    else:
        print(f"== 2 of 4: stage 1, for {stage_1.train.max_minutes:.1f} minutes", flush=True)
        train_stage_1(replace(stage_1, train=replace(stage_1.train, run_dir=str(out / "stage1"))), "quickstart")
        stage_2 = replace(stage_2, autoencoder=str(out / "stage1" / "last.ckpt"))
    left = trained(cfg.minutes) - (time.monotonic() - began) / 60
    left = max(left, trained(cfg.minutes) / 3)  # however long the start took
    print(f"== 3 of 4: stage 2, for {left:.1f} minutes", flush=True)
    train_2 = replace(stage_2.train, run_dir=str(out / "stage2"), max_minutes=left)
    train_stage_2(replace(stage_2, train=train_2), "quickstart")
    print("== 4 of 4: masks in 1, 4 and 32 steps", flush=True)
    checkpoint = out / "stage2" / "last.ckpt"
    draw_and_judge(checkpoint, prompts, load_splits(stage_2.data), out, cfg.minutes, began)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(
        f"\nDone in {minutes} min {seconds} s. Look at {out / 'masks' / 'grid.png'} (rows: prompts, blocks: steps).\n"
        f"More: bash scripts/generate_masks.sh --checkpoint {checkpoint} --prompt TEXT --num 16 --steps 1"
    )
    return out


def free_folder(name: str, data: str = "") -> Path:
    """The folder to write to; nothing is made yet. ``data`` is that of the masks, which it may not lie in."""
    if not name:
        names = (f"quickstart-{number}" if number > 1 else "quickstart" for number in range(1, 10**6))
        out = next(path for own in names if not (path := Path("runs") / own).exists())
    else:
        out = Path(name).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out is {name!r}, which is not an empty folder: name another one")
    if data and out.resolve().is_relative_to(Path(data).expanduser().resolve()):
        raise ConfigError(f"out is {str(out)!r}, which lies in the folder of your masks, so that what is drawn would "
                          "be taken for more of them: name a folder elsewhere")  # fmt: skip
    return out


def choose(cfg: QuickstartCfg, on_gpu: bool) -> tuple[Stage1Cfg | None, Stage2Cfg, list[str]]:
    """The configs that the rules give and all prompts, after a folder without captions got some; prints the choice."""
    import numpy as np

    from data.folder import list_images, read_folder, read_listed
    from metrics.geometry import are_captions
    from models.text import TextEncoder
    from scripts.caption_masks import caption

    source = FolderSource(cfg.data)
    found = read_folder(cfg.data, "--data", "", DataCfg(source, image_size=SIZES[-2]))
    listed = [item.listed for item in found.fitted]
    chosen = np.random.default_rng(0).permutation(len(listed))[:SAMPLE]
    some = read_listed(found.root, [listed[i] for i in chosen], [], [], DataCfg(source, image_size=SIZES[-1])).fitted
    sides = np.array([max(item.height, item.width) for item in some])
    facts = Facts(len(listed), crisp_shares(np.stack([item.image for item in some]), sides), 0, on_gpu)
    stage_1, stage_2 = own_masks(cfg.data, facts, cfg.minutes)
    if not any(item.captioned for item in listed):
        caption(CaptionMasksCfg(cfg.data, stage_2.data.image_size))
        listed, _, _ = list_images(found.root, "")
    prompts = [item.prompt if item.captioned else source.default_prompt for item in listed]
    count_tokens = TextEncoder(stage_2.text).count_tokens
    tokens = max(count_tokens(prompt) for prompt in set(prompts))
    facts = replace(facts, tokens=tokens, from_geometry=are_captions(prompts))
    stage_1, stage_2 = own_masks(cfg.data, facts, cfg.minutes)
    crisp = ", ".join(f"{share:.0%} at {size}" for size, share in facts.crisp.items())
    data, network = stage_2.data, f"the networks of {stage_2.init} to begin with"
    if stage_1 is not None:
        network = (
            f"shrunk by {stage_1.autoencoder.factor}, a network of width {stage_2.backbone.width}, "
            f"{stage_2.text.max_tokens} tokens"
        )
    print(
        f"chosen: {data.image_size} pixels (masks that stay crisp: {crisp}), {data.augment.versions} versions of each, "
        f"batches of {data.batch_size}, {network}", flush=True,
    )  # fmt: skip
    return stage_1, stage_2, prompts


def crisp_shares(masks: np.ndarray, sides: np.ndarray) -> dict[int, float]:
    """Image size below the largest -> share of masks [N,H,W] of that one that are crisp at it (see CRISP), or whose
    files have no longer ``sides`` [N]."""
    from data.fit import fit_masks

    size = masks.shape[1]
    shares = {}
    for smaller, kept in CRISP.items():
        back = fit_masks(fit_masks(masks, smaller), size)
        both, either = (masks & back).sum((1, 2)), (masks | back).sum((1, 2))
        shares[smaller] = float(((both >= kept * either) | (sides <= smaller)).mean())
    return shares


def draw_and_judge(
    checkpoint: Path, prompts: list[str], splits: tuple[MaskSet, MaskSet], out: Path, minutes: float, began: float
) -> None:
    """Masks of the most frequent prompts, and evaluation.json with its table, where there are enough held-out masks.

    The quickstart is to take ``minutes`` from ``began`` on, a time of the monotonic clock. Where less than JUDGING is
    kept for this, fewer masks are judged; the classifier that judges is trained for half of what is left by then.
    """
    from scripts.evaluate import main as evaluate
    from scripts.generate_masks import main as generate

    steps = ["--steps", "1", "4", "32"]
    frequent = [" ".join(prompt.split()) for prompt, _ in Counter(prompts).most_common(PROMPTS)]
    listed = out / "prompts.txt"
    listed.write_text("".join(f"{prompt or FolderSource.default_prompt}\n" for prompt in frequent), encoding="utf-8")
    generate([
        "--checkpoint", str(checkpoint), "--prompts-file", str(listed), "--num", str(EACH), "--out", str(out / "masks"),
        *steps,
    ])  # fmt: skip
    train, held_out = splits
    if len(prompts) < FEWEST or len(held_out) < 2:  # the tenth is drawn by content: it can be one mask, or none
        print(
            f"not judged: {len(held_out)} of {len(prompts)} masks are held out, and it takes 2 of at least {FEWEST}: "
            "add masks", flush=True,
        )  # fmt: skip
        return
    judged = max(LEAST_JUDGED, round(JUDGED * (minutes - trained(minutes)) / JUDGING))
    seconds = (began + 60 * minutes - time.monotonic()) / 2
    evaluate(["--checkpoint", str(checkpoint), "--num", str(judged),
              "--classifier-steps", str(judge_steps(train, seconds)), *steps])  # fmt: skip


def judge_steps(train: MaskSet, seconds: float) -> int:
    """How many steps of training a classifier take about as many seconds, from LEAST_STEPS to STEPS; STEPS where the
    prompts are no classes, so that none is trained."""
    import torch

    from metrics.classifier import train_classifier
    from metrics.judge import is_classes

    if not is_classes(train.prompts):
        return STEPS
    began, tried = time.monotonic(), 10
    train_classifier(torch.from_numpy(train.images), train.prompts, steps=tried, progress=False)
    each = (time.monotonic() - began) / tried
    return min(STEPS, max(LEAST_STEPS, int(seconds / each) - tried))


if __name__ == "__main__":
    main()

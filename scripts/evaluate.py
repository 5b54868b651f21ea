"""Judge a stage-2 checkpoint: ``python -m scripts.evaluate --checkpoint PATH`` prints a table, writes JSON, a figure.

Sets are compared with the whole held-out split, in the features of a judge that saw the training split only (or of
an ImageNet network). Frechet distances are squared, as in FID. Their bias depends on the number of masks: compare the
numbers of one table, whose first row is what as many real masks score.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.checks import ConfigError
from configs.cli import as_text, parse, to_dict
from configs.evaluate_cfg import EvaluateCfg
from configs.shipped import FOLDER, checkpoint_path
from configs.whole_file import write_text
from scripts.run import refuse_kindly

SKETCHED, DRAWN = 10, 6  # rows of the picture of sketches, and masks in each

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from data.masks import MaskSet
    from metrics.features import FeatureNet
    from metrics.judge import Judge
    from scripts.seeded import Recipe


def main(argv: list[str] | None = None) -> None:
    cfg: EvaluateCfg = parse(EvaluateCfg, argv, "python -m scripts.evaluate", "Judge a stage-2 checkpoint.")
    with refuse_kindly("evaluate"):
        from data.sources import load_splits
        from metrics.comparison import as_row, quality_figure
        from metrics.report import as_table
        from metrics.run_report import report_if_possible
        from scripts.mask_model import load_mask_model
        from scripts.seeded import choose_device

        path = checkpoint_path(cfg.checkpoint)
        beside = Path("runs") / path.stem if path.parent == FOLDER else path.parent
        out = Path(cfg.out).expanduser() if cfg.out else beside / "evaluation.json"
        require_writable(out, cfg.sketches)
        print(f"{as_text(cfg)}\nmodel: {path}", flush=True)
        module = load_mask_model(path, choose_device(cfg.accelerator))
        if module.cfg.data.channels != 1:
            raise ConfigError("this checkpoint draws ordinary images, but evaluate judges binary masks only")
        train, held_out = load_splits(module.cfg.data)
        report = evaluate(module, train, held_out, cfg)
        report = {"config": to_dict(cfg), "checkpoint_sha256": module.sha256, **report}
        print(f"{as_table(report)}\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(report, indent=2) + "\n")
        quality_figure([as_row(beside.name, [report])], out.with_suffix(".png"))
        print(f"report: {out}\nfigure: {out.with_suffix('.png')}")
        if cfg.sketches:
            picture = out.with_name(f"{out.stem}-sketches.png")
            sketch_grid(module, held_out, cfg).save(picture)
            print(f"sketches: {picture}")
        if out == path.parent / "evaluation.json" and (path.parent / "run.json").exists():
            report_if_possible(path.parent)


def require_writable(out: Path, sketches: bool) -> None:
    """Raises ConfigError where a file cannot be written, before minutes go into what it is to hold."""
    if out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, which is a folder: name a file, such as {out / 'evaluation.json'}")
    if out.suffix.lower() == ".png":
        better = out.with_suffix(".json")
        raise ConfigError(f"out is {str(out)!r}, but the figure goes there: name the report, such as {better}")
    if not is_evaluation(out):  # one is replaced by the next, with its pictures
        pictures = [out.with_suffix(".png"), *([out.with_name(f"{out.stem}-sketches.png")] if sketches else [])]
        for theirs in (out, *pictures):
            if os.path.lexists(theirs):
                raise ConfigError(f"{theirs} is not overwritten, since {out.name} is no earlier evaluation, which it "
                                  "would belong to: move it away, or name another file with --out")  # fmt: skip
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise ConfigError(f"{out} cannot be written: name another file with --out")


def is_evaluation(path: Path) -> bool:
    """Whether this command wrote the file."""
    try:
        return "checkpoint_sha256" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError):
        return False


def evaluate(module: Any, train: MaskSet, held_out: MaskSet, cfg: EvaluateCfg) -> dict[str, Any]:
    """Everything that is reported, as plain values.

    Raises:
        ConfigError: settings that do not fit the checkpoint or its data.
    """
    import torch

    from metrics.reconstruction import iou
    from metrics.report import summaries
    from metrics.sets import grey_share
    from metrics.yardstick import Yardstick
    from scripts.seeded import build_sampler_for, choose_device, recipes, useful_corrections, useful_tries

    if min(len(train), len(held_out)) < 2:
        raise ConfigError(f"{len(train)} training and {len(held_out)} held-out masks are too few: 2 of each are needed")
    if cfg.sketches and not module.cfg.backbone.sketch:
        raise ConfigError("sketches is True, but this model reads none: leave it out")
    started = time.perf_counter()
    device = choose_device(cfg.accelerator)
    sampler = build_sampler_for(module.cfg.sampler, cfg.sampler, cfg.eta)
    corrections = useful_corrections(cfg.corrections, held_out.prompts, module)
    tries = useful_tries(cfg.tries, held_out.prompts, 1)
    ways = recipes(sampler, cfg.steps, None, cfg, tries=tries, corrections=corrections)
    real, seen = torch.from_numpy(held_out.images), torch.from_numpy(train.images)  # [N,H,W]
    num = cfg.num or len(held_out)

    judge, about = choose_judge(module, train, cfg)
    features = choose_features(judge, cfg, device)
    yardstick = Yardstick(real, seen, judge, features, cfg.search)
    own = yardstick.adherence(real, held_out.prompts, list(range(len(real))), cfg.seed)
    own.pop("retrieval", None)  # of masks from themselves
    rows: list[list[dict[str, float]]] = [[] for _ in ways]
    floors = []
    for repeat in range(cfg.seeds):
        generator = torch.Generator().manual_seed(cfg.seed + repeat)
        order = draw_order(len(held_out), num, generator)
        prompts = [held_out.prompts[i] for i in order]
        # Real masks judged as if they were generated: as many, of the same prompts. What says whether they are
        # copies, or what their prompts say, is taken from the held-out masks, which no network has seen.
        others = seen[reals_like(train.prompts, prompts, generator)]
        sketches = None
        if cfg.sketches:
            sketches = sketches_of(real[order], module.latent_shape[-1], cfg.seed + repeat)  # [N,1,h,w]
        floors.append(
            yardstick.distances(others) | yardstick.memorised(real) | own
            | ({} if sketches is None else {"sketch_iou": float(iou(enlarged_to(sketches, real), real[order]).mean())})
        )
        seeds = [(cfg.seed + repeat) * 10**6 + i for i in range(num)]
        for way, results in zip(ways, rows, strict=True):
            p, seconds = draw_all(module, prompts, seeds, replace(way, sketch=sketches), device, cfg.batch_size)
            masks = (p > 0.5).to(torch.uint8)
            results.append(
                yardstick.distances(masks) | yardstick.memorised(masks)
                | yardstick.adherence(masks, prompts, order, cfg.seed)
                | {"grey": grey_share(p), "ms_per_mask": 1000 * seconds / num}
                | ({} if sketches is None else {"sketch_iou": float(iou(masks, real[order]).mean())})
            )

    return {
        "trained": to_dict(module.cfg), "sampler": sampler.name, "guidance": cfg.guidance,
        "corrections": corrections,
        "stage_1": reconstruction(module.autoencoder, real, device),
        "judge": about | own, "features": features.name, "frechet_name": features.frechet_name,
        "num": num, "num_real": min(num, len(train)), "num_held_out": len(held_out), "num_training": len(train),
        "seeds": [cfg.seed + r for r in range(cfg.seeds)], "real": summaries(floors),
        "steps": [{"steps": way.steps} | summaries(results) for way, results in zip(ways, rows, strict=True)],
        "minutes": (time.perf_counter() - started) / 60,
    }


def sketches_of(masks: Tensor, side: int, seed: int) -> Tensor:
    """Sketches [N,1,h,w] of masks [N,H,W] for latents of ``side``; the stream of random numbers is left where it was.
    """
    import torch

    from models.sketch import looked_at, rough_sketch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return rough_sketch(looked_at(masks[:, None].float(), side))


def enlarged_to(sketches: Tensor, masks: Tensor) -> Tensor:
    """Sketches [N,1,h,w] at the size of masks [M,H,W]: [N,H,W]."""
    from torch.nn.functional import interpolate

    return interpolate(sketches, masks.shape[-2:])[:, 0]


def sketch_grid(module: Any, held_out: MaskSet, cfg: EvaluateCfg) -> Image:
    """Some held-out masks, a sketch of each, and what is drawn from it and the prompt in the fewest steps."""
    import torch

    from scripts.pictures import cell_for, mask_grid
    from scripts.seeded import build_sampler_for, choose_device, draw, recipes

    order = draw_order(len(held_out), min(SKETCHED, len(held_out)), torch.Generator().manual_seed(cfg.seed))
    real, prompts = torch.from_numpy(held_out.images[order]), [held_out.prompts[i] for i in order]
    sketches = sketches_of(real, module.latent_shape[-1], cfg.seed)
    sampler = build_sampler_for(module.cfg.sampler, cfg.sampler, cfg.eta)
    way = min(recipes(sampler, cfg.steps, None, cfg), key=lambda way: way.steps)
    device, drawn = choose_device(cfg.accelerator), []
    for prompt, sketch in zip(prompts, sketches, strict=True):
        one = replace(way, sketch=sketch[None])
        drawn.append(list((draw(module, [prompt] * DRAWN, range(DRAWN), one, device)[:, 0] > 0.5).numpy()))
    blocks = {"sketch": [[x.numpy()] for x in sketches[:, 0]], f"in {way.steps}": drawn}
    return mask_grid(blocks | {"its mask": [[x.numpy()] for x in real]}, prompts, cell_for(real.shape[-1]))


def choose_features(judge: Judge, cfg: EvaluateCfg, device: torch.device) -> FeatureNet:
    """The network in whose features sets are compared."""
    from metrics.features import imagenet_features, inception_features, judge_features

    try:
        if cfg.features == "imagenet":
            return imagenet_features(device)
        if cfg.features == "inception":
            return inception_features(Path(cfg.inception).expanduser(), device)
    except ValueError as error:
        raise ConfigError(f"features: {error}") from None
    return judge_features(judge)


def choose_judge(module: Any, train: MaskSet, cfg: EvaluateCfg) -> tuple[Judge, dict[str, Any]]:
    """A classifier where the prompts are classes, else the stage-1 encoder; and what to report of it."""
    import torch

    from metrics.judge import MOST_CLASSES, classifier_judge, encoder_judge, is_classes

    if not is_classes(train.prompts):
        kinds = len(set(train.prompts))
        why = (f"no prompt accuracy: {kinds} different prompts are no classes (2 to {MOST_CLASSES} would be, with two "
               "masks each on average)")  # fmt: skip
        judge = encoder_judge(module.autoencoder)
        return judge, {"features": judge.name, "note": why}
    started = time.perf_counter()
    path = Path(cfg.classifier).expanduser() if cfg.classifier else None
    try:
        judge = classifier_judge(
            torch.from_numpy(train.images), train.prompts, steps=cfg.classifier_steps, seed=cfg.seed, path=path
        )
    except ValueError as error:
        raise ConfigError(f"classifier: {error}; name another file") from None
    return judge, {"features": judge.name, "seconds": time.perf_counter() - started}


def draw_order(available: int, num: int, generator: torch.Generator) -> list[int]:
    """``num`` rows of as many as there are: whole shuffled copies of all rows, the last one cut."""
    import torch

    order: list[int] = []
    while len(order) < num:
        order += torch.randperm(available, generator=generator).tolist()
    return order[:num]


def reals_like(available: list[str], wanted: list[str], generator: torch.Generator) -> list[int]:
    """Indices of ``available`` prompts, each at most once, that match ``wanted`` as far as there are enough of them."""
    import torch

    pools: dict[str, list[int]] = {}
    for i in torch.randperm(len(available), generator=generator).tolist():
        pools.setdefault(available[i], []).append(i)
    chosen = [pools[prompt].pop() for prompt in wanted if pools.get(prompt)]
    rest = [i for pool in pools.values() for i in pool]
    return chosen + rest[: len(wanted) - len(chosen)]


def draw_all(
    module: Any, prompts: list[str], seeds: list[int], way: Recipe, device: torch.device, batch_size: int
) -> tuple[Tensor, float]:
    """Probabilities [N,H,W] and the seconds they took, after one small call to warm up. ``way.sketch``: [N,1,H,W]."""
    import torch
    from tqdm import tqdm

    from scripts.seeded import draw, followed

    def part(rows: slice) -> Recipe:
        return way if way.sketch is None else replace(way, sketch=way.sketch[rows])

    first = slice(batch_size)
    draw(module, prompts[first], seeds[first], replace(part(first), steps=1), device)
    started, parts = time.perf_counter(), []
    with tqdm(total=len(seeds), desc=f"{way.steps} steps", unit=" masks", leave=False, mininterval=0.5) as bar:
        for at in range(0, len(seeds), batch_size):
            rows = slice(at, at + batch_size)
            asked, now = prompts[rows], part(rows)

            def once(
                own: Sequence[int], seeds: Sequence[int], asked: list[str] = asked, way: Recipe = now
            ) -> list[Tensor]:
                return list(draw(module, [asked[i] for i in own], seeds, way, device))

            parts += [p[0] for p in followed(way.tries, asked, seeds[rows], 0.5, once)]
            bar.update(len(asked))
    return torch.stack(parts), time.perf_counter() - started


def reconstruction(autoencoder: Any, real: Tensor, device: torch.device) -> dict[str, float]:
    """Held-out masks [N,H,W] beside themselves after encoding and decoding: the ceiling of stage 2."""
    import torch

    from metrics.boundary import MaskBoundaryF1
    from metrics.components import MaskComponentError, MaskComponentMiss
    from metrics.reconstruction import MaskDice, MaskIoU

    scores = {
        "iou": MaskIoU(), "dice": MaskDice(), "boundary_f1": MaskBoundaryF1(), "component_error": MaskComponentError(),
        "component_miss": MaskComponentMiss(),
    }
    with torch.inference_mode():
        for part in real.split(256):
            x = part[:, None].float().to(device)
            p = autoencoder.to_pixels(autoencoder.to_latent(x)).sigmoid().cpu()
            for score in scores.values():
                score.update(p, part[:, None])
    return {name: float(score.compute()) for name, score in scores.items()} | {"num": len(real)}


if __name__ == "__main__":
    main()

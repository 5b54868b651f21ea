"""Compare trainings: ``python -m scripts.bakeoff --plan objectives`` trains, judges, writes one table and one figure.

Every entrant gets the time of the first one's ``--steps``: the cost of a training step is measured side by side on this
machine, and steps are given in inverse proportion. So a slow moment of the machine changes no result. A stopped
bakeoff goes on with the same command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.bakeoff_cfg import BakeoffCfg
from configs.bakeoffs import PLANS, Entrant
from configs.checks import ConfigError
from configs.cli import as_text, parse, to_dict
from configs.whole_file import write_text
from scripts.run import refuse_kindly

CLASSIFIER_STEPS = 1000


@dataclass(frozen=True)
class Job:
    """One training with one seed, and its judgement."""

    name: str
    seed: int
    folder: Path
    about: dict[str, Any]
    """What job.json says; a finished job with other contents is not this one."""


def main(argv: list[str] | None = None) -> None:
    cfg: BakeoffCfg = parse(BakeoffCfg, argv, "python -m scripts.bakeoff", "Compare trainings.")
    with refuse_kindly("bakeoff"):
        print(as_text(cfg), flush=True)
        out = Path(cfg.out or f"runs/bakeoff-{cfg.plan}")
        entrants = chosen(cfg)
        out.mkdir(parents=True, exist_ok=True)
        autoencoders = {name: stage_1(entrant, cfg, out) for name, entrant in entrants.items()}
        judge_once(next(iter(entrants.values())), out / "classifier.pt")
        costs = step_costs(entrants, cfg, out / "costs.json")
        jobs = list(all_jobs(entrants, autoencoders, costs, cfg, out))
        try:
            run_all(jobs, costs, cfg, out)
        except KeyboardInterrupt:
            print("bakeoff: stopped; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
        print(f"\n{report(jobs, costs, out)}\n\nfigure: {out / 'results.png'}")


def chosen(cfg: BakeoffCfg) -> dict[str, Entrant]:
    """The entrants of the plan that ``only`` names; the plan's first one sets the time even if it is not among them."""
    if cfg.plan not in PLANS:
        raise ConfigError(f"there is no plan {cfg.plan!r}; configs/bakeoffs.py has: {', '.join(PLANS)}")
    entrants = PLANS[cfg.plan]()
    for name in cfg.only:
        if name not in entrants:
            raise ConfigError(f"the plan {cfg.plan} has no {name!r}; it has: {', '.join(entrants)}")
    return {name: entrants[name] for name in entrants if not cfg.only or name in cfg.only}


def worker(folder: Path, threads: int) -> None:
    """Do the job that a folder describes, in a process of its own; its words go to log.txt."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MASK_")}
    if threads:
        env |= {"OMP_NUM_THREADS": str(threads)}
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.bakeoff_job", str(folder)], stdout=log, stderr=subprocess.STDOUT, env=env,
            check=False,
        )
    if done.returncode:
        raise ConfigError(f"{folder.name} ended with exit code {done.returncode}: see {folder / 'log.txt'}")


def write_job(folder: Path, about: dict[str, Any]) -> None:
    """Describe a job in its folder; a folder that holds another job is refused."""
    path = folder / "job.json"
    text = json.dumps(about, indent=2) + "\n"
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise ConfigError(f"{folder} holds a training with other settings: name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def stage_1(entrant: Entrant, cfg: BakeoffCfg, out: Path) -> str:
    """The checkpoint of an entrant's stage 1, trained once for all entrants that share it."""
    import hashlib

    if cfg.autoencoder:
        return cfg.autoencoder
    about = {"stage": 1, "config": to_dict(entrant.stage_1)}
    folder = out / f"stage1-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]}"
    write_job(folder, about)
    if not (folder / "done").exists():
        print(f"training {folder}", flush=True)
        worker(folder, 0)
    return str(folder / "last.ckpt")


def judge_once(entrant: Entrant, path: Path) -> None:
    """Train the classifier that judges all of them, if prompts are classes."""
    import torch

    from data.sources import load_splits
    from metrics.judge import classifier_judge, is_classes

    train, _ = load_splits(entrant.stage_2.data)
    if is_classes(train.prompts) and not path.exists():
        classifier_judge(torch.from_numpy(train.images), train.prompts, steps=CLASSIFIER_STEPS, seed=0, path=path)


def step_costs(entrants: dict[str, Entrant], cfg: BakeoffCfg, path: Path) -> dict[str, float]:
    """Seconds per training step, measured in turn; kept in a file, so that a stopped bakeoff keeps its steps."""
    from scripts.benchmark import step_times

    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    first = next(iter(PLANS[cfg.plan]()))
    missing = {name: entrant for name, entrant in entrants.items() if name not in known}
    if missing:
        import statistics

        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(cfg.threads or threads)
        unit = PLANS[cfg.plan]()[first]
        times = step_times({first: unit, **missing})
        torch.set_num_threads(threads)
        known.setdefault(first, statistics.median(times[first]))
        for name in missing:
            ratio = statistics.median(own / base for own, base in zip(times[name], times[first], strict=True))
            known[name] = known[first] * ratio
        write_text(path, json.dumps(known, indent=2) + "\n")
    return known


def all_jobs(
    entrants: dict[str, Entrant], autoencoders: dict[str, str], costs: dict[str, float], cfg: BakeoffCfg, out: Path
) -> Iterator[Job]:
    """Every training, seed by seed; an entrant's schedule is stretched over its own number of steps."""
    first = next(iter(PLANS[cfg.plan]()))
    for seed in cfg.seeds:
        for name, entrant in entrants.items():
            steps = round(cfg.steps * costs[first] / costs[name]) if cfg.equal == "time" else cfg.steps
            folder = out / f"{name}-seed{seed}"
            train = replace(
                entrant.stage_2.train, max_steps=steps, val_every=steps, seed=seed, previews=False, run_dir=str(folder),
                resume="auto",
            )
            stage_2 = replace(entrant.stage_2, autoencoder=autoencoders[name], train=train)
            about = {
                "stage": 2, "name": name, "seed": seed, "config": to_dict(stage_2), "guidance": list(entrant.guidance),
                "steps": list(cfg.eval_steps), "num": cfg.num, "classifier": str(out / "classifier.pt"),
                "features": cfg.features, "search": cfg.search,
            }
            yield Job(name, seed, folder, about)


def run_all(jobs: list[Job], costs: dict[str, float], cfg: BakeoffCfg, out: Path) -> None:
    """Do what is not done yet; table and figure grow with each training.

    Raises ConfigError for the first training that failed, after all others. Once stopped, none begins any more.
    """
    for job in jobs:
        write_job(job.folder, job.about)
    waiting = [job for job in jobs if not (job.folder / "done").exists()]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} trainings are done", flush=True)
    failed: list[ConfigError] = []
    with ThreadPoolExecutor(cfg.workers) as pool:
        running = {pool.submit(worker, job.folder, cfg.threads): job for job in waiting}
        try:
            for number, future in enumerate(as_completed(running), 1):
                try:
                    future.result()
                except ConfigError as reason:
                    failed.append(reason)
                job, how = running[future], " failed" if future.exception() else ""
                print(f"{number} of {len(waiting)}: {job.name}, seed {job.seed}{how}", flush=True)
                report(jobs, costs, out)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise failed[0]


def report(jobs: list[Job], costs: dict[str, float], out: Path) -> str:
    """Write results.json, results.md and results.png of every judged training; returns the table."""
    from metrics.comparison import as_markdown, gather, quality_figure

    rows = gather([(job.name, job.folder) for job in jobs], costs)
    write_text(out / "results.json", json.dumps(rows, indent=2) + "\n")
    table = as_markdown(rows)
    write_text(out / "results.md", table + "\n")
    quality_figure(rows, out / "results.png")
    return table


if __name__ == "__main__":
    main()

"""report.html: what a training did, from its run folder alone, in one file that needs no network."""

import base64
import contextlib
import csv
import json
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from configs.run_folder import go_on, parted
from configs.shipped import SHIPPED
from configs.whole_file import file_hash, write_text
from metrics.curves import Points, line_chart
from metrics.pictures import Picture, kept_pictures
from metrics.report_style import PAGE

NAME = "report.html"
MOMENTS = 6  # pictures of one kind along the training
SAME_NOISE = "Fixed prompts and noise; each column has the same noise at every number of steps."
NETWORK_STEPS = "network steps"
TRAINING_STEPS = "training step"
NOT_LOSSES = ("train/grad_norm", "train/masks_per_second")
JUDGE = "<code>scripts.evaluate</code> (below) judges more masks at more step counts, and writes this page anew."
SAME_MASKS = ("--data.image-size", "--data.channels", "--data.val-fraction", "--data.limit")
JUDGED = {  # column of a validation, or number of an evaluation -> heading
    "frechet": "Frechet distance (squared; less is better)", "accuracy": "Prompt accuracy",
    "retrieval": "Retrieval accuracy among 100", "coverage": "Coverage",
}  # fmt: skip


def report_if_possible(run_dir: Path) -> Path | None:
    """``write_report``, whose failure is one warning: a training is worth more than its report."""
    try:
        return write_report(run_dir)
    except Exception as reason:
        warnings.warn(f"{run_dir / NAME} could not be written ({type(reason).__name__}: {reason})", stacklevel=2)
        return None


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run folder, anew; returns its path.

    Raises:
        FileNotFoundError: a folder without config.json or run.json.
    """
    cfg = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    columns, pictures = read_columns(run_dir), kept_pictures(run_dir)
    evaluation, judging = read_evaluation(run_dir)
    second = run["kind"] == "diffusion"
    done = int(max((x for points in columns.values() for x, _ in points), default=0))
    blocks = [
        tiles(columns, cfg, done),
        section("Quality against network steps", quality_by_steps(columns, evaluation), judging),
        section("Samples" if second else "Reconstructions", newest(pictures), SAME_NOISE if second else ""),
        section("Samples over time" if second else "Reconstructions over time", over_time(pictures)),
        section("Losses", losses(columns)),
        section("Quality while training", quality_over_time(columns)),
        section("Course of the training", course(columns)),
        section("Commands", [commands(run_dir, run, cfg, pictures)]),
        section("Config", [f"<details><summary>every field</summary>{config_table(cfg)}</details>"]),
        section("Versions", [table(run.get("versions", {}).items())]),
    ]
    kind = "Stage 2, masks from prompts" if second else "Stage 1, the autoencoder"
    status = f"{run['status']} after {done:,} of {cfg['train']['max_steps']:,} steps"
    parts = {
        "TITLE": escape(run_dir.resolve().name), "KIND": kind, "ABOUT": f"{escape(run['data'])} · {status}",
        "CONTENT": "\n".join(blocks),
    }  # fmt: skip
    # In one pass: what is put in may hold these words itself.
    write_text(run_dir / NAME, re.sub("|".join(parts), lambda word: parts[word[0]], PAGE))
    return run_dir / NAME


def read_columns(run_dir: Path) -> dict[str, list[tuple[float, float]]]:
    """Every logged number -> its (training step, value); what a resumed training did again replaces what was there."""
    found: dict[str, dict[int, float]] = {}
    logs = sorted(run_dir.glob("csv*/metrics.csv"), key=lambda path: (len(path.parent.name), path.parent.name))
    for log in logs:
        rows = read_rows(log)
        begin = min((step for step, _ in rows), default=0)
        for values in found.values():
            for step in [step for step in values if step > begin]:
                del values[step]
        for step, row in rows:
            for name, value in row.items():
                found.setdefault(name, {})[step + 1] = value
    return {name: sorted(values.items()) for name, values in found.items() if values}


def read_rows(log: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, name -> value) of each whole row; one that a full disk cut off, or joined with the next, is left out."""
    rows = []
    with log.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(TypeError, ValueError, KeyError):  # a missing cell is None, those too many a list
                values = {name: float(value) for name, value in row.items() if value != "" and name != "epoch"}
                rows.append((int(values.pop("step")), values))
    return rows


def read_evaluation(run_dir: Path) -> tuple[dict[str, Any] | None, str]:
    """evaluation.json, if a checkpoint that it judged is still there, and a note on where quality is read from."""
    path = run_dir / "evaluation.json"
    if not path.exists():
        return None, f"From the last validation; {JUDGE}"
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    digest = evaluation.get("checkpoint_sha256")
    name = checkpoint_of(run_dir, digest) if digest else None
    if digest and not name:
        return None, ("From the last validation, since evaluation.json judged none of the checkpoints that are here "
                      f"now, but another state of them, or an export; {JUDGE}")  # fmt: skip
    judged = f", which judged {escape(name)}" if name else ""
    return evaluation, (
        f"From evaluation.json{judged}: {evaluation['num']:,} masks per step count, {escape(evaluation['features'])}, "
        f"sampler {escape(evaluation['sampler'])}, guidance {evaluation['guidance']:g}."
    )


def checkpoint_of(run_dir: Path, digest: str) -> str | None:
    """The name of the checkpoint with this SHA-256, last.ckpt before best.ckpt; None where there is none."""
    hashed = set()
    for path in sorted(run_dir.glob("*.ckpt"), reverse=True):
        with contextlib.suppress(OSError):  # a link to nothing
            about = path.stat()
            if (about.st_dev, about.st_ino) not in hashed and file_hash(path) == digest:
                return path.name
            hashed.add((about.st_dev, about.st_ino))  # often both names are of one file
    return None


def section(title: str, blocks: Iterable[str], note: str = "") -> str:
    """A heading with what belongs below it; nothing where there is nothing."""
    filled = [block for block in blocks if block]
    about = f'<p class="note">{note}</p>' if note else ""
    return f'<section><h2>{title}</h2>{about}<div class="blocks">{"".join(filled)}</div></section>' if filled else ""


def chart(title: str, lines: Mapping[str, Points], x_label: str = TRAINING_STEPS, **options: Any) -> str:
    drawn = line_chart(lines, x_label, **options)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>" if drawn else ""


def tiles(columns: dict[str, list[tuple[float, float]]], cfg: Mapping[str, Any], done: int) -> str:
    """The newest values of what matters most."""
    last = {name: points[-1][1] for name, points in columns.items()}
    speed = [value for _, value in columns.get("train/masks_per_second", [])]
    shown = [("training steps", f"{done:,}"), ("batch size", f"{cfg['data']['batch_size']:,}")]
    names = {
        "val/frechet_1": "one-step Frechet distance", "val/frechet_real": "the same of real masks",
        "val/accuracy_1": "one-step accuracy", "val/retrieval_1": "one-step retrieval",
        "val/iou": "IoU, held out", "val/dice": "Dice, held out", "val/loss": "loss, held out",
    }  # fmt: skip
    shown += [(label, f"{last[name]:.3f}") for name, label in names.items() if name in last]
    if speed:
        shown.append(("masks per second", f"{sorted(speed)[len(speed) // 2]:,.0f}"))
    return f'<div class="tiles">{"".join(f"<div><b>{value}</b>{label}</div>" for label, value in shown)}</div>'


def losses(columns: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Charts of the loss, of its parts in training and on held-out masks, and of each step length."""
    def parts(prefix: str, lengths: bool) -> dict[str, Points]:
        found = {name.removeprefix(prefix): points for name, points in columns.items() if name.startswith(prefix)
                 and name not in NOT_LOSSES and not any(name.startswith(f"{prefix}{word}") for word in JUDGED)}
        return {name: points for name, points in sorted(found.items(), reverse=True)
                if ("_d" in name) == lengths and (prefix == "train/" or f"train/{name}" in columns)}

    by_length = parts("train/", True)
    ordered = dict(sorted(by_length.items(), key=lambda item: int(item[0].rpartition("_d")[2] or 0)))
    stage_1: dict[str, Points] = {name: columns[name] for name in ("reconstruction", "regulariser") if name in columns}
    totals = {label: columns[name] for name, label in (("loss", "training"), ("val/loss", "held out"))
              if name in columns}
    return [
        chart("Loss", totals), chart("Parts, training", stage_1 or parts("train/", False)),
        chart("Parts, held-out masks", parts("val/", False)),
        chart("Self-consistency by step length (d1: the whole way)", ordered),
    ]


def quality_over_time(columns: dict[str, list[tuple[float, float]]]) -> list[str]:
    real = columns.get("val/frechet_real", [])
    drawn = [
        chart(title, by_count(columns, name), floor=real[-1][1] if real and name == "frechet" else None)
        for name, title in JUDGED.items()
    ]
    found = {label: columns[name] for name, label in (("val/iou", "IoU"), ("val/dice", "Dice")) if name in columns}
    copied = {"best IoU": columns["val/memorised"]} if "val/memorised" in columns else {}
    return [chart("Reconstruction of held-out masks", found), *drawn,
            chart("Nearest training mask of one-step masks (median IoU)", copied)]


def by_count(columns: dict[str, list[tuple[float, float]]], name: str) -> dict[str, Points]:
    """"1 step" -> the course of a number that validations gave for each number of steps."""
    counts = sorted(int(key.rpartition("_")[2]) for key in columns
                    if key.startswith(f"val/{name}_") and key.rpartition("_")[2].isdigit())
    return {f"{n} step{'s' * (n > 1)}": columns[f"val/{name}_{n}"] for n in counts}


def quality_by_steps(columns: dict[str, list[tuple[float, float]]], evaluation: dict[str, Any] | None) -> list[str]:
    """From evaluation.json, else from the last validation."""
    drawn = []
    for name, title in JUDGED.items():
        if evaluation:
            points = [(row["steps"], row[name]["mean"]) for row in evaluation["steps"] if name in row]
            floor = evaluation["real"].get(name, {}).get("mean")
        else:
            points = [(int(key.split()[0]), line[-1][1]) for key, line in by_count(columns, name).items()]
            real = columns.get("val/frechet_real", [])
            floor = real[-1][1] if real and name == "frechet" else None
        name_of_line = f"in {points[-1][0]} steps" if points else ""
        drawn.append(chart(title, {name_of_line: points}, NETWORK_STEPS, log_x=True, floor=floor))
    return drawn


def course(columns: dict[str, list[tuple[float, float]]]) -> list[str]:
    rate = next((points for name, points in columns.items() if name.startswith("lr-")), [])
    return [
        chart("Learning rate", {"learning rate": rate}),
        chart("Gradient norm", {"norm": columns.get("train/grad_norm", [])}),
        chart("Speed", {"masks per second": columns.get("train/masks_per_second", [])}),
    ]


def newest(pictures: dict[str, list[Picture]]) -> list[str]:
    """The last picture of each kind, large, with the names of its rows."""
    return [
        f'<figure class="grid">{row_names(own[-1])}<div><figcaption>{escape(spoken(tag))}</figcaption>'
        f"{image(own[-1])}</div></figure>"
        for tag, own in in_order(pictures)
    ]


def over_time(pictures: dict[str, list[Picture]]) -> list[str]:
    """A strip of pictures of each kind from the first validation to the last."""
    strips = []
    for tag, own in in_order(pictures):
        count = min(MOMENTS, len(own))
        chosen = [own[round(k * (len(own) - 1) / max(1, count - 1))] for k in range(count)]
        cells = "".join(f"<figure>{image(p)}<figcaption>step {p.step:,}</figcaption></figure>" for p in chosen)
        if count > 1:
            strips.append(f'<div class="strip"><h3>{escape(spoken(tag))}</h3><div>{cells}</div></div>')
    return strips


def in_order(pictures: dict[str, list[Picture]]) -> list[tuple[str, list[Picture]]]:
    """Few steps first."""
    return sorted(pictures.items(), key=lambda item: int("".join(filter(str.isdigit, item[0])) or 0))


def spoken(tag: str) -> str:
    """samples/4_steps -> 4 steps."""
    name = tag.rpartition("/")[2].replace("_", " ")
    return "1 step" if name == "1 steps" else name


def image(picture: Picture) -> str:
    content = base64.b64encode(picture.path.read_bytes()).decode()
    return f'<img alt="{escape(spoken(picture.tag))} at step {picture.step}" src="data:image/png;base64,{content}">'


def row_names(picture: Picture) -> str:
    return f'<ul class="rows">{"".join(f"<li>{escape(name)}</li>" for name in picture.rows)}</ul>'


def commands(run_dir: Path, run: Mapping[str, Any], cfg: Mapping[str, Any], pictures: dict[str, list[Picture]]) -> str:
    """What to type next, from the project's root."""
    python, folder = ".venv/bin/python -m", str(run_dir)
    last = shlex.quote(f"{folder}/{run['checkpoint']}")
    started = run.get("started_by", "")
    preset = next(iter(parted(started)[1]), "-")
    preset = "PRESET" if preset.startswith("-") or ":" in preset or preset.endswith(".json") else preset
    again = {"--train.run-dir": folder, "--train.resume": "auto"}
    if run["status"] == "complete":
        again["--train.max-steps"] = str(2 * int(cfg["train"]["max_steps"]))
        if minutes := float(cfg["train"]["max_minutes"]):
            again["--train.max-minutes"] = f"{2 * minutes:g}"
    longer = ", for longer" if run["status"] == "complete" else ""
    # A training that another program began has settings of no preset.
    found = [(f"go on with this training{longer}", with_options(started or go_on(run_dir), again))]
    if run["kind"] == "diffusion":
        rows = next((own[-1].rows for own in pictures.values() if own), ())
        prompt = shlex.quote(next((row for row in rows if row.strip() and row.isprintable()), "a heart"))
        found += [
            ("generate masks", f"bash scripts/generate_masks.sh --checkpoint {last} --prompt {prompt} --num 16"),
            ("judge it", f"{python} scripts.evaluate --checkpoint {last}"),
            ("make one file to share", f"{python} scripts.export --checkpoint {last}"),
        ]
    else:
        data = data_words(parted(started)[1])
        if begun := cfg.get("init"):  # configs of older trainings have none
            model = begun if begun in SHIPPED else "MODEL"
            sized = any(word.replace("_", "-").startswith("--data.image-size") for word in data)
            size = [] if sized else ["--data.image-size", str(cfg["data"]["image_size"])]
            data = ["--init", model, *size, *data]
        words = "".join(f" {shlex.quote(word)}" for word in data)
        found.append(("train stage 2 on it", f"bash scripts/train_stage_2.sh {preset}{words} --autoencoder {last}"))
    found.append(("write this page anew", f"{python} scripts.report {shlex.quote(folder)}"))
    return "".join(f"<p>{label}</p><pre>{escape(line)}</pre>" for label, line in found)


def data_words(words: Iterable[str]) -> list[str]:
    """Of a training's arguments, those that say which masks it sees, and at what size."""
    kept, keeps, before = [], False, ""
    for word in words:
        if word.startswith("--"):
            keeps = word.split("=")[0].replace("_", "-").startswith(("--data.source.", *SAME_MASKS))
        elif not before.startswith("--") and re.fullmatch(r"[a-z0-9._-]+:[a-z0-9_-]+", word):  # such as sampler:flow
            keeps = word.startswith("data.source:")
        before = word
        if keeps:
            kept.append(word)
    return kept


def with_options(command: str, options: Mapping[str, str]) -> str:
    """A command with these options in the place of those that it had."""
    words, kept = shlex.split(command), []
    while words:
        word = words.pop(0)
        if word.replace("_", "-") in options:
            words[:1] = []  # its value
        else:
            kept.append(word)
    return shlex.join([*kept, *(word for option in options.items() for word in option)])


def config_table(cfg: Mapping[str, Any]) -> str:
    plain = [(key, value) for key, value in cfg.items() if not isinstance(value, Mapping) and key != "type"]
    nested = [(key, value) for key, value in cfg.items() if isinstance(value, Mapping)]
    inner = "".join(f"<h3>{escape(key)}: {escape(str(value.get('type')))}</h3><div>{config_table(value)}</div>"
                    for key, value in nested)  # fmt: skip
    return table(plain) + inner


def table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in rows)
    return f"<table>{cells}</table>" if cells else ""

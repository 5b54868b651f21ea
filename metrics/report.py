"""An evaluation in numbers and in a table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def summary(values: list[float]) -> dict[str, float]:
    """Mean, and with several values their standard deviation."""
    mean = {"mean": statistics.fmean(values)}
    if len(values) == 1:
        return mean
    numbers = all(map(math.isfinite, values))  # or Python 3.11 has no deviation of them, but an AttributeError
    return mean | {"std": statistics.stdev(values) if numbers else math.nan}


def summaries(results: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """``summary`` of each number that all repetitions have, and that is one: empty masks have no eccentricity."""
    found = {key: [one[key] for one in results] for key in keys_of_all(results)}
    return {key: summary(values) for key, values in found.items() if not any(map(math.isnan, values))}


def keys_of_all(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that all of them have, in the order of the first: ``retrieval`` is missing where captions were few."""
    return [key for key in results[0] if all(key in one for one in results)]


COLUMNS = (
    ("count_right", "count right", ".3f", 1), ("size_right", "size right", ".3f", 1),
    ("shape_right", "shape right", ".3f", 1), ("place_right", "place right", ".3f", 1),
    ("all_right", "all right", ".3f", 1),
    ("sketch_iou", "IoU to sketch", ".3f", 1),
    ("accuracy", "accuracy", ".3f", 1), ("retrieval", "retrieval", ".3f", 1), ("frechet", "Frechet", ".3f", 1),
    ("kernel", "kernel x1000", ".2f", 1000), ("coverage", "coverage", ".3f", 1), ("memorised", "best IoU", ".3f", 1),
    ("pairwise_iou", "pair IoU", ".3f", 1), ("grey", "grey", ".2%", 1), ("ms_per_mask", "ms/mask", ".1f", 1),
)
SHAPES = ("area", "perimeter", "components", "holes", "eccentricity")


def as_table(report: dict[str, Any]) -> str:
    """The report for people."""
    stage_1, judge = report["stage_1"], report["judge"]
    rows = [("real masks", report["real"])] + [(f"{row['steps']} steps", row) for row in report["steps"]]
    columns = [column for column in COLUMNS if column[0] in report["steps"][0]]
    shapes = [(f"shape_{name}", name, ".4g", 1) for name in SHAPES]
    num_real = report.get("num_real", report["num"])
    few = f" ({num_real} real ones, all there are, and farther for it)" if num_real < report["num"] else ""
    return "\n".join([
        "",
        f"stage 1, {stage_1['num']} held-out masks: IoU {stage_1['iou']:.4f}, Dice {stage_1['dice']:.4f}, boundary F1 "
        f"{stage_1['boundary_f1']:.4f}, pieces wrong in {stage_1['component_miss']:.1%}",
        f"features: {report['features']}; {judge.get('note') or _accuracy(judge)}",
        f"{report['num']} masks per row{few}, seeds {report['seeds']}, sampler {report['sampler']}, "
        f"guidance {report['guidance']:g}; {report['frechet_name']} (squared) to all {report['num_held_out']} held-out "
        "masks; best IoU: median over the nearest training mask",
        "",
        *_lines(rows, columns),
        "",
        "shape statistics, 1-D Wasserstein distance to the held-out masks",
        *_lines(rows, shapes),
    ])


def _lines(rows: list[tuple[str, dict[str, Any]]], columns: Sequence[tuple[str, str, str, float]]) -> list[str]:
    wide = any("std" in value for _, row in rows for value in row.values() if isinstance(value, dict))
    width = 17 if wide else 13
    lines = [f"{'':>10} " + " ".join(f"{title:>{width}}" for _, title, _, _ in columns)]
    for name, row in rows:
        cells = (_cell(row.get(key), form, unit) for key, _, form, unit in columns)
        lines.append(f"{name:>10} " + " ".join(f"{cell:>{width}}" for cell in cells))
    return lines


def _accuracy(judge: dict[str, Any]) -> str:
    return f"right on {judge['accuracy']:.1%} of the held-out masks"


def _cell(value: dict[str, float] | None, form: str, unit: float) -> str:
    if value is None:
        return "-"
    return f"{unit * value['mean']:{form}}" + (f" ± {unit * value['std']:{form}}" if "std" in value else "")

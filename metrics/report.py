"""An evaluation in numbers and in a table."""

import statistics
from typing import Any


def summary(values: list[float]) -> dict[str, float]:
    """Mean, and with several values their standard deviation."""
    mean = {"mean": statistics.fmean(values)}
    return mean | {"std": statistics.stdev(values)} if len(values) > 1 else mean


def as_table(report: dict[str, Any]) -> str:
    """The report for people."""
    stage_1, judge = report["stage_1"], report["judge"]
    lines = [
        "",
        f"stage 1, {stage_1['num']} held-out masks: IoU {stage_1['iou']:.4f}, Dice {stage_1['dice']:.4f}",
        f"features: {judge['features']}; {judge.get('note') or _accuracy(judge)}",
        f"{report['num']} masks per row, seeds {report['seeds']}, sampler {report['sampler']}, "
        f"guidance {report['guidance']:g}; Frechet distance to all {report['num_held_out']} held-out masks",
        "",
        f"{'steps':>10} {'accuracy':>16} {'Frechet':>16} {'grey pixels':>16} {'ms per mask':>16}",
        f"{'real masks':>10} {_share(judge):>16} {_cell(report['frechet_floor'], '.3f'):>16}",
    ]
    for row in report["steps"]:
        cells = (("accuracy", ".3f"), ("frechet", ".3f"), ("grey", ".2%"), ("ms_per_mask", ".1f"))
        lines.append(f"{row['steps']:>10} " + " ".join(f"{_cell(row.get(key), form):>16}" for key, form in cells))
    return "\n".join(lines)


def _accuracy(judge: dict[str, Any]) -> str:
    return f"right on {judge['held_out_accuracy']:.1%} of the held-out masks"


def _share(judge: dict[str, Any]) -> str:
    return f"{judge['held_out_accuracy']:.3f}" if "held_out_accuracy" in judge else "-"


def _cell(value: dict[str, float] | None, form: str) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:{form}}" + (f" ± {value['std']:{form}}" if "std" in value else "")

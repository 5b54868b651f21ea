"""Several evaluations side by side: a table, and a figure of quality against steps."""

import json
from pathlib import Path
from typing import Any

from metrics.report import keys_of_all, summary

FIGURE_NUMBERS = (
    ("frechet", "Frechet distance (squared)"),
    ("accuracy", "prompt accuracy"),
    ("retrieval", "retrieval accuracy among 100"),
    ("coverage", "coverage"),
)


def gather(runs: list[tuple[str, Path]], costs: dict[str, float]) -> list[dict[str, Any]]:
    """One row for each name and guidance, over the evaluation files of its runs' folders.

    Args:
        runs: (name, folder) of each training; folders that were not judged yet are left out.
        costs: seconds per training step of each name.
    """
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for name, folder in runs:
        for path in sorted(folder.glob("evaluation-*.json")):
            judged = json.loads(path.read_text())
            found.setdefault((name, judged["guidance"]), []).append(judged)
    unit = next(iter(costs.values()))
    return [as_row(name, judged, costs[name] / unit) for (name, _), judged in found.items()]


def as_row(name: str, judged: list[dict[str, Any]], cost: float = 1.0) -> dict[str, Any]:
    """What several judgements of one training with several seeds say, as one row."""
    steps: dict[str, dict[str, dict[str, float]]] = {}
    for i, row in enumerate(judged[0]["steps"]):
        numbers = [key for key in keys_of_all([one["steps"][i] for one in judged]) if key != "steps"]
        steps[str(row["steps"])] = {key: summary([one["steps"][i][key]["mean"] for one in judged]) for key in numbers}
    return {
        "name": name, "guidance": judged[0]["guidance"], "cost": cost,
        "training_steps": judged[0]["trained"]["train"]["max_steps"], "num": judged[0]["num"],
        "seeds": [one["trained"]["train"]["seed"] for one in judged],
        "real": {
            key: summary([one["real"][key]["mean"] for one in judged])
            for key in keys_of_all([one["real"] for one in judged])
        },
        "steps": steps,
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, best one-step distance first."""
    if not rows:
        return "nothing was judged yet"
    counts = list(rows[0]["steps"])
    first = rows[0]["steps"][counts[0]]
    right = [key for key in ("accuracy", "retrieval") if key in first]
    head = ["training", "guidance", "cost of a step", "steps", "seeds", *(f"in {n}" for n in counts)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda row: row["steps"][counts[0]]["frechet"]["mean"]):
        cells = [row["name"], f"{row['guidance']:g}", f"{row['cost']:.2f}", str(row["training_steps"])]
        cells.append(str(len(row["seeds"])))
        for count in counts:
            found = row["steps"][count]
            cells.append(", ".join(_number(found[key]) for key in ("frechet", *right) if key in found))
        lines.append("| " + " | ".join(cells) + " |")
    floor = rows[0]["real"]["frechet"]["mean"]
    words = ", ".join(["squared Frechet distance", *(f"prompt {key}" for key in right)])
    lines += ["", f"Cells: {words}; N = {rows[0]['num']}, floor {floor:.3f}."]
    return "\n".join(lines)


def _number(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f}" + (f" ± {value['std']:.3f}" if "std" in value else "")


def quality_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance and accuracy against the number of steps, a line for each row, with the real-vs-real floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shared = keys_of_all([found for row in rows for found in row["steps"].values()]) if rows else []
    numbers = [(key, label) for key, label in FIGURE_NUMBERS if key in shared]
    figure, axes = plt.subplots(1, max(1, len(numbers)), figsize=(5.5 * max(1, len(numbers)), 4.5), squeeze=False)
    for axis, (key, label) in zip(axes[0], numbers, strict=False):
        for row in rows:
            counts = [int(n) for n in row["steps"]]
            means = [row["steps"][str(n)][key]["mean"] for n in counts]
            spread = [row["steps"][str(n)][key].get("std", 0.0) for n in counts]
            guided = f" (guidance {row['guidance']:g})" if row["guidance"] != 1 else ""
            axis.errorbar(counts, means, yerr=spread, marker="o", markersize=4, capsize=2, label=row["name"] + guided)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(n) for n in counts])
        axis.set_xlabel("network steps")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if key == "frechet":
            axis.set_yscale("log")
        if key in rows[0]["real"]:
            axis.axhline(rows[0]["real"][key]["mean"], color="black", linestyle=":", label="real masks")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

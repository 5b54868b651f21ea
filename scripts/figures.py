"""Draw the figures of docs/objectives.md: ``python -m scripts.figures``.

Each shows what one objective asks of the network, on data of one dimension whose velocity is known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.cli import parse
from configs.figures_cfg import FiguresCfg
from scripts.run import refuse_kindly

MODES, SPREAD = (-1.0, 1.0), 0.12  # of the data
GREY, TARGET, SOURCE = "#c9c5bb", "#2563eb", "#d97706"
AT = (0.12, -0.22)  # time and place of what most figures look at


def velocity(t: float, x: float) -> float:
    """E[x1 - noise | x_t = x] on the straight path."""
    total = weights = 0.0
    for mode in MODES:
        variance = (1 - t) ** 2 + (t * SPREAD) ** 2
        off = x - t * mode
        weight = math.exp(-(off**2) / (2 * variance)) / math.sqrt(variance)
        total += weight * (mode + off * (t * SPREAD**2 - (1 - t)) / variance)
        weights += weight
    return total / weights


def flow(t: float, x: float, until: float, steps: int = 200) -> list[tuple[float, float]]:
    """The path from (t, x), by the midpoint rule."""
    points, dt = [(t, x)], (until - t) / steps
    for _ in range(steps):
        middle = x + dt / 2 * velocity(t, x)
        x, t = x + dt * velocity(t + dt / 2, middle), t + dt
        points.append((t, x))
    return points


def end(t: float, x: float, until: float) -> tuple[float, float]:
    return flow(t, x, until)[-1]


def line(axis: Any, points: list[tuple[float, float]], colour: str, **style: Any) -> None:
    axis.plot(*zip(*points, strict=True), color=colour, **{"linewidth": 2.2, "zorder": 3} | style)


def arrow(axis: Any, begin: tuple[float, float], tip: tuple[float, float], colour: str, **style: Any) -> None:
    axis.annotate("", tip, begin, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.2} | style, zorder=4)


def along(t: float, x: float, dt: float, slope: float | None = None) -> tuple[float, float]:
    return t + dt, x + dt * (velocity(t, x) if slope is None else slope)


def draw_flow(axis: Any) -> None:
    noise, mask = -0.2, -1.0
    line(axis, [(0, noise), (1, mask)], SOURCE, linestyle=":", marker="o", markersize=5)
    here = (0.35, noise + 0.35 * (mask - noise))
    arrow(axis, here, along(*here, 0.3, mask - noise), SOURCE)
    arrow(axis, here, along(*here, 0.3), TARGET)


def draw_two_parts(axis: Any, first: float, whole: float) -> None:
    middle, last = end(*AT, AT[0] + first), end(*AT, AT[0] + whole)
    arrow(axis, AT, middle, SOURCE)
    arrow(axis, middle, last, SOURCE)
    arrow(axis, AT, last, TARGET)


def draw_soflow(axis: Any) -> None:
    middle, last = along(*AT, 0.12), end(*AT, 0.95)
    arrow(axis, AT, middle, SOURCE, lw=3.4)
    arrow(axis, middle, last, SOURCE)
    arrow(axis, AT, last, TARGET)


def draw_meanflow(axis: Any, slope: float | None = None) -> None:
    last = end(*AT, 0.85)
    for eps in (-0.09, 0.09):
        probe = along(*AT, eps, slope)
        line(axis, [probe], SOURCE, marker="o", markersize=6)
        line(axis, [probe, end(*probe, 0.85)], SOURCE, linewidth=1.4, linestyle="--")
    arrow(axis, AT, last, TARGET)


def draw_lagrangian(axis: Any) -> None:
    last = end(*AT, 0.55)
    arrow(axis, AT, last, TARGET)
    arrow(axis, last, along(*last, 0.2), SOURCE)
    line(axis, flow(*AT, 0.9), SOURCE, linewidth=1.2, linestyle=":")


def draw_trajectory(axis: Any) -> None:
    nodes = [end(0.0, -0.2, k / 6) if k else (0.0, -0.2) for k in range(7)]
    line(axis, nodes, SOURCE, marker="o", markersize=5)
    for begin, tip in ((0, 6), (1, 4), (2, 6)):
        arrow(axis, nodes[begin], nodes[tip], TARGET, lw=1.6)


def steps_of(eta: float, seed: int = 3) -> list[tuple[float, float]]:
    """DDIM's steps on the straight path with the share ``eta`` of fresh noise."""
    import random

    draw, points = random.Random(seed), [(0.0, -0.2)]
    for k in range(8):
        t, x = points[-1]
        s = (k + 1) / 8
        v = velocity(t, x)
        x1, noise = x + (1 - t) * v, x - t * v
        renewed = eta**2 * (1 - (t * (1 - s) / (s * (1 - t))) ** 2) if s < 1 else 0.0
        points.append((s, s * x1 + (1 - s) * (math.sqrt(1 - renewed) * noise + math.sqrt(renewed) * draw.gauss(0, 1))))
    return points


def draw_steps(axis: Any, eta: float) -> None:
    points = steps_of(eta)
    line(axis, points, SOURCE, marker="o", markersize=4)
    t, x = points[3]
    arrow(axis, (t, x), (1.0, x + (1 - t) * velocity(t, x)), TARGET)


FIGURES: dict[str, Callable[[Any], None]] = {
    "flow": draw_flow,
    "shortcut": lambda axis: draw_two_parts(axis, 0.35, 0.7),
    "split": lambda axis: draw_two_parts(axis, 0.25, 0.8),
    "soflow": draw_soflow,
    "meanflow": lambda axis: draw_meanflow(axis, -1.3),  # a mask's own velocity
    "imf": draw_meanflow,
    "lagrangian": draw_lagrangian,
    "trajectory": draw_trajectory,
    "ddpm": lambda axis: draw_steps(axis, 1.0),
    "ddim": lambda axis: draw_steps(axis, 0.0),
}


def draw_all(out: Path) -> list[Path]:
    """One PNG for each objective."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    paths = [flow(0.0, x / 10, 1.0, 120) for x in range(-22, 23, 4)]
    written = []
    for name, draw in FIGURES.items():
        figure, axis = plt.subplots(figsize=(4.6, 2.5))
        for points in paths:
            line(axis, points, GREY, linewidth=1, zorder=1)
        draw(axis)
        axis.set(xlim=(-0.03, 1.03), ylim=(-2.1, 2.1) if name in ("ddpm",) else (-1.35, 0.8), yticks=[])
        axis.set_xticks([0, 1], ["0: noise", "1: mask"])
        axis.spines[["top", "right", "left"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": ""})
        plt.close(figure)
        written.append(out / f"{name}.png")
    return written


def main(argv: list[str] | None = None) -> None:
    cfg: FiguresCfg = parse(FiguresCfg, argv, "python -m scripts.figures", "Draw the figures of docs/objectives.md.")
    with refuse_kindly("figures"):
        for path in draw_all(Path(cfg.out).expanduser()):
            print(path)


if __name__ == "__main__":
    main()

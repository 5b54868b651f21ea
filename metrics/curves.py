"""Line charts as SVG text, for a page at the end of every training: matplotlib would take seconds to load and draw."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 38
DENSE = 40  # points from which a line is smoothed, with the points faint behind it
COLOURS = 7  # those of the page's style: .c0 to .c6


def line_chart(lines: Mapping[str, Points], x_label: str, *, log_x: bool = False, floor: float | None = None) -> str:
    """An SVG with one line per name, its legend and axes; ``floor`` is a dotted level, "real masks".

    x begins at 0, or at its least value where it is logarithmic. y is logarithmic where positive values differ by more
    than 30 times; points that are no finite number are left out.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    levels = [y for points in finite.values() for _, y in points] + ([floor] if floor is not None else [])
    log_y = min(levels) > 0 and max(levels) / min(levels) > 30
    along = [x for points in finite.values() for x, _ in points] + ([] if log_x else [0.0])
    xs = Axis(along, LEFT, WIDTH - RIGHT, log_x, exact=True)
    ys = Axis(levels, HEIGHT - BOTTOM, TOP, log_y)
    ticks_x = sorted({x for points in finite.values() for x, _ in points}) if log_x else xs.ticks(5)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for y in ys.ticks(5):
        at = ys.place(y)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text class="tick" x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x in ticks_x:
        parts.append(f'<text class="tick" x="{xs.place(x):.1f}" y="{HEIGHT - BOTTOM + 17}" '
                     f'text-anchor="middle">{number(x)}</text>')
    parts.append(f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" '
                 f'text-anchor="middle">{escape(x_label)}</text>')
    if floor is not None:
        parts.append(f'<path class="floor" d="M{LEFT} {ys.place(floor):.1f}H{WIDTH - RIGHT}"/>')
    for i, points in enumerate(finite.values()):
        colour = f"c{i % COLOURS}"
        shown = points
        if len(points) > DENSE:
            parts.append(f'<path class="raw {colour}" d="{path(points, xs, ys)}"/>')
            shown = smoothed(points)
        parts.append(f'<path class="line {colour}" d="{path(shown, xs, ys)}"/>')
        if len(points) <= 12:
            parts += [f'<circle class="{colour}" cx="{xs.place(x):.1f}" cy="{ys.place(y):.1f}" r="3">'
                      f"<title>{number(x)}: {y:.4g}</title></circle>" for x, y in points]  # fmt: skip
    parts.append("</svg>")
    keys = [f'<span class="key c{i % COLOURS}">{escape(name)} <b>{points[-1][1]:.3g}</b></span>'
            for i, (name, points) in enumerate(finite.items())]  # fmt: skip
    if floor is not None:
        keys.append(f'<span class="key real">real masks <b>{floor:.3g}</b></span>')
    return f'{"".join(parts)}<div class="legend">{"".join(keys)}</div>'


class Axis:
    """Values along one side of a chart: ``begin`` and ``end`` are pixels."""

    def __init__(self, values: Sequence[float], begin: float, end: float, log: bool, exact: bool = False) -> None:
        self.log, self.begin, self.end = log, begin, end
        low, high = self.scale(min(values)), self.scale(max(values))
        if low == high:
            room = max(0.5, 0.1 * abs(low))
            low, high = low - room, high + room
        room = 0.0 if exact else 0.06 * (high - low)
        if min(values) >= 0 and not log and not exact and low < 0.5 * high:
            low, room = 0.0, 0.06 * high  # an axis that shows most of the way to zero shows all of it
            self.low, self.high = 0.0, high + room
        else:
            self.low, self.high = low - room, high + room

    def scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        share = (self.scale(value) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, about: int) -> list[float]:
        """Round values inside the axis."""
        if self.log:
            rounds = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
            inside = [v for v in rounds if self.low <= math.log10(v) <= self.high]
            powers = [v for v in inside if math.isclose(math.log10(v) % 1, 0, abs_tol=1e-9)]
            return powers if len(powers) >= 3 else inside
        rough = (self.high - self.low) / about
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def path(points: Points, xs: Axis, ys: Axis) -> str:
    return "M" + "L".join(f"{xs.place(x):.1f} {ys.place(y):.1f}" for x, y in points)


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Means over a fifteenth of the points around each."""
    half = max(1, len(points) // 30)
    found = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - half) : i + half + 1]]
        found.append((x, sum(near) / len(near)))
    return found


def number(value: float) -> str:
    """As short as it can be: 20000 is 20k."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.6g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"

"""Names beside the points of a figure, so placed that none lies on another, on a point, or outside of the axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import cos, hypot, pi, sin

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

RADII = (7, 14, 22, 32, 44, 58, 74, 92)  # of a label's near edge from its point, in printer's points
TURNS = (0.25, 0.0, 1.75, 1.25, 0.75, 1.0, 0.5, 1.5, 0.125, 1.875, 0.875, 1.125)  # half turns, the best first
LED = 14  # from this radius on a thin line leads to the point
DOT = 6  # pixels around a point that are its own
GAP = 6  # pixels between two labels, and between one and the axes
STEPS = 40  # boxes along a line between two points


Named = tuple[str, tuple[float, float], str]  # what to write, the point in the axes' units, a colour


def name_points(axis: Axes, points: Sequence[Named], size: float = 8.5) -> list[Annotation]:
    """Write each name beside its point, those given first at the best places; returns the labels. Points outside of the axes' limits,
    which must be set before, get none. Where a name finds no free place it stands at the last that was tried."""
    axis.figure.canvas.draw()
    frame = axis.get_window_extent()
    shown = [one for one in points if frame.contains(*axis.transData.transform(one[1]))]
    taken, labels = [*(_dot(axis, at) for _, at, _ in shown), *_along(axis)], []
    for name, at, colour in shown:
        label = axis.annotate(name, at, fontsize=size, color=colour, textcoords="offset points", xytext=(0, 0))
        extent = label.get_window_extent()
        offset, box = _free(axis, at, (extent.width, extent.height), taken, frame)
        label.remove()
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0} if hypot(*offset) >= LED else None
        labels.append(_label(axis, (name, at, colour), offset, size, arrow))
        taken.append(box)
    return labels


def _dot(axis: Axes, at: tuple[float, float], reach: float = DOT) -> Bbox:
    x, y = axis.transData.transform(at)
    return Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)


def _along(axis: Axes) -> Iterator[Bbox]:
    """Small boxes along the lines between points, so that names do not lie on them."""
    for line in axis.lines:
        for a, b in pairwise(line.get_xydata()):
            yield from (_dot(axis, a + (b - a) * k / STEPS, 2) for k in range(STEPS + 1))


def _free(
    axis: Axes, at: tuple[float, float], size: tuple[float, float], taken: list[Bbox], frame: Bbox
) -> tuple[tuple[float, float], Bbox]:
    """Where a text of this size (pixels) stands beside its point: the offset in printer's points, and its box in pixels."""
    x, y = axis.transData.transform(at)
    scale, (wide, high) = axis.figure.dpi / 72, size
    for radius, turn in product(RADII, TURNS):
        across, up = _direction(turn)
        offset = radius * across, radius * up
        left, low = (
            x + offset[0] * scale + wide * (_side(across) - 1) / 2,
            y + offset[1] * scale + high * (_side(up) - 1) / 2,
        )
        box = Bbox.from_bounds(left - GAP, low, wide + 2 * GAP, high)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            break
    return offset, box


def _direction(turn: float) -> tuple[float, float]:
    return cos(turn * pi), sin(turn * pi)


def _side(way: float) -> int:
    """1 where the text begins at its place, -1 where it ends there, 0 where that is its middle."""
    return 1 if way > 0.3 else -1 if way < -0.3 else 0


def _label(axis: Axes, named: Named, offset: tuple[float, float], size: float, arrow: dict | None) -> Annotation:
    name, at, colour = named
    length = hypot(*offset)
    across, up = (_side(part / length) for part in offset)
    return axis.annotate(
        name,
        at,
        xytext=offset,
        textcoords="offset points",
        ha={1: "left", -1: "right", 0: "center"}[across],
        va={1: "bottom", -1: "top", 0: "center"}[up],
        fontsize=size,
        color=colour,
        arrowprops=arrow,
    )

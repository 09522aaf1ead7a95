"""The plots of a selection's card, as SVG that is the same for the same selection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core.selection import measures
from core.selection.measures import Curve
from core.selection.pool import Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, GREY, ORANGE = "#3b6fb6", "#9aa0a6", "#d9822b"
COLOURS = (BLUE, GREY, ORANGE, "#3d9970")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "basiscope",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
"""Names from the data are text, never formulas; ids in the files do not change from one writing to the next."""
NAME_CHARACTERS = 30


def write_plot(path: Path, draw: Callable[[list[Axes]], None], panels: int = 1) -> None:
    """Write the SVG of `panels` axes side by side that `draw` fills."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(4.5 * panels, 3.2), layout="constrained")
        draw(list(figure.subplots(1, panels, squeeze=False)[0]))
        figure.savefig(path, format="svg", dpi=150, metadata={"Date": None, "Creator": None})


def draw_covering(axes: list[Axes], curves: Mapping[str, Curve]) -> None:
    """Covering radius and mean distance of each curve against the budget."""
    for place, title, measure in zip(axes, ("covering radius", "mean distance"), ("radius", "mean"), strict=True):
        for (name, one), colour in zip(curves.items(), COLOURS, strict=False):
            place.plot(one.budgets, getattr(one, measure), color=colour, label=name)
        place.set(xlabel="examples", ylabel=title, ylim=(0, None))
        place.legend(frameon=False)


def draw_directions(axes: list[Axes], pool: Pool, rows: np.ndarray) -> None:
    """Mean and spread of the chosen on every direction, in standard deviations of the pool; and their lengths."""
    left, right = axes
    found = measures.direction_coverage(pool, rows)
    left.axhspan(-1, 1, color=GREY, alpha=0.2, lw=0)
    left.errorbar(found["direction"], found["mean shift (SD)"], found["spread (SD)"], fmt="o", color=BLUE)
    left.set(xlabel="direction", ylabel="SD of the pool (grey: the pool)")
    edges = np.histogram_bin_edges(pool.lengths, 30)
    for values, colour, name in ((pool.lengths, GREY, "pool"), (pool.lengths[rows], BLUE, "selection")):
        right.hist(values, edges.tolist(), density=True, color=colour, alpha=0.6, label=name)
    right.set(xlabel="tokens", ylabel="share of the examples, per token")
    right.legend(frameon=False)


def draw_composition(axes: list[Axes], shares: pd.DataFrame, column: str) -> None:
    """Shares of a column's most frequent values, a group of bars a value."""
    (place,) = axes
    heights = np.arange(len(shares), dtype=float)
    for i, (name, colour) in enumerate(zip(shares, (GREY, BLUE, ORANGE), strict=False)):
        place.barh(heights + 0.27 * (i - 1), shares[name], 0.27, color=colour, label=str(name))
    place.set_yticks(heights, [_short(value) for value in shares.index])
    place.invert_yaxis()
    place.set(xlabel=f"share, by {_short(column)}")
    place.legend(frameon=False)


def draw_map(axes: list[Axes], points: np.ndarray, rows: np.ndarray) -> None:
    """The pool's map with the chosen examples in it, as a picture within the SVG."""
    (place,) = axes
    place.scatter(points[:, 0], points[:, 1], s=3, color=GREY, alpha=0.35, lw=0, rasterized=True, label="pool")
    place.scatter(points[rows, 0], points[rows, 1], s=9, color=BLUE, lw=0, rasterized=True, label="selection")
    place.set(xticks=[], yticks=[], xlabel="map, across", ylabel="map, up")
    place.legend(frameon=False, loc="upper right")  # to look for the best place is slow


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= NAME_CHARACTERS else text[: NAME_CHARACTERS - 1] + "…"

"""Value types -> figures: Plotly for the small ones, ECharts options for scatters of many points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#9aa0a6"
DIVERGING = ("#2b5c9e", "#5a8cc9", "#9dbbe0", "#b9b9b9", "#ecb48a", "#dd8440", "#b3541e")
CATEGORIES = ("#3b6fb6", "#d9822b", "#3d9970", "#b5446e", "#7a5fb0", "#8c6d46", "#2aa1b3", "#c2b02f")
OTHER = "#9aa0a6"


def spectrum(directions: pd.DataFrame) -> go.Figure:
    """Explained variance per direction with its 95% bootstrap interval, and the cumulative share."""
    import plotly.graph_objects as go

    share = directions["explained_variance"]
    low, high = directions["explained_variance_low"], directions["explained_variance_high"]
    error = {
        "type": "data",
        "symmetric": False,
        "array": (high - share).clip(lower=0),
        "arrayminus": (share - low).clip(lower=0),
        "thickness": 1.2,
        "color": GREY,
    }
    bars = go.Bar(
        x=directions["direction"],
        y=share,
        error_y=error,
        name="one direction",
        marker_color=BLUE,
        hovertemplate="direction %{x}: %{y:.1%}<extra></extra>",
    )
    line = go.Scatter(
        x=directions["direction"],
        y=share.cumsum(),
        name="cumulative",
        mode="lines+markers",
        line={"color": ORANGE},
        hovertemplate="1 to %{x}: %{y:.1%}<extra></extra>",
    )
    return _styled(go.Figure([bars, line]), "direction", "share of the variance", percent=True)


def block_energy_map(energies: np.ndarray, blocks: Sequence[int]) -> go.Figure:
    """Heat map of block energies (k, blocks): where in the model each direction lives."""
    import plotly.graph_objects as go

    heat = go.Heatmap(
        z=energies,
        x=[str(block) for block in blocks],
        y=[str(j + 1) for j in range(len(energies))],
        colorscale="Blues",
        zmin=0,
        hovertemplate="direction %{y}, block %{x}: %{z:.1%}<extra></extra>",
        colorbar={"tickformat": ".0%", "thickness": 12},
    )
    figure = _styled(go.Figure(heat), "block", "direction")
    return figure.update_yaxes(autorange="reversed", type="category").update_xaxes(type="category")


def stability(directions: pd.DataFrame, limit: float) -> go.Figure:
    """Angles under resampling, median and 95th percentile, of each direction and of each leading span."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for column, name, colour in (
        ("angle", "direction alone", BLUE),
        ("subspace_angle", "span of 1 to it", ORANGE),
    ):
        median, high = directions[column], directions[f"{column}_95"]
        figure.add_scatter(
            x=directions["direction"],
            y=median,
            error_y={"type": "data", "symmetric": False, "array": high - median, "arrayminus": 0 * median},
            name=name,
            mode="markers",
            marker={"color": colour, "size": 8},
            hovertemplate="%{x}: median %{y:.0f} degrees<extra></extra>",
        )
    figure.add_hline(y=limit, line_dash="dot", line_color=GREY)
    return _styled(figure, "direction", "angle in degrees").update_yaxes(range=[0, 92])


def histogram(values: np.ndarray) -> go.Figure:
    """Distribution of one direction's scores (n,)."""
    import plotly.graph_objects as go

    counts, edges = np.histogram(values, bins=min(60, max(10, len(values) // 20)))
    bars = go.Bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges),
        marker_color=BLUE,
        hovertemplate="score %{x:.3g}: %{y} examples<extra></extra>",
    )
    figure = _styled(go.Figure(bars), "score", "examples")
    return figure.update_layout(height=220, showlegend=False, bargap=0.02)


def _styled(figure: go.Figure, x: str, y: str, percent: bool = False) -> go.Figure:
    figure.update_layout(
        height=330,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.08, "x": 0},
        xaxis_title=x,
        yaxis_title=y,
    )
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero") if percent else figure


# --- scatters of many points ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ColourBins:
    """Every example's colour: codes (n,) index `names` and `colours`; the codes of missing values too."""

    codes: np.ndarray
    names: tuple[str, ...]
    colours: tuple[str, ...]


def colour_bins(values: pd.Series) -> ColourBins:
    """Numbers in seven bins of equal count from low to high, anything else by its most frequent values."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and values.nunique() > 8:
        codes, edges = pd.qcut(values, len(DIVERGING), labels=False, retbins=True, duplicates="drop")
        names = tuple(f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges))
        picks = np.linspace(0, len(DIVERGING) - 1, len(names)).round().astype(int)
        colours = tuple(DIVERGING[i] for i in picks)
    else:
        text = values.map(lambda value: None if pd.isna(value) else str(value)[:40])
        names = tuple(text.value_counts().index[: len(CATEGORIES)])
        codes = text.map({name: i for i, name in enumerate(names)})
        colours = CATEGORIES[: len(names)]
    numbers = pd.Series(codes).fillna(len(names)).to_numpy(dtype=int)
    if (numbers == len(names)).any():
        names, colours = (*names, "other or missing"), (*colours, OTHER)
    return ColourBins(numbers, names, colours)


def scatter(
    points: np.ndarray, bins: ColourBins, kept: np.ndarray | None, x: str, y: str, dark: bool
) -> dict[str, Any]:
    """ECharts options for points (n, 2), one large series per colour, with a lasso.

    kept: (n,) bool of the examples chosen elsewhere, or None; the others fade. Points that are not a number
    have no place and are left out.
    """
    drawn = np.isfinite(points).all(axis=1)
    chosen = np.ones(len(points), dtype=bool) if kept is None else kept
    datasets, series = [], []
    for code, (name, colour) in enumerate(zip(bins.names, bins.colours, strict=True)):
        for is_chosen, opacity in ((False, 0.08), (True, 0.75)):
            rows = drawn & (bins.codes == code) & (chosen == is_chosen)
            if rows.any():
                datasets.append({"source": pd.DataFrame(points[rows].astype(np.float32), columns=["x", "y"])})
                series.append(_series(name, len(datasets) - 1, colour, opacity, int(drawn.sum())))
    axis = {"scale": True, "nameLocation": "middle", "nameGap": 28}
    axis |= {"splitLine": {"show": False}, "axisLine": {"onZero": False}}
    return {
        "dataset": datasets,
        "series": series,
        "xAxis": {"name": x} | axis,
        "yAxis": {"name": y} | axis,
        "grid": {"left": 48, "right": 12, "top": 56, "bottom": 44},
        "legend": {"type": "scroll", "top": 0, "left": 0, "width": "94%", "data": _legend(bins, series)},
        "toolbox": {
            "top": 22,
            "right": 8,
            "itemSize": 18,
            "itemGap": 12,
            "feature": {"brush": {"type": ["polygon", "rect", "clear"]}},
        },
        "brush": {"xAxisIndex": 0, "yAxisIndex": 0, "throttleType": "debounce", "throttleDelay": 200},
        "dataZoom": [{"type": "inside", "xAxisIndex": 0}, {"type": "inside", "yAxisIndex": 0}],
        "darkMode": dark,
        "animation": False,
    }


def _series(name: str, dataset: int, colour: str, opacity: float, n: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "datasetIndex": dataset,
        "encode": {"x": "x", "y": "y"},
        "large": True,
        "largeThreshold": 1,
        "symbolSize": 3 if n > 10_000 else 5,
        "itemStyle": {"color": colour, "opacity": opacity},
        "silent": True,
    }


def _legend(bins: ColourBins, series: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    shown = {entry["name"] for entry in series}
    pairs = zip(bins.names, bins.colours, strict=True)
    return [{"name": name, "itemStyle": {"color": c, "opacity": 1}} for name, c in pairs if name in shown]


def inside(points: np.ndarray, areas: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(n,) whether each of points (n, 2) lies in any brushed area, `rect` or `polygon` (even-odd rule)."""
    found = np.zeros(len(points), dtype=bool)
    for area in areas:
        region = np.asarray(area["coord_range"], dtype=float)
        if area["brush_type"] == "rect":
            (left, right), (low, high) = np.sort(region, axis=1)
            x, y = points.T
            found |= (x >= left) & (x <= right) & (y >= low) & (y <= high)
        elif area["brush_type"] == "polygon" and len(region) > 2:
            found |= _in_polygon(points, region)
    return found


def _in_polygon(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    x, y = points.T
    odd = np.zeros(len(points), dtype=bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            odd ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return odd


# --- shaded tokens --------------------------------------------------------------------------------------


def shaded_tokens(tokens: Sequence[str], scores: np.ndarray, characters: int | None = None) -> str:
    """HTML of a text with every token shaded by its score (tokens,): orange above the mean, blue below.

    Tokens are escaped. Tokens without a score are grey. The scale is the whole text's own 95th percentile,
    also where only the first `characters` are shown.
    """
    from html import escape

    finite = scores[np.isfinite(scores)]
    scale = max(float(np.quantile(np.abs(finite), 0.95)), 1e-12) if len(finite) else 1.0
    parts: list[str] = []
    shown = 0
    for token, score in zip(tokens, scores, strict=True):
        if characters is not None and shown > characters:
            parts.append("…")
            break
        shown += len(token)
        text = escape(token).replace("\n", "<br>")
        if not np.isfinite(score):
            parts.append(f'<span style="opacity:0.5">{text}</span>')
            continue
        colour = "217,130,43" if score > 0 else "59,111,182"
        alpha = min(1.0, abs(float(score)) / scale) * 0.65
        parts.append(f'<span title="{score:+.3g}" style="background:rgba({colour},{alpha:.2f})">{text}</span>')
    return f'<div style="white-space:pre-wrap;line-height:1.7;overflow-wrap:anywhere">{"".join(parts)}</div>'

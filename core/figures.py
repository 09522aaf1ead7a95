"""Value types -> figures: ECharts options where a figure follows every click (Plotly takes longer to draw it
anew) or holds many points, Plotly for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core.source import as_numbers

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from core.evaluation import Interval
    from core.steering.sweep import Sweep
    from core.usefulness.evidence import Evidence

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#9aa0a6"
DIVERGING = ("#2b5c9e", "#5a8cc9", "#9dbbe0", "#b9b9b9", "#ecb48a", "#dd8440", "#b3541e")
CATEGORIES = ("#3b6fb6", "#d9822b", "#3d9970", "#b5446e", "#7a5fb0", "#8c6d46", "#2aa1b3", "#c2b02f")
OTHER = "#9aa0a6"
NAME_CHARACTERS = 40
FLAT_CHARACTERS, PLACE_CHARACTERS = 8, 200
"""Of a value that need not be turned below an axis, and in the box that opens above a bar."""


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
    return _figure([bars, line], _directions_axis(share), {"title": "share of the variance"} | PERCENT)


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
    down = {"title": "direction", "autorange": "reversed", "type": "category"}
    return _figure([heat], {"title": "block", "type": "category"}, down)


def block_effect_map(parts: Sequence[tuple[str, Sequence[float]]], blocks: Sequence[int], unit: str) -> go.Figure:
    """What each block adds to the effect of each direction; parts: (direction, its parts by block)."""
    import plotly.graph_objects as go

    heat = go.Heatmap(
        z=[list(row) for _, row in parts],
        x=[str(block) for block in blocks],
        y=[name for name, _ in parts],
        colorscale="RdBu",
        zmid=0,
        hovertemplate="direction %{y}, block %{x}: %{z:.3g}<extra></extra>",
        colorbar={"thickness": 12, "title": {"text": unit, "side": "right"}},
    )
    down = {"title": "direction", "autorange": "reversed", "type": "category"}
    return _figure([heat], {"title": "block", "type": "category"}, down)


def stability(directions: pd.DataFrame, limit: float) -> go.Figure:
    """Angles under resampling, median and 95th percentile, of each direction and of each leading span, and
    the angle up to which they count as stable."""
    import plotly.graph_objects as go

    series = (("angle", "direction alone", BLUE, -0.12), ("subspace_angle", "span of 1 to it", ORANGE, 0.12))
    points = [
        go.Scatter(
            x=directions["direction"] + shift,
            y=directions[column],
            customdata=directions[["direction", f"{column}_95"]],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": directions[f"{column}_95"] - directions[column],
                "arrayminus": 0 * directions[column],
                "thickness": 1.2,
            },
            name=name,
            mode="markers",
            marker={"color": colour, "size": 8},
            hovertemplate="%{customdata[0]}: median %{y:.0f}°, 95%: %{customdata[1]:.0f}°<extra></extra>",
        )
        for column, name, colour, shift in series
    ]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit}
    note = {"xref": "paper", "x": 1, "y": limit, "yanchor": "bottom", "showarrow": False, "text": "stable below"}
    return _figure(
        points,
        _directions_axis(directions["angle"]),
        {"title": "angle in degrees", "range": [0, 92]},
        shapes=[line | {"line": {"dash": "dot", "color": GREY, "width": 2}}],
        annotations=[note | {"font": {"color": GREY}}],
    )


def histogram(values: np.ndarray) -> dict[str, Any]:
    """ECharts options for the distribution of one direction's scores (n,): drawn anew in a fifth of Plotly's
    time."""
    counts, edges = np.histogram(values, bins=min(60, max(10, len(values) // 20)))
    bars: dict[str, Any] = {"type": "line", "step": "end", "name": "examples", "symbol": "none", "color": BLUE}
    bars |= {"lineStyle": {"width": 0}, "areaStyle": {"color": BLUE, "opacity": 1}}
    bars["data"] = [[float(f"{edge:.4g}"), int(count)] for edge, count in zip(edges, [*counts, 0], strict=True)]
    across = {"name": "score", "type": "value", "min": "dataMin", "max": "dataMax", "splitLine": {"show": False}}
    across |= {"axisLabel": {"showMinLabel": False, "showMaxLabel": False}}
    chart = _chart([bars], across, {"name": "examples", "type": "value", "axisLine": {"onZero": False}})
    return chart | {"tooltip": {"trigger": "axis"}}


def covering(
    budgets: np.ndarray,
    values: np.ndarray,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    budget: int,
    knee: int | None,
    title: str,
) -> dict[str, Any]:
    """ECharts options for a covering curve (b,) against the budget, baselines as bands (budgets, low, high), and
    the budget. What the colours stand for is said by `selection_legend`."""
    series = []
    for (name, (own, low, high)), colour in zip(bands.items(), BASELINE_COLOURS, strict=False):
        place = _few(len(own))
        around = [*_points(own[place], low[place]), *_points(own[place][::-1], high[place][::-1])]
        band = _line(name, around, colour, 1) | {"areaStyle": {"color": colour, "opacity": 0.25}}
        series.append(band | {"tooltip": {"show": False}})
    place = _few(len(budgets))
    marks = [(budget, "budget", BLUE)] + ([(knee, "knee", GREY)] if knee else [])
    sides = {"budget": "left", "knee": "right"} if knee and knee <= budget else {"budget": "right", "knee": "left"}
    lines = [
        {"xAxis": x, "lineStyle": {"color": colour}}
        | {"label": {"formatter": name, "color": colour, "align": sides[name] if knee else "center"}}
        for x, name, colour in marks
    ]
    selection = _line("selection", _points(budgets[place], values[place]), BLUE, 2.5)
    selection |= {"markLine": {"data": lines, "symbol": "none", "silent": True, "animation": False}}
    return _curves([*series, selection], title) | {"tooltip": {"trigger": "axis", "valueFormatter": "%.3f"}}


def selection_legend(baselines: Sequence[str]) -> str:
    """HTML of what the colours of `covering` and `shares` stand for."""
    names = ("selection", "pool", *baselines)
    return legend(ColourBins(np.zeros(0, dtype=int), names, (BLUE, GREY, *BASELINE_COLOURS[: len(baselines)])))


def covering_of(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> dict[str, Any]:
    """ECharts options for covering curves (budgets, values) of several selections."""
    series = []
    for (name, (budgets, values)), colour in zip(curves.items(), CATEGORIES, strict=False):
        place = _few(len(budgets))
        series.append(_line(name[:NAME_CHARACTERS], _points(budgets[place], values[place]), colour, 2.5))
    chart = _curves(series, title) | {"tooltip": {"trigger": "axis", "valueFormatter": "%.3f"}}
    return chart | WITH_LEGEND


def _line(name: str, points: list[list[float]], colour: str, width: float) -> dict[str, Any]:
    style = {"color": colour, "width": width}
    return {"type": "line", "name": name, "data": points, "color": colour, "lineStyle": style, "showSymbol": False}


def _points(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    return np.stack([x, y.round(5)], axis=1).tolist()


def _curves(series: list[dict[str, Any]], title: str) -> dict[str, Any]:
    across = {"name": "examples", "type": "value", "max": "dataMax", "splitLine": {"show": False}}
    across |= {"axisPointer": {"label": {"precision": 0}}}
    up = {"name": title, "nameGap": 26, "type": "value", "min": 0}
    return _chart(series, across, up) | {"grid": PLACE | {"top": 32}}


def _chart(series: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    below = {"nameLocation": "middle", "nameGap": 28}
    return {
        "xAxis": below | x,
        "yAxis": {"nameTextStyle": {"align": "left"}} | y,
        "series": series,
        "grid": PLACE,
        "animation": False,
    }


PLACE = {"left": 4, "right": 12, "top": 16, "bottom": 16}
BASELINE_COLOURS = (ORANGE, *CATEGORIES[2:])
WITH_LEGEND = {"legend": {"top": 0}, "grid": PLACE | {"top": 56}}


def _few(n: int, most: int = 150) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, most).astype(int))


def shares(table: pd.DataFrame, *, with_legend: bool = True) -> dict[str, Any]:
    """ECharts options for grouped bars: a row a value, a column a selection."""
    series = [
        {
            "type": "bar",
            "name": str(name)[:NAME_CHARACTERS],
            "data": (100 * table[name]).round(3).tolist(),
            "color": colour,
            "barGap": "0%",
        }
        for name, colour in zip(table, (GREY, BLUE, *BASELINE_COLOURS), strict=False)
    ]
    names = [str(value)[:PLACE_CHARACTERS] for value in table.index]
    label: dict[str, Any] = {"interval": 0, "width": 110, "overflow": "truncate"}
    if max(map(len, names), default=0) > FLAT_CHARACTERS:
        label |= {"rotate": 30}
    across = {"type": "category", "data": names, "axisLabel": label, "axisTick": {"show": False}}
    up = {"type": "value", "min": 0, "axisLabel": {"formatter": "{value}%"}}
    chart = _chart(series, across, up)
    chart |= {"tooltip": {"trigger": "axis", "valueFormatter": "%.1f%%", "confine": True}}
    return chart | (WITH_LEGEND if with_legend else {})


def direction_shift(directions: pd.DataFrame) -> dict[str, Any]:
    """ECharts options: per direction the mean of the chosen, with one standard deviation to both sides, in those
    of the pool, and below it the share of the pool's score bins that have a chosen example."""
    means, spreads = directions["mean shift (SD)"], directions["spread (SD)"]
    places = range(len(directions))
    ranges = [
        [{"coord": [i, round(mean - spread, 4)]}, {"coord": [i, round(mean + spread, 4)]}]
        for i, mean, spread in zip(places, means, spreads, strict=True)
    ]
    pool = {"data": [[{"yAxis": -1}, {"yAxis": 1}]], "itemStyle": {"color": GREY, "opacity": 0.18}, "silent": True}
    solid = {"type": "solid", "color": BLUE, "width": 1.5}
    series = {
        "type": "scatter",
        "name": "selection, mean",
        "data": means.round(4).tolist(),
        "color": BLUE,
        "symbolSize": 9,
        "markLine": {"data": ranges, "symbol": "none", "silent": True, "lineStyle": solid, "animation": False},
        "markArea": pool,
    }
    low, high = min(-1.0, float((means - spreads).min())), max(1.0, float((means + spreads).max()))
    covered = zip(directions["direction"], directions["bins covered"], strict=True)
    across = {"type": "category", "data": [f"{j}\n{share:.0%}" for j, share in covered], "nameGap": 46}
    across["axisLabel"] = {"lineHeight": 16}
    across |= {"name": "direction; share of the pool's score bins with a chosen example"}
    up = {"name": "SD of the pool (grey: the pool)", "type": "value", "min": np.floor(low), "max": np.ceil(high)}
    return _chart([series], across, up) | {"tooltip": {"trigger": "axis", "valueFormatter": "%+.2f SD"}}


PERCENT = {"tickformat": ".1~%", "rangemode": "tozero"}


def _directions_axis(values: pd.Series) -> dict[str, Any]:
    return {"title": "direction"} | ({"tickmode": "linear", "dtick": 1} if len(values) <= 25 else {})


def _figure(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> go.Figure:
    """A figure made at once: every later update_layout would cost 10 ms."""
    import plotly.graph_objects as go

    style = {
        "height": 330,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": x,
        "yaxis": y,
    }
    return go.Figure(traces, style | layout)


# --- scatters of many points ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ColourBins:
    """Every example's colour: codes (n,) index `names` and `colours`; the codes of missing values too."""

    codes: np.ndarray
    names: tuple[str, ...]
    colours: tuple[str, ...]


def colour_bins(values: pd.Series) -> ColourBins:
    """Numbers in seven bins of equal count from low to high, anything else by its most frequent values."""
    if (found := as_numbers(values)) is not None and values.nunique() > 8:
        finite = found.where(np.isfinite(found.to_numpy(dtype=float, na_value=np.nan)))
        codes = pd.qcut(finite, len(DIVERGING), labels=False, duplicates="drop")
        ends = finite.groupby(codes).agg(["min", "max"])
        names = tuple(f"{_short(float(low))} to {_short(float(high))}" for low, high in ends.to_numpy())
        picks = np.linspace(0, len(DIVERGING) - 1, len(names)).round().astype(int)
        colours = tuple(DIVERGING[i] for i in picks)
    else:
        of, distinct = pd.factorize(values)
        frequent = np.argsort(-np.bincount(of[of >= 0], minlength=len(distinct)), kind="stable")
        places = np.full(len(distinct) + 1, np.nan)  # the last for the missing, whose code is -1
        names = tuple(str(distinct[i])[:NAME_CHARACTERS] for i in frequent[: len(CATEGORIES)])
        places[frequent[: len(names)]] = np.arange(len(names))
        codes, colours = pd.Series(places[of]), CATEGORIES[: len(names)]
    numbers = codes.fillna(len(names)).to_numpy(dtype=int)
    if (numbers == len(names)).any():
        names, colours = (*names, "other or missing"), (*colours, OTHER)
    return ColourBins(numbers, names, colours)


def member_bins(n: int, selections: Mapping[str, np.ndarray]) -> tuple[ColourBins, np.ndarray]:
    """(colours by which of the selections' rows each of n examples is in, (n,) whether it is in any)."""
    member = np.zeros((n, len(selections)), dtype=bool)
    for j, rows in enumerate(selections.values()):
        member[rows, j] = True
    several, nowhere = len(selections), len(selections) + 1
    codes = np.where(member.sum(axis=1) > 1, several, np.argmax(member, axis=1))
    chosen = np.asarray(member.any(axis=1))
    codes[~chosen] = nowhere
    names = tuple(f"only {name}"[:NAME_CHARACTERS] for name in selections)
    colours = (*CATEGORIES[: len(selections)], CATEGORIES[4], OTHER)
    return ColourBins(codes, (*names, "several", "none"), colours), chosen


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def legend(bins: ColourBins) -> str:
    """HTML of the colours and what they stand for. Names are escaped."""
    from html import escape

    entry = (
        '<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;width:0.75em;'
        'height:0.75em;border-radius:50%;margin-right:0.4em;background:{}"></span>{}</span> '
    )
    entries = (entry.format(colour, escape(name)) for name, colour in zip(bins.names, bins.colours, strict=True))
    return f'<div style="font-size:0.875rem;line-height:1.6">{"".join(entries)}</div>'


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
        "grid": {"left": 20, "right": 12, "top": 40, "bottom": 20},
        "toolbox": {
            "top": 8,
            "right": 8,
            "itemSize": 18,
            "itemGap": 12,
            "feature": {"brush": {"type": ["polygon", "rect", "clear"]}},
        },
        "brush": {"xAxisIndex": 0, "yAxisIndex": 0, "throttleType": "debounce", "throttleDelay": 100},
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


# --- texts ----------------------------------------------------------------------------------------------

SHADED_TOKENS = 3_000
"""Tokens beyond these are shown without shade: a browser is slow with more."""
SHADES = 10
"""Steps of colour to either side of none; a score below the first has none."""
CARD_STYLE = (
    """<style>
.example-card {border: 1px solid rgba(128,128,128,0.3); border-radius: 0.5rem; padding: 0.75rem 1rem;
  margin-bottom: 0.75rem; content-visibility: auto; contain-intrinsic-size: auto 14rem}
.example-facts {font-size: 0.875rem; opacity: 0.65; margin-bottom: 0.35rem}
.example-text {white-space: pre-wrap; line-height: 1.7; overflow-wrap: anywhere}
.example-text summary {cursor: pointer; display: block}
.example-more {font-size: 0.875rem; opacity: 0.65; text-decoration: underline}
.example-text details[open] .example-more {display: none}
.example-text .unpooled {opacity: 0.5}
"""
    + "".join(
        f".{sign}{step} {{background: rgba({colour},{0.65 * step / SHADES:.2f})}}\n"
        for sign, colour in (("up", "217,130,43"), ("down", "59,111,182"))
        for step in range(1, SHADES + 1)
    )
    + "</style>"
)


FACTS_STYLE = """<style>
.facts-row {display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.75rem 1rem}
.facts-row div > div:first-child {font-size: 0.875rem; opacity: 0.65; margin-bottom: 0.25rem}
</style>"""


def facts_row(facts: Mapping[str, str]) -> str:
    """HTML of names, each above its value, side by side where there is room. One element, as `example_cards`."""
    from html import escape

    parts = [f"<div><div>{escape(name)}</div><div>{escape(value)}</div></div>" for name, value in facts.items()]
    return f'{FACTS_STYLE}<div class="facts-row">{"".join(parts)}</div>'


def paragraphs(lines: Sequence[str], note: str = "") -> str:
    """HTML of plain lines with a smaller note below. One element, as `example_cards`."""
    from html import escape

    parts = [f'<p style="margin: 0 0 0.75rem">{escape(line)}</p>' for line in lines]
    small = f'<p style="font-size: 0.875rem; opacity: 0.65; margin: 0">{escape(note)}</p>' if note else ""
    return f"<div>{''.join(parts)}{small}</div>"


def example_cards(cards: Sequence[tuple[str, str]]) -> str:
    """HTML of examples, one card each: (facts in plain text, HTML of its text). One element for all of them:
    a browser takes several milliseconds for each of Streamlit's own."""
    from html import escape

    parts = [
        f'<div class="example-card"><div class="example-facts">{escape(facts)}</div>{text}</div>'
        for facts, text in cards
    ]
    return CARD_STYLE + "".join(parts)


def plain_text(text: str, fold: int | None = None) -> str:
    """HTML of a text as it is, folded after `fold` characters."""
    return _folded([text[:fold], text[fold:]] if fold else [text], fold)


def shading_scale(*texts: Sequence[float] | np.ndarray) -> float:
    """The score that is shaded fully: the 95th percentile of the sizes of all scores of these texts."""
    scores = np.concatenate([np.asarray(text, dtype=float) for text in texts])
    finite = scores[np.isfinite(scores)]
    return max(float(np.quantile(np.abs(finite), 0.95)), 1e-12) if len(finite) else 1.0


def shaded_tokens(
    tokens: Sequence[str], scores: np.ndarray, fold: int | None = None, scale: float | None = None
) -> str:
    """HTML of a text with its tokens shaded by their scores (tokens,), in steps of a tenth of `scale` (the text's
    own where none is given): orange above the mean, blue below, faint without a score; folded after `fold`
    characters. Tokens are escaped."""
    scale = scale or shading_scale(scores)
    shown = np.nan_to_num(scores[:SHADED_TOKENS])
    steps = np.minimum(SHADES, np.abs(shown) / scale * SHADES).astype(int)
    attributes = [_attributes(*one) for one in zip(scores[:SHADED_TOKENS].tolist(), steps.tolist(), strict=True)]
    return _folded([*tokens[:SHADED_TOKENS], "".join(tokens[SHADED_TOKENS:])], fold, attributes)


def _attributes(score: float, step: int) -> str:
    if score != score:
        return 'class="unpooled"'
    return f'class="{"up" if score > 0 else "down"}{step}" title="{score:+.3g}"' if step else ""


def _folded(pieces: Sequence[str], fold: int | None, attributes: Sequence[str] = ()) -> str:
    """Pieces of a text, each in an element with its attributes where it has any. Neighbours with the same share
    one: half a browser's work on a click is to make these elements."""
    from html import escape

    parts: list[str] = []
    shown, cut, last = 0, None, ""
    for i, piece in enumerate(pieces):
        if cut is None and fold is not None and shown >= fold:
            cut, last = len(parts), ""
        shown += len(piece)
        text = escape(piece).replace("\n", "<br>")
        own = attributes[i] if i < len(attributes) else ""
        if own and own == last:
            parts[-1] = f"{parts[-1].removesuffix('</span>')}{text}</span>"
        else:
            parts.append(f"<span {own}>{text}</span>" if own else text)
        last = own
    rest = "" if cut is None else "".join(parts[cut:])
    if not rest:
        return f'<div class="example-text">{"".join(parts)}</div>'
    more = f'<span class="example-more">… show all {shown:,} characters</span>'
    start = "".join(parts[:cut])
    return f'<div class="example-text"><details><summary>{start} {more}</summary>{rest}</details></div>'


DIFFERENCE_STYLE = """<style>
.steered-text {white-space: pre-wrap; line-height: 1.7; overflow-wrap: anywhere; min-height: 3em}
.steered-text mark {background: rgba(217,130,43,0.28); color: inherit; border-radius: 0.2rem}
.steered-text del {opacity: 0.45; text-decoration: line-through}
</style>"""


def differing_text(text: str, baseline: str | None = None) -> str:
    """HTML of a text, its words marked that are not in the baseline at their place (none: nothing is marked), by
    the longest common subsequence."""
    from html import escape

    from rapidfuzz.distance import LCSseq

    if baseline is None:
        return f'{DIFFERENCE_STYLE}<div class="steered-text">{escape(text)}</div>'
    words, others = _words(text), _words(baseline)
    parts = []
    for part in LCSseq.opcodes(others, words):
        piece = escape("".join(words[part.dest_start : part.dest_end]))
        if piece:
            parts.append(piece if part.tag == "equal" else f"<mark>{piece}</mark>")
    return f'{DIFFERENCE_STYLE}<div class="steered-text">{"".join(parts)}</div>'


def _words(text: str) -> list[str]:
    import re

    return re.findall(r"\s*\S+|\s+$", text)


# --- usefulness -----------------------------------------------------------------------------------------


def forest(evidence: Evidence, measure: str) -> go.Figure:
    """Every direction by one measure with its 95% interval, the best first; lines where the controls reach, to
    both sides of nothing. Filled: beyond every control."""
    told = evidence.measure(measure)
    known = [effect for effect in evidence.by(measure) if np.isfinite(effect.effect.value)]
    shown = sorted(known, key=lambda effect: effect.effect.value)
    levels = [control for control in evidence.controls if control.measure == measure]
    levels = [control for control in levels if np.isfinite(control.level.value)]
    is_judged = any(np.isfinite(effect.adjusted) for effect in shown)
    rest = [effect for effect in shown if not np.isfinite(effect.adjusted)]
    groups = (
        ("beyond every control", ORANGE, "circle", [e for e in shown if e.is_evidence]),
        (
            "not beyond every control",
            BLUE,
            "circle-open",
            [e for e in shown if not e.is_evidence and np.isfinite(e.adjusted)],
        ),
        ("not judged by this measure", GREY, "circle-open", [] if is_judged else rest),
        ("dropped early", GREY, "circle-open", [e for e in rest if is_judged and e.was_dropped]),
        ("without a p-value", GREY, "diamond-open", [e for e in rest if is_judged and not e.was_dropped]),
    )
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [effect.effect.value for effect in group],
            "y": [effect.name for effect in group],
            "customdata": [effect.name for effect in group],
            "error_x": _interval_bars([effect.effect for effect in group]),
            "marker": {"size": 10, "color": colour, "symbol": symbol},
            "name": name,
            "hovertemplate": "%{y}: %{x:.3g}<extra></extra>",
        }
        for name, colour, symbol, group in groups
        if group
    ]
    ends = [shown[0].name, shown[-1].name] if shown else []
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*[control.level.value] * 2, None, *[2 * told.null - control.level.value] * 2],
            "y": [*ends, None, *ends],
            "line": {"dash": "dash", "width": 1.5, "color": CATEGORIES[(i + 2) % len(CATEGORIES)]},
            "name": control.name,
            "hovertemplate": f"%{{x:.3g}}<extra>{control.name}</extra>",
        }
        for i, control in enumerate(levels)
        if shown
    ]
    axis = {"title": f"{told.title}<br>({told.unit})"}
    order = {"type": "category", "categoryarray": [effect.name for effect in shown], "title": "direction"}
    line = {"type": "line", "x0": told.null, "x1": told.null, "y0": 0, "y1": 1, "yref": "paper"}
    line |= {"line": {"width": 1, "color": OTHER}}
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": 40, "b": 10}
    return _figure(traces, axis, order, shapes=[line], legend=legend, margin=margin, height=140 + 24 * len(shown))


def proxy_scatter(
    name: str, ends: Mapping[str, Interval], other: str, others: Mapping[str, Interval]
) -> go.Figure:
    """One proxy against another over the ends that both know, such as `1+`, with 95% intervals; where both only
    turn their sign at the - ends, the + ends alone."""
    shared = [end for end in ends if end in others]
    if all(_is_mirrored(known, end) for known in (ends, others) for end in shared):
        shared = [end for end in shared if end.endswith("+")]
    x, y = [ends[end] for end in shared], [others[end] for end in shared]
    trace = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [one.value for one in x],
        "y": [one.value for one in y],
        "text": shared,
        "textposition": "top right",
        "error_x": _interval_bars(x),
        "error_y": _interval_bars(y),
        "marker": {"color": BLUE, "size": 8},
        "hovertemplate": "%{text}: %{x:.3g}, %{y:.3g}<extra></extra>",
    }
    style = {"zeroline": True, "exponentformat": "e"}
    axes = ({"title": f"{title}, towards help", **style} for title in (name, other))
    return _figure([trace], *axes, showlegend=False, height=420)


def _is_mirrored(known: Mapping[str, Interval], end: str) -> bool:
    other = f"{end[:-1]}{'-' if end.endswith('+') else '+'}"
    return other in known and known[other].value == -known[end].value


def _interval_bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value for one in intervals],
        "arrayminus": [one.value - one.low for one in intervals],
        "thickness": 1.2,
    }


# --- a sweep --------------------------------------------------------------------------------------------


def sweep_effect(sweep: Sweep) -> go.Figure:
    """Effect against strength with its 95% interval; where answers were verified, their share, too."""
    traces = [_with_interval(sweep, "effect", "change of the score (sd)", BLUE)]
    if any(point.correct for point in sweep.points):
        traces.append(_with_interval(sweep, "correct", "correct answers", ORANGE) | {"yaxis": "y2"})
    layout = {"yaxis2": {"overlaying": "y", "side": "right", **PERCENT}} if len(traces) > 1 else {}
    return _figure(
        traces, _strength_axis(sweep), {"title": "change of the score (sd)"}, shapes=_damage(sweep), **layout
    )


def sweep_guard(sweep: Sweep) -> go.Figure:
    """What may be damage, against strength: log perplexity ratio, KL, share repeated, share broken."""
    series = (
        ("surprise", "log perplexity ratio", BLUE),
        ("divergence", "KL (nats)", ORANGE),
        ("repetition", "share repeated", CATEGORIES[2]),
        ("broken", "share broken", CATEGORIES[3]),
    )
    traces = [_with_interval(sweep, name, label, colour) for name, label, colour in series]
    return _figure(traces, _strength_axis(sweep), {"title": "guard"}, shapes=_damage(sweep))


def _strength_axis(sweep: Sweep) -> dict[str, Any]:
    units = {"unit": "multiples of the unit direction", "sd": "standard deviations of its scores"}
    named = {
        "add": f"strength in {units[sweep.request['unit']]}",
        "remove": "share of the direction taken out",
        "clamp": f"score set, in {units[sweep.request['unit']]}",
    }
    return {"title": named[sweep.request["operation"]], "zeroline": True}


def _with_interval(sweep: Sweep, name: str, label: str, colour: str) -> dict[str, Any]:
    points = [(point.strength, getattr(point, name)) for point in sweep.points]
    points = [(strength, interval) for strength, interval in points if interval is not None]
    values = [interval.value for _, interval in points]
    return {
        "type": "scatter",
        "x": [strength for strength, _ in points],
        "y": values,
        "error_y": _interval_bars([interval for _, interval in points]),
        "name": label,
        "mode": "lines+markers",
        "line": {"color": colour},
        "hovertemplate": f"%{{x}}: %{{y:.2f}}<extra>{label}</extra>",
    }


def _damage(sweep: Sweep) -> list[dict[str, Any]]:
    """Red bands over the strengths beyond the range without damage."""
    from core.steering.sweep import zero_damages

    strengths = [point.strength for point in sweep.points]
    band = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "line_width": 0, "layer": "below"}
    band |= {"fillcolor": "rgba(200,60,60,0.12)"}
    bands = []
    if zero_damages(sweep.points):
        return [band | {"x0": min(strengths), "x1": max(strengths)}]
    if sweep.low > min(strengths):
        bands.append(band | {"x0": min(strengths), "x1": _halfway(strengths, sweep.low, -1)})
    if sweep.high < max(strengths):
        bands.append(band | {"x0": _halfway(strengths, sweep.high, 1), "x1": max(strengths)})
    return bands


def _halfway(strengths: Sequence[float], end: float, step: int) -> float:
    return (end + strengths[list(strengths).index(end) + step]) / 2

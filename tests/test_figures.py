import re
import time
from html import unescape

import numpy as np
import pandas as pd
import pytest

from core import figures
from core.evaluation import Interval
from core.figures import (
    CATEGORIES,
    DIFFERENCE_STYLE,
    colour_bins,
    differing_text,
    inside,
    legend,
    scatter,
    shaded_tokens,
    shading_scale,
    sweep_effect,
    sweep_guard,
)
from core.steering.sweep import Point, Sweep, undamaged_range

HOSTILE = '<script>alert(1)</script> ![](http://x) $x$ & "quoted" </div>'


def plainly_inside(point, corners):
    """Even-odd rule, one edge at a time, with the crossing found along the edge."""
    x, y = point
    crossings = 0
    for i, (ax, ay) in enumerate(corners):
        bx, by = corners[i - 1]
        if min(ay, by) <= y < max(ay, by):
            share = (y - ay) / (by - ay)
            crossings += ax + share * (bx - ax) > x
    return crossings % 2 == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_holds_what_a_plain_test_of_each_point_says(seed):
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(rng.integers(3, 12), 2))
    points = rng.normal(size=(300, 2))
    area = {"brush_type": "polygon", "coord_range": corners.tolist()}
    expected = [plainly_inside(point, corners) for point in points]
    assert inside(points, [area]).tolist() == expected


def test_areas_add_up_and_rectangles_may_be_drawn_from_any_corner():
    points = np.array([[0.5, 0.5], [2.5, 2.5], [5.0, 5.0], [np.nan, 0.5]])
    areas = [
        {"brush_type": "rect", "coord_range": [[1, 0], [1, 0]]},
        {"brush_type": "polygon", "coord_range": [[2, 2], [3, 2], [3, 3], [2, 3]]},
        {"brush_type": "polygon", "coord_range": [[5, 5], [6, 6]]},
        {"brush_type": "lineX", "coord_range": [0, 9]},
    ]
    assert inside(points, areas).tolist() == [True, True, False, False]
    assert not inside(points, []).any()


# --- colours --------------------------------------------------------------------------------------------


def test_numbers_fall_into_bins_of_equal_count_from_low_to_high():
    values = pd.Series(np.random.default_rng(0).normal(size=700))
    bins = colour_bins(values)
    assert np.bincount(bins.codes).tolist() == [100] * 7
    assert bins.colours == figures.DIVERGING
    highest = values.groupby(bins.codes).max()
    assert (highest.to_numpy()[:-1] <= values.groupby(bins.codes).min().to_numpy()[1:]).all()


def test_missing_numbers_are_named_last():
    values = pd.Series([*range(100), None, None], dtype="Float64")
    bins = colour_bins(values)
    assert bins.names[-1] == "other or missing" and bins.colours[-1] == figures.OTHER
    assert (bins.codes == len(bins.names) - 1).tolist() == [False] * 100 + [True] * 2


def test_the_names_of_bins_are_their_own_ends_and_infinity_is_none():
    values = pd.Series([*np.repeat(np.arange(14.0), 3), np.inf, -np.inf])
    bins = colour_bins(values)
    assert bins.names == (
        "0 to 1",
        "2 to 3",
        "4 to 5",
        "6 to 7",
        "8 to 9",
        "10 to 11",
        "12 to 13",
        "other or missing",
    )
    assert bins.codes[-2:].tolist() == [7, 7]


def test_many_equal_numbers_still_give_bins():
    bins = colour_bins(pd.Series([0.0] * 900 + list(range(1, 101))))
    assert len(bins.names) == len(bins.colours) and set(bins.codes) <= set(range(len(bins.names)))


@pytest.mark.parametrize(
    "values",
    [[3.0] * 5, [True, False, True], ["a"] * 4, [1, 2, 3], pd.Series([1, 2, None], dtype="Int64"), ["<b>", "<b>"]],
)
def test_few_values_are_their_own_colours(values):
    values = pd.Series(values)
    bins = colour_bins(values)
    for code, name in enumerate(bins.names[: values.nunique()]):
        assert {str(value) for value in values[bins.codes == code]} == {name}
    assert len(bins.names) == values.nunique() + values.isna().any()


@pytest.mark.parametrize("values", [[None, None], [np.nan], []])
def test_a_column_without_values_is_all_missing(values):
    bins = colour_bins(pd.Series(values, dtype=object))
    assert (bins.codes == 0).all() and bins.names == (("other or missing",) if values else ())


def test_the_most_frequent_values_get_a_colour_and_long_names_are_cut():
    values = pd.Series([f"value {i:02}" + "x" * 90 for i in range(20) for _ in range(20 - i)])
    bins = colour_bins(values)
    assert bins.colours == (*CATEGORIES, figures.OTHER)
    assert [name[:8] for name in bins.names[:3]] == ["value 00", "value 01", "value 02"]
    assert max(map(len, bins.names)) == figures.NAME_CHARACTERS


def test_the_legend_escapes_names():
    html = legend(colour_bins(pd.Series([HOSTILE[:30], "plain"])))
    assert "<script" not in html and "plain" in html


# --- scatters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [None, "some", "none"])
def test_every_finite_point_is_drawn_exactly_once_in_the_colour_of_its_bin(kept):
    rng = np.random.default_rng(1)
    points = np.round(rng.normal(size=(500, 2)), 3)
    points[::50] = np.nan
    bins = colour_bins(pd.Series(rng.choice(["a", "b", "c", None], 500)))
    mask = {None: None, "some": rng.random(500) < 0.3, "none": np.zeros(500, bool)}[kept]
    spec = scatter(points, bins, mask, "x", "y", dark=False)
    drawn = []
    for series in spec["series"]:
        source = spec["dataset"][series["datasetIndex"]]["source"]
        opaque = series["itemStyle"]["opacity"] > 0.5
        drawn += [
            (*row, series["itemStyle"]["color"], opaque) for row in np.round(source.to_numpy(float), 3).tolist()
        ]
    chosen = np.ones(500, bool) if mask is None else mask
    expected = [
        (x, y, bins.colours[code], bool(is_chosen))
        for (x, y), code, is_chosen in zip(points.tolist(), bins.codes, chosen, strict=True)
        if np.isfinite(x)
    ]
    assert sorted(drawn) == sorted(expected)


def test_a_map_without_any_place_is_an_empty_chart():
    spec = scatter(np.full((3, 2), np.nan), colour_bins(pd.Series(["a", "b", "c"])), None, "x", "y", dark=True)
    assert spec["series"] == [] and spec["darkMode"]


# --- tokens ---------------------------------------------------------------------------------------------


def shown_text(html):
    return unescape(re.sub(r"<[^>]*>", "", html.replace("<br>", "\n")))


@pytest.mark.parametrize("text", [HOSTILE, "two\nlines\n\n", "a  b", "🙂 שלום"])
def test_tokens_show_the_text_and_nothing_else(text):
    tokens = re.findall(r".{1,3}", text, flags=re.S)
    scores = np.linspace(-1, 1, len(tokens))
    html = shaded_tokens(tokens, scores)
    assert shown_text(html) == text
    shaded = np.abs(scores) >= 0.1 * shading_scale(scores)
    assert re.findall(r"<(\w+)", html).count("span") == shaded.sum()
    assert set(re.findall(r"<(\w+)", html)) <= {"div", "span", "br"}


def test_tokens_are_shaded_by_sign_and_size_and_those_not_pooled_are_faint():
    html = shaded_tokens(["not", "up", "down", "flat"], np.array([np.nan, 2.0, -1.0, 0.0]))
    faint, up, down = re.findall(r"<span[^>]*>", html)
    assert "unpooled" in faint and 'class="up10" title="+2"' in up and 'class="down5"' in down
    assert html.endswith("</span>flat</div>")
    shades = dict(re.findall(r"\.(\w+) \{background: rgba\((.*?)\)", figures.CARD_STYLE))
    assert shades["up10"] == "217,130,43,0.65" and shades["down5"] == "59,111,182,0.33"


def test_neighbours_that_look_alike_share_an_element_but_not_across_the_fold():
    tokens, scores = [f"word{i} " for i in range(40)], np.full(40, np.nan)
    assert shaded_tokens(tokens, scores).count("<span") == 1
    assert shaded_tokens(tokens, scores, 50).count('<span class="unpooled"') == 2
    assert shaded_tokens(["a", "b"], np.array([1.0, 2.0]), scale=1.0).count("<span") == 2


def test_a_long_text_folds_and_is_all_there():
    tokens, scores = [f"word{i} " for i in range(100)], np.linspace(0, 1, 100)
    html = shaded_tokens(tokens, scores, 50)
    start, rest = re.fullmatch(r".*<summary>(.*)</summary>(.*)</details></div>", html).groups()
    start = start.split(' <span class="example-more">')[0]
    assert 50 <= len(shown_text(start)) < 60
    assert shown_text(start) + shown_text(rest) == "".join(tokens)
    assert "details" not in shaded_tokens(tokens[:5], scores[:5], 50)


def test_tokens_beyond_the_limit_are_shown_without_shade():
    n = figures.SHADED_TOKENS + 7
    html = shaded_tokens(["<a>"] * n, (-1.0) ** np.arange(n), 20)
    assert html.count("&lt;a&gt;") == n and html.count("title=") == figures.SHADED_TOKENS


@pytest.mark.parametrize("fold", [None, 10, 1_000])
def test_a_plain_text_is_escaped_and_all_there(fold):
    html = figures.plain_text(HOSTILE + "\nend", fold)
    shown = shown_text(re.sub(r' <span class="example-more">.*?</span>', "", html))
    assert shown == HOSTILE + "\nend" and "<script" not in html


def test_cards_escape_their_facts():
    assert "<script" not in figures.example_cards([(HOSTILE, figures.plain_text("text"))])


@pytest.mark.parametrize("scores", [np.full(2, np.nan), np.zeros(2)])
def test_tokens_without_scores_are_still_shown(scores):
    assert shown_text(shaded_tokens(["a", "b"], scores)) == "ab"


# --- the small figures ----------------------------------------------------------------------------------


def described(k):
    share = 1 / np.arange(2, k + 2)
    columns = {"direction": np.arange(1, k + 1), "explained_variance": share}
    columns |= {"explained_variance_low": 0.9 * share, "explained_variance_high": 1.1 * share}
    columns |= {
        name: np.linspace(1, 80, k) for name in ("angle", "angle_95", "subspace_angle", "subspace_angle_95")
    }
    return pd.DataFrame(columns)


@pytest.mark.parametrize("k", [1, 5, 60])
def test_the_small_figures_hold_a_mark_for_every_direction(k):
    directions = described(k)
    bars, line = figures.spectrum(directions).data
    assert len(bars.y) == len(line.y) == k
    assert line.y[-1] == pytest.approx(directions["explained_variance"].sum())
    assert [len(trace.y) for trace in figures.stability(directions, 25).data] == [k, k]
    assert np.shape(figures.block_energy_map(np.ones((k, 3)) / 3, [1, 2, 3]).data[0].z) == (k, 3)


@pytest.mark.parametrize("values", [np.zeros(5), np.arange(1_000.0), np.array([1.0, 2.0])])
def test_the_histogram_counts_every_example(values):
    (bars,) = figures.histogram(values)["series"]
    assert sum(count for _, count in bars["data"]) == len(values)
    assert [edge for edge, _ in bars["data"]] == sorted(edge for edge, _ in bars["data"])


# --- steering -------------------------------------------------------------------------------------------


def sweep_of(damaged, correct=None, operation="add", unit="sd"):
    interval = Interval(0.5, 0.25, 0.75, 9)
    points = tuple(
        Point(strength, *[interval] * 6, correct, strength in damaged) for strength in (-2.0, -1.0, 0.0, 1.0, 2.0)
    )
    request = {"unit": unit, "prompts": [], "operation": operation}
    return Sweep("r", request, 1.0, points, (), *undamaged_range(points))


def test_a_sweep_shows_intervals_and_what_is_damage():
    figure = sweep_effect(sweep_of({2.0}))
    assert [trace.name for trace in figure.data] == ["change of the score (sd)"]
    assert set(figure.data[0].error_y.array) == set(figure.data[0].error_y.arrayminus) == {0.25}
    assert [(band.x0, band.x1) for band in figure.layout.shapes] == [(1.5, 2.0)]
    both = sweep_effect(sweep_of({-2.0, -1.0, 1.0, 2.0}, Interval(0.1, 0.0, 0.3, 9)))
    assert [trace.name for trace in both.data][1] == "correct answers" and both.data[1].yaxis == "y2"
    assert [(band.x0, band.x1) for band in both.layout.shapes] == [(-2.0, -0.5), (0.5, 2.0)]
    assert len(sweep_guard(sweep_of(set())).data) == 4 and not sweep_guard(sweep_of(set())).layout.shapes


def test_the_axis_of_a_sweep_names_what_the_operation_takes():
    def axis(*request):
        return sweep_effect(sweep_of(set(), None, *request)).layout.xaxis.title.text

    assert axis("remove", "unit") == "share of the direction taken out"
    assert axis("add", "unit") == "strength in multiples of the unit direction"
    assert axis("clamp", "sd") == "score set, in standard deviations of its scores"


def test_where_a_clamp_to_0_does_damage_no_strength_is_shown_without():
    (band,) = sweep_effect(sweep_of({0.0}, operation="clamp")).layout.shapes
    assert (band.x0, band.x1) == (-2.0, 2.0)


@pytest.mark.parametrize("words", [["a", "b"], ["the", "cat", "sat", "on", "a", "mat."]])
def test_differences_of_long_texts_that_repeat_are_marked_at_once(words):
    """600 words took 24 seconds by difflib."""
    text = [words[i % len(words)] for i in range(2_000)]
    other = [word if i % 2 else "b" for i, word in enumerate(text)]
    start = time.process_time()
    html = differing_text(" ".join(text), " ".join(other))
    assert time.process_time() - start < 0.5
    assert re.sub("<.*?>", "", html.partition("</style>")[2]) == " ".join(text)


def test_what_differs_from_the_baseline_is_marked_and_escaped():
    html = differing_text("one <b>two</b> three four", "one 2 three")
    assert "one<mark> &lt;b&gt;two&lt;/b&gt;</mark> three<mark> four</mark>" in html
    assert "<mark>" not in differing_text("one two", "one two").removeprefix(DIFFERENCE_STYLE)
    assert "<mark>" not in differing_text("one two").removeprefix(DIFFERENCE_STYLE)
    assert differing_text("", "one").endswith('<div class="steered-text"></div>')


def test_texts_share_a_scale_of_shading():
    assert shading_scale([1.0, np.nan], [-3.0]) == pytest.approx(np.quantile([1, 3], 0.95))
    assert shading_scale([], ()) == 1.0


def test_long_values_that_begin_alike_stay_bars_of_their_own():
    names = [f"{'the same beginning ' * 3}{i}<b>" for i in range(3)]
    table = pd.DataFrame({"pool": [0.5, 0.3, 0.2], "selection": [0.2, 0.3, 0.5]}, index=names)
    chart = figures.shares(table, with_legend=False)
    assert chart["xAxis"]["data"] == names and "legend" not in chart
    assert [bar["data"] for bar in chart["series"]] == [[50, 30, 20], [20, 30, 50]]
    assert chart["xAxis"]["axisLabel"]["overflow"] == "truncate"


def test_a_covering_curve_holds_bands_the_budget_and_the_knee():
    own = np.arange(1, 401)
    low, high = 10 / own, 12 / own
    chart = figures.covering(own, 9 / own, {"random": (own, low, high)}, 40, 7, "radius")
    band, selection = chart["series"]
    assert band["data"][0] == [1.0, 10.0] and band["data"][-1] == [1.0, 12.0]
    assert selection["data"][0] == [1.0, 9.0] and selection["data"][-1] == [400.0, 0.0225]
    marks = {mark["label"]["formatter"]: mark["xAxis"] for mark in selection["markLine"]["data"]}
    assert marks == {"budget": 40, "knee": 7}


def test_the_shift_of_directions_shows_mean_and_spread():
    table = pd.DataFrame({"direction": [1, 2], "mean shift (SD)": [0.5, -2.0], "spread (SD)": [1.0, 0.25]})
    table["bins covered"] = [1.0, 0.35]
    chart = figures.direction_shift(table)
    (marks,) = chart["series"]
    assert marks["data"] == [0.5, -2.0] and chart["xAxis"]["data"] == ["1\n100%", "2\n35%"]
    assert [[end["coord"] for end in line] for line in marks["markLine"]["data"]] == [
        [[0, -0.5], [0, 1.5]],
        [[1, -2.25], [1, -1.75]],
    ]
    assert (chart["yAxis"]["min"], chart["yAxis"]["max"]) == (-3, 2)


def test_one_legend_says_the_colours_of_both_charts():
    own, values = np.array([1, 2]), np.array([2.0, 1.0])
    bands = dict.fromkeys(("random", "longest"), (own, values, values))
    curves = figures.covering(own, values, bands, 1, None, "radius")
    bars = figures.shares(pd.DataFrame({name: [1.0] for name in ("pool", "selection", *bands)}), with_legend=False)
    said = dict(re.findall(r"background:(#\w+).*?</span>(\w+)</span>", figures.selection_legend(list(bands))))
    said = {name: colour for colour, name in said.items()}
    assert {line["name"]: line["color"] for line in curves["series"]} == {
        k: said[k] for k in (*bands, "selection")
    }
    assert {bar["name"]: bar["color"] for bar in bars["series"]} == said

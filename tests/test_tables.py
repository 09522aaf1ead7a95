import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_run

from core.basis import Basis
from core.evaluation import Interval
from core.jobs import JobProgress
from core.reading import Label
from core.steering.comparison import Variant
from core.steering.intervention import Directions, Steering
from core.steering.live import LiveStatus, Stream
from core.steering.sweep import Point, SuggestedRange, Sweep, undamaged_range
from core.tables import (
    Extreme,
    RangeScale,
    basis_summary,
    chosen_examples,
    colour_columns,
    column_strengths,
    direction_facts,
    duration,
    estimate_sentences,
    exportable,
    extremes,
    filter_values,
    grouping_sentence,
    interval_text,
    labels_first,
    length_correlation,
    matching,
    one_line,
    progress_sentence,
    size,
    slider_bounds,
    stream_sentence,
    suggested_range_sentence,
    sweep_name,
    sweep_range_sentence,
    table_of_directions,
    value_range,
    within,
)
from core.workspace import Workspace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return synthetic_run(Workspace(tmp_path_factory.mktemp("tables")))


@pytest.fixture
def examples():
    texts = ["Apples (red)", "pears", "apple pie.", "plums", "PEARS and a.*b"]
    kinds = ["x", None, "y", "x", "z"]
    return pd.DataFrame(
        {
            "example_id": [3, 5, 8, 9, 11],
            "text": texts,
            "n_tokens": [2, 1, 2, 1, 3],
            "kind": kinds,
            "n": [1, 2, 1, 1, 2],
        }
    )


@pytest.mark.parametrize(
    ("column", "values", "rows"),
    [("kind", [], [0, 1, 2, 3, 4]), ("kind", ["x"], [0, 3]), ("n", ["2"], [1, 4]), ("kind", ["gone"], [])],
)
def test_matching_finds_values(examples, column, values, rows):
    assert np.flatnonzero(matching(examples[column], values)).tolist() == rows


def test_a_column_of_many_numbers_has_a_range():
    numbers = pd.Series([*range(30), None, np.inf], dtype=float)
    assert value_range(numbers) == (0, 29)
    assert np.flatnonzero(within(numbers, 3, 4.5)).tolist() == [3, 4]
    assert value_range(pd.Series([1, 2] * 40)) is None
    assert value_range(pd.Series([True, False] * 40)) is None
    assert value_range(pd.Series([str(i) for i in range(40)])) is None


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (0.00012, 0.00087, (0.00012, 0.00087, 1e-6, "%.6f")),
        (0.0, 1.0, (0.0, 1.0, 0.01, "%.2f")),
        (3, 497, (3.0, 497.0, 1.0, "%.0f")),
        (-12_345, 700_001, (-13_000.0, 701_000.0, 1_000.0, "%.0f")),
    ],
)
def test_a_slider_over_a_range_has_round_steps_fine_enough(low, high, scale):
    found = RangeScale.of(low, high)
    assert (found.low, found.high, found.step, found.form) == (*map(pytest.approx, scale[:3]), scale[3])
    assert found.low <= low < high <= found.high and 100 <= (high - low) / found.step <= 1_000


def test_filter_values_come_most_frequent_first_without_missing_ones(examples):
    assert filter_values(examples["kind"])[0] == "x"
    assert set(filter_values(examples["kind"])) == {"x", "y", "z"}
    assert filter_values(pd.Series([None, None], dtype=object)) == []


def test_extremes_are_ranked_with_ties_in_the_order_of_the_examples(run):
    facts, values = run.examples(run.facts_columns()), np.zeros(60)
    values[[7, 9, 3, 59]] = 2.0, 2.0, 1.0, -3.0
    (top, bottom), (other, _) = extremes(run, facts, [values, -values], 3)
    assert [e.example_id for e in top] == [7, 9, 3] and [e.example_id for e in bottom] == [59, 0, 1]
    assert other[0] == Extreme(59, 3.0, run.examples()["text"][59], int(facts["n_tokens"][59]))


def test_extremes_show_the_part_of_an_example_that_is_asked_for(gsm8k_run):
    facts, responses = gsm8k_run.examples(gsm8k_run.facts_columns()), gsm8k_run.examples()["response"]
    ((top, bottom),) = extremes(gsm8k_run, facts, [np.arange(60.0)], 1, column="response")
    assert (top[0].text, bottom[0].text) == (responses[59], responses[0])


def test_extremes_keep_to_what_is_allowed(run):
    facts, values = run.examples(run.facts_columns()), np.arange(60.0)
    allowed = np.isin(np.arange(60), [5, 11])
    ((top, bottom),) = extremes(run, facts, [values], 9, allowed)
    assert [e.example_id for e in top] == [11, 5] and [e.example_id for e in bottom] == [5, 11]
    assert extremes(run, facts, [values], 9, np.zeros(60, bool)) == [([], [])]


@pytest.mark.parametrize(
    ("groups", "is_open", "sentence"),
    [
        ([0, 1, 2], False, "Directions 1, 2 and 3 stand alone."),
        ([0, 1, 1], False, "Direction 1 stands alone. Directions 2 and 3 are stable only as a span."),
        (
            [0, 1, 2, 2],
            True,
            "Directions 1 and 2 stand alone. Directions 3 and 4 are not settled: more data, or directions beyond "
            "the last, would be needed.",
        ),
        ([0], True, "Direction 1 is not settled: more data, or directions beyond the last, would be needed."),
    ],
)
def test_the_grouping_sentence(groups, is_open, sentence):
    directions = pd.DataFrame({"direction": range(1, len(groups) + 1), "group": groups})
    assert grouping_sentence(directions, is_open) == sentence


def test_one_line_has_no_breaks_and_no_more_than_asked():
    assert one_line("a\n\nb\t c") == "a b c"
    assert one_line("x" * 500, 20) == "x" * 19 + "…"
    assert one_line("") == ""


def test_the_chosen_examples_come_with_short_texts_and_their_columns(run):
    found = chosen_examples(run, run.examples(run.facts_columns()), np.array([4, 2]))
    assert found["example"].tolist() == [4, 2]
    assert list(found) == ["example", "text", "tokens", "kind", "grade", "is_hard"]


def test_columns_of_the_names_shown_do_not_clash(run):
    facts = run.examples(run.facts_columns()).assign(tokens=1, example=2, text=3)
    found = chosen_examples(run, facts, np.array([0]))
    assert found.columns.is_unique and {"data_tokens", "data_example", "data_text"} < set(found)


def test_columns_to_colour_by_leave_out_texts_and_ids(run):
    assert colour_columns(run) == ["n_tokens", "kind", "grade", "is_hard"]


def test_columns_that_sort_examples_come_first():
    facts = pd.DataFrame(
        {"n": range(60), "answer": [f"a{i}" for i in range(60)], "one": "x", "kind": ["a", "b"] * 30}
    )
    facts["parts"] = [["x"], ["y"]] * 30
    assert labels_first(facts, list(facts)) == ["kind", "parts", "answer", "one", "n"]


def test_the_summary_and_the_table_of_directions(run):
    assert basis_summary(run.manifest).startswith(
        "no-model on synthetic.jsonl: 60 examples, 780 tokens, blocks 1 to 4"
    )
    table = table_of_directions(run.directions(), run.labels() | {2: Label("mine : yours", "person")})
    assert table["direction"].tolist() == [1, 2, 3, 4] and table["label"][1] == "mine : yours"
    assert list(direction_facts(run.directions().iloc[0])) == [
        "Share of the variance",
        "Turn under resampling",
        "Correlation with length",
        "On its 10 largest dimensions",
    ]


def test_the_length_correlation_where_lengths_do_not_vary():
    none = dict.fromkeys(("length_correlation", "length_correlation_low", "length_correlation_high"))
    assert length_correlation(none) == "no variation"
    assert length_correlation(dict(zip(none, (0.5, -0.1, 0.7), strict=True))) == "+0.50 (-0.10 to +0.70)"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3_600, "1 h 0 min"),
        (90_061, "25 h 1 min"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (3_200_000, "3.2 MB"), (5e12, "5000.0 GB")],
)
def test_sizes(n_bytes, said):
    assert size(n_bytes) == said


def test_the_progress_sentence():
    assert progress_sentence(JobProgress()) == "Starting"
    assert (
        progress_sentence(JobProgress("read", 5, 20, 2.0, 7.5))
        == "Reading the examples: 5 of 20 rows, 2 a second, 8 s left in this step"
    )


def test_a_step_that_is_one_thing_is_not_counted():
    assert progress_sentence(JobProgress("model", 0, 1)) == (
        "Loading the model, usually some seconds, a large model minutes"
    )
    assert progress_sentence(JobProgress("kernels", 1, 1)) == "Compiling, once on a machine"
    assert progress_sentence(JobProgress("sorting", 1, 2)) == "Sorting: 1 of 2"


def test_the_estimate_names_its_problems():
    facts = {"examples": 9, "rows": 10, "tokens": 1_000, "seconds": 61.0, "device": "cpu", "dtype": "float32"}
    facts |= {
        "rate_from": "measured",
        "memory_bytes": 1e6,
        "disk_bytes": 1e3,
        "free_bytes": 1e9,
        "problems": ["1 row: empty"],
        "cut": 3,
    }
    first, second, third, cut, problem = estimate_sentences(facts)
    assert cut == "about 3 of them longer than the limit of tokens, to be cut"
    assert first == "9 examples of 10 rows, about 1,000 tokens" and "1 min 1 s on cpu" in second
    assert "1.0 MB of memory" in third and problem == "1 row: empty"


# --- steering -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["unit", "sd"])
@pytest.mark.parametrize("low_high", [None, (-2.6, 5.2), (0.0, 1.3), (-400.0, 1e-3)])
def test_sliders_hold_their_first_strengths_on_round_steps(unit, low_high):
    found = SuggestedRange(*low_high, 2.6, 12, (True, True)) if low_high else None
    low, high, step = slider_bounds(found, 2.6, unit, "add")
    assert low == -high and step == high / 40
    for strength in column_strengths(found, 2.6, unit, "add"):
        assert low <= strength <= high and abs(strength / step - round(strength / step)) < 1e-6
    if low_high:
        scale = 2.6 if unit == "sd" else 1.0
        assert high * scale >= max(map(abs, low_high))
        first, second = column_strengths(found, 2.6, unit, "add")[:2]
        assert abs(first - (low_high[1] or 4.16) / scale) <= step
        assert abs(second - (low_high[0] or -4.16) / scale) <= step or second == low
    assert slider_bounds(found, 2.6, unit, "remove") == (0.0, 1.0, 0.025)


@pytest.mark.parametrize("asked", [1.234, -40.0])
def test_sliders_begin_at_the_strength_that_is_asked_for_and_reach_it(asked):
    found = SuggestedRange(-2.6, 5.2, 2.6, 12, (True, True))
    for unit, scale in (("unit", 1.0), ("sd", 2.6)):
        low, high, _ = slider_bounds(found, 2.6, unit, "add", asked)
        strengths = column_strengths(found, 2.6, unit, "add", asked)
        assert strengths[0] * scale == pytest.approx(asked, rel=1e-3) and strengths[1] == -strengths[0]
        assert all(low <= strength <= high for strength in strengths)
    assert column_strengths(found, 2.6, "unit", "remove", asked) == column_strengths(found, 2.6, "unit", "remove")


def test_only_what_every_format_can_mean_is_exportable():
    ones = np.ones(2, np.float32)
    basis = Basis(np.eye(3, 8, dtype=np.float32), np.zeros(8, np.float32), ones, ones, 1.0, 9, ones)
    directions = Directions(basis, (1, 2))
    able = [Steering(((1, 2.0),)), Steering(((1, -2.0),), blocks=(1, 2))]
    unable = [
        Steering(),
        Steering(((1, 2.0), (2, 1.0))),
        Steering(((1, 1.0),), "remove"),
        Steering(((1, 1.0),), scope="prompt"),
        Steering(((1, 1.0),), blocks=(2,)),
    ]
    variants = [Variant(str(i), steering) for i, steering in enumerate([*unable, *able])]
    assert [variant.steering for variant in exportable(directions, variants)] == able


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.5, 0.25, 0.75, 9), "50% (25% to 75%)"),
        (Interval(0.5, float("nan"), float("nan"), 1), "50% (one case)"),
        (Interval(float("nan"), float("nan"), float("nan"), 0), "none"),
    ],
)
def test_intervals_are_written_out(interval, said):
    assert interval_text(interval, "{:.0%}") == said


def sweep_over(strengths, damaged=(), operation="add", unit="sd"):
    interval = Interval(0.5, 0.25, 0.75, 9)
    points = tuple(Point(s, *[interval] * 6, None, s in damaged) for s in strengths)
    request = {"direction": 1, "operation": operation, "unit": unit, "scope": "all", "prompts": ["a", "b"]}
    return Sweep("r", request, 2.0, points, (), *undamaged_range(points))


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (
            sweep_over((-1.0, 0.0, 1.0)),
            "No damage seen from -2 (-1 sd) to +2 (+1 sd), over 2 prompts, too few to rule it out.",
        ),
        (
            sweep_over((0.0, 0.5, 1.0), (1.0,), "remove", "unit"),
            "Shares taken out: no damage seen from +0 to +0.5, over",
        ),
        (sweep_over((0.0,)), "Only strength 0 was tried, which tells no range."),
        (sweep_over((0.0, 1.0), (1.0,)), "Even the smallest strengths tried do damage."),
        (sweep_over((0.0, 1.0), (0.0,), "clamp"), "Even clamp to 0 does damage."),
    ],
)
def test_the_range_of_a_sweep_is_said_in_what_the_operation_takes(sweep, said):
    assert sweep_range_sentence(sweep).startswith(said)


def test_the_name_of_a_sweep_over_shares_has_no_unit():
    assert sweep_name(sweep_over((0.0, 1.0), (), "remove", "unit")) == (
        "direction 1, remove, +0 to +1 share, 2 prompts, all"
    )


@pytest.mark.parametrize(
    ("state", "stopped", "said"),
    [
        ("loading", False, "Loading the model: 3 s so far."),
        ("loading", True, "Stopping, once the model is loaded: 3 s so far."),
        ("running", True, "Stopping."),
        ("done", False, "Done: no column wrote a token."),
        ("stopped", True, "Stopped before the first token."),
    ],
)
def test_a_stream_without_a_token_says_where_it_stands(state, stopped, said):
    stream = Stream(None)
    stream.state = state
    if stopped:
        stream.stop()
    assert stream_sentence(stream, 0, LiveStatus(None, "r", 3.0, 0, True)) == said


def test_a_suggested_range_says_what_was_not_tried():
    said = suggested_range_sentence(SuggestedRange(-2.0, 4.0, 2.0, 12, (True, False)))
    assert said.startswith("Suggested: -2 (-1 sd) to +4 (+2 sd), by a sweep over 12 prompts.")
    assert said.endswith("Nothing beyond +4 (+2 sd) was tried.")
    assert "none" in suggested_range_sentence(SuggestedRange(0.0, 0.0, 2.0, 12, (True, True)))

"""The tables and sentences that say what a run holds, for pages and the command line alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import acos, degrees
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core.basis import FEW_DIMENSIONS, STABLE_COSINE
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.evaluation.rollouts import UNSTEERED
from core.jobs import JobProgress
from core.model import resolve_blocks
from core.reading import Label, rank_examples
from core.source import as_numbers
from core.steering.intervention import both_units
from core.steering.sweep import BROKEN_LIMIT, PERPLEXITY_LIMIT, REPETITION_LIMIT, SuggestedRange, Sweep
from core.workspace import KeptEvaluation, Run, Workspace

if TYPE_CHECKING:
    from core.steering.comparison import Comparison, Variant
    from core.steering.intervention import Directions
    from core.steering.live import LiveStatus, Stream

STABLE_ANGLE = degrees(acos(STABLE_COSINE))
MOST_VALUES = 200
FEW_VALUES = 20
LOOKED_AT = 5_000
FEW_PROMPTS = 5


def basis_summary(manifest: Mapping[str, Any]) -> str:
    """Model, data and recipe in one line."""
    recipe, data = manifest["recipe"], manifest["data"]
    blocks = manifest["blocks"]
    where = f"blocks {blocks[0]} to {blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}"
    return (
        f"{short_name(manifest['model']['name'])} on {short_name(data['path'])}: {manifest['n']:,} examples, "
        f"{data['tokens']:,} tokens, {where} of {manifest['model']['n_blocks']}, pooling {recipe['pooling']}, "
        f"block scale {recipe['block_scale']}, {manifest['d']:,} dimensions, {manifest['k']} directions."
    )


def short_name(path: str) -> str:
    """A file or folder by its own name, a hub id as it is."""
    return path.rstrip("/").rsplit("/", 1)[-1] if path.startswith(("/", ".", "~")) else path


def grouping_sentence(directions: pd.DataFrame, last_is_open: bool) -> str:
    """Which directions stand alone and which only as a span."""
    groups = [group["direction"].tolist() for _, group in directions.groupby("group")]
    open_group = groups.pop() if last_is_open else None
    alone = [str(group[0]) for group in groups if len(group) == 1]
    sentences = []
    if alone:
        sentences.append(f"{_named(alone)} {'stands' if len(alone) == 1 else 'stand'} alone.")
    sentences += [
        f"{_named([str(j) for j in group])} are stable only as a span." for group in groups if len(group) > 1
    ]
    if open_group:
        names = _named([str(j) for j in open_group])
        verb = "is" if len(open_group) == 1 else "are"
        sentences.append(f"{names} {verb} not settled: more data, or directions beyond the last, would be needed.")
    return " ".join(sentences)


def _named(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return f"Direction {numbers[0]}"
    return f"Directions {', '.join(numbers[:-1])} and {numbers[-1]}"


def table_of_directions(directions: pd.DataFrame, labels: Mapping[int, Label]) -> pd.DataFrame:
    """One row per direction with its label, concentration and rank correlation with length."""
    return pd.DataFrame(
        {
            "direction": directions["direction"],
            f"on {FEW_DIMENSIONS} dimensions": directions["concentration"].map("{:.0%}".format),
            "length correlation": [length_correlation(row) for _, row in directions.iterrows()],
            "label": [labels[j].text if j in labels else "" for j in directions["direction"]],
        }
    )


def length_correlation(direction: Mapping[str, Any] | pd.Series) -> str:
    """Spearman's rho of score and length with its 95% interval."""
    rho, low, high = (direction[f"length_correlation{end}"] for end in ("", "_low", "_high"))
    return "no variation" if pd.isna(rho) else f"{rho:+.2f} ({low:+.2f} to {high:+.2f})"


def direction_facts(direction: Mapping[str, Any] | pd.Series) -> dict[str, str]:
    """What is known of one direction, ready to show."""
    share, low, high = (direction[f"explained_variance{end}"] for end in ("", "_low", "_high"))
    return {
        "Share of the variance": f"{share:.1%} ({low:.1%} to {high:.1%})",
        "Turn under resampling": f"{direction['angle']:.0f}° (95%: {direction['angle_95']:.0f}°)",
        "Correlation with length": length_correlation(direction),
        f"On its {FEW_DIMENSIONS} largest dimensions": f"{direction['concentration']:.0%}",
    }


def colour_columns(run: Run) -> list[str]:
    """The columns worth colouring and filtering by: all but the texts and the ids."""
    return [name for name in run.facts_columns() if name != "example_id"]


def labels_first(facts: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The columns, first those that sort the first thousands of examples into a few kinds, numbers last."""

    def order(name: str) -> tuple[bool, bool]:
        few = facts[name].iloc[:LOOKED_AT]
        kinds = few.astype(str).nunique()
        return pd.api.types.is_numeric_dtype(few) or as_numbers(few) is not None, not 2 <= kinds <= FEW_VALUES

    return sorted(columns, key=order)


def filter_values(column: pd.Series) -> list[Any]:
    """The most frequent values of a column, for a filter."""
    return column.dropna().astype(str).value_counts().index[:MOST_VALUES].tolist()


def value_range(column: pd.Series) -> tuple[float, float] | None:
    """The least and the greatest value of a column of more numbers than a list can offer; None for others."""
    numbers = as_numbers(column)
    if numbers is None or column.nunique() <= FEW_VALUES:
        return None
    finite = numbers[np.isfinite(numbers.astype(float))]
    return float(finite.min()), float(finite.max())


@dataclass(frozen=True)
class RangeScale:
    """How a slider over numbers goes: from `low` to `high`, which hold them all, in round steps of a hundredth to
    a thousandth of the way; `form` writes them as exactly as the steps are."""

    low: float
    high: float
    step: float
    form: str

    @classmethod
    def of(cls, low: float, high: float) -> RangeScale:
        digits = 2 - int(np.floor(np.log10(high - low)))
        step = 10.0**-digits
        ends = round(np.floor(low / step) * step, digits), round(np.ceil(high / step) * step, digits)
        return cls(min(low, ends[0]), max(high, ends[1]), step, f"%.{max(digits, 0)}f")


def within(column: pd.Series, low: float, high: float) -> np.ndarray:
    """(n,) whether the column's number lies from `low` to `high`; a missing one does not."""
    numbers = as_numbers(column)
    return (column if numbers is None else numbers).between(low, high).to_numpy(dtype=bool, na_value=False)


def matching(column: pd.Series, values: list[str]) -> np.ndarray:
    """(n,) whether the column has one of `values` (none: any)."""
    return column.astype(str).isin(values).to_numpy() if values else np.ones(len(column), dtype=bool)


@dataclass(frozen=True)
class Extreme:
    """An example at an end of a direction."""

    example_id: int
    value: float
    text: str
    n_tokens: int


def extremes(
    run: Run,
    facts: pd.DataFrame,
    values: Sequence[np.ndarray],
    top: int,
    allowed: np.ndarray | None = None,
    column: str = "text",
) -> list[tuple[list[Extreme], list[Extreme]]]:
    """For each of several `values` (n,) the `top` examples at the + and the - end, among those `allowed` (n,).
    facts: one row per example, with example_id and n_tokens; column: what of an example is its text."""
    rows = np.arange(len(facts)) if allowed is None else np.flatnonzero(allowed)
    ends = [[rows[rank_examples(v[rows], polarity, top)] for polarity in (1, -1)] for v in values]
    shown = np.unique(np.concatenate([end for pair in ends for end in pair]))
    texts = dict(zip(shown.tolist(), run.texts(shown, column), strict=True))
    ids, lengths = facts["example_id"].to_numpy(), facts["n_tokens"].to_numpy()

    def described(end: np.ndarray, v: np.ndarray) -> list[Extreme]:
        return [Extreme(int(ids[row]), float(v[row]), texts[row], int(lengths[row])) for row in end.tolist()]

    return [
        (described(top_rows, v), described(bottom, v)) for (top_rows, bottom), v in zip(ends, values, strict=True)
    ]


def one_line(text: str, characters: int = 90) -> str:
    """The beginning of a text without line breaks."""
    line = " ".join(text[: 4 * characters].split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def sorted_rows(column: pd.Series, rows: np.ndarray, highest: bool) -> np.ndarray:
    """The rows by their values in a column (n,), equal ones in the order given, missing ones last."""
    numbers = as_numbers(column)
    values = (column if numbers is None else numbers).iloc[rows].reset_index(drop=True)
    return rows[values.sort_values(ascending=not highest, kind="stable").index]


def chosen_examples(
    run: Run, facts: pd.DataFrame, rows: np.ndarray, also_taken: Sequence[str] = ()
) -> pd.DataFrame:
    """The examples in `rows`: id, short text, length in tokens and their columns, those of them renamed whose
    names are taken by these or by columns to come."""
    taken = ("text", "example", "tokens", *also_taken)
    chosen = facts.iloc[rows].rename(columns={name: f"data_{name}" for name in taken})
    chosen.insert(1, "text", [one_line(text, 300) for text in run.texts(rows)])
    return chosen.rename(columns={"example_id": "example", "n_tokens": "tokens"})


def placed_examples(
    run: Run, facts: pd.DataFrame, rows: np.ndarray, places: Sequence[int], reasons: Sequence[str]
) -> pd.DataFrame:
    """The examples in `rows` of a selection, as `chosen_examples` has them, with their places in it (from 1) and
    why they are there."""
    placed = chosen_examples(run, facts, rows, ("place", "kept because"))
    placed.insert(0, "place", places)
    placed.insert(2, "kept because", reasons)
    return placed


def estimate_sentences(facts: Mapping[str, Any]) -> list[str]:
    """What a recovery will cost, a line each."""
    return [
        f"{facts['examples']:,} examples of {facts['rows']:,} rows, about {facts['tokens']:,} tokens",
        f"about {duration(facts['seconds'])} on {facts['device']} in {facts['dtype']} ({facts['rate_from']})",
        f"about {size(facts['memory_bytes'])} of memory and {size(facts['disk_bytes'])} of disk "
        f"({size(facts['free_bytes'])} free)",
        *([f"about {facts['cut']:,} of them longer than the limit of tokens, to be cut"] if facts["cut"] else []),
        *facts["problems"],
    ]


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(75)
    '1 min 15 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(n_bytes: float) -> str:
    """Bytes as a person says them.

    >>> size(3_200_000)
    '3.2 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1_000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1_000
    raise AssertionError


STEPS = {
    "starting": ("Starting", ""),
    "model": ("Loading the model", ""),
    "read": ("Reading the examples", "rows"),
    "activations": ("Running the model over the examples", "tokens"),
    "basis": ("Recovering the basis", "passes"),
    "scores": ("Scoring the examples", "examples"),
    "stability": ("Resampling the basis", "resamples"),
    "map": ("Drawing the map", ""),
    "labels": ("Labelling the directions", "directions"),
    "tokens": ("Scoring the tokens at the ends", "examples"),
    "kernels": ("Compiling, once on a machine", ""),
    "vectors": ("Turning the texts into vectors", "texts"),
    "duplicates": ("Looking for duplicates", "examples"),
    "overlaps": ("Looking for overlaps", "examples"),
    "generate": ("Generating", "tokens a text"),
    "prompts": ("Generating", "prompts"),
    "sweep": ("Generating and reading texts", "texts"),
    "rollouts": ("Writing and verifying texts", "texts"),
    "controls": ("Holding against controls", "of them"),
    "random models": ("Recovering directions of random models", "models"),
    "pace": ("Finding the pace", ""),
    "first-order": ("Differentiating the loss", "solutions"),
    "training": ("Training and measuring", "trainings"),
    "observe": ("Steering live, to compare with", "prompts"),
    "write": ("Writing the export", ""),
    "reload": ("Loading the export again", ""),
    "compare": ("Comparing it with live steering", "prompts"),
}
"""What each step of a job is doing, and what it counts."""


USUALLY = {
    "model": "some seconds, a large model minutes",
    "map": "10 to 60 s",
    "kernels": "10 to 60 s",
}
"""How long the steps take that cannot say how far they are."""


def progress_sentence(progress: JobProgress) -> str:
    """Where a job stands, its rate and the time left."""
    doing, unit = STEPS.get(progress.step, (progress.step.capitalize(), ""))
    counted = f": {progress.done:,}" + (f" of {progress.total:,}" if progress.total else "")
    parts = [doing + (f"{counted} {unit}".rstrip() if progress.total != 1 and progress.step != "starting" else "")]
    if progress.rate >= 1 and progress.total != 1:
        parts.append(f"{progress.rate:,.0f} a second")
    if progress.step in USUALLY and not progress.done:
        parts.append(f"usually {USUALLY[progress.step]}")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left in this step")
    return ", ".join(parts)


# --- steering -------------------------------------------------------------------------------------------

GUARD_SENTENCE = (
    f"Damage by the guard: the text surprises the unsteered model {PERPLEXITY_LIMIT:g} times as much as its own, "
    f"or {REPETITION_LIMIT:.0%} more of it repeated, or {BROKEN_LIMIT:.0%} more of the texts broken."
)


def table_of_sweep(sweep: Sweep) -> pd.DataFrame:
    """One row per strength, in both units, every mean with its 95% interval over prompts."""
    factor = sweep.deviation if sweep.request["unit"] == "sd" else 1.0
    deviation = None if sweep.request["operation"] == "remove" else sweep.deviation
    named = [("not steered", sweep.baseline)] if sweep.baseline else []
    named += [(both_units(point.strength * factor, deviation), point) for point in sweep.points]
    rows = [
        {
            "strength": strength,
            "effect (sd)": interval_text(point.effect, "{:+.2f}"),
            "perplexity ratio": interval_text(point.surprise, "{:.2f}", np.exp),
            "repeated": interval_text(point.repetition, "{:.0%}"),
            "KL (nats)": interval_text(point.divergence, "{:.2f}"),
            "tokens": interval_text(point.tokens, "{:.0f}"),
            "broken": interval_text(point.broken, "{:.0%}"),
            **({"correct": interval_text(point.correct, "{:.1%}")} if point.correct else {}),
            "guard": "damage" if point.is_damaged else "",
        }
        for strength, point in named
    ]
    return pd.DataFrame(rows)


def interval_text(interval: Interval, form: str, convert: Any = float) -> str:
    """An estimate with its interval, such as `0.31 (0.20 to 0.42)`."""
    if np.isnan(interval.value):
        return "none"
    value = form.format(convert(interval.value))
    if np.isnan(interval.low):
        return f"{value} (one case)"
    return f"{value} ({form.format(convert(interval.low))} to {form.format(convert(interval.high))})"


def sweep_range_sentence(sweep: Sweep) -> str:
    """The range without damage, in both units; of `remove`, in shares taken out."""
    from core.steering.sweep import zero_damages

    factor = sweep.deviation if sweep.request["unit"] == "sd" else 1.0
    is_share = sweep.request["operation"] == "remove"
    deviation = None if is_share else sweep.deviation
    name = "Shares taken out: no damage" if is_share else "No damage"
    low, high = (both_units(end * factor, deviation) for end in (sweep.low, sweep.high))
    if zero_damages(sweep.points):
        found = f"Even {sweep.request['operation']} to 0 does damage."
    elif not any(point.strength for point in sweep.points):
        found = "Only strength 0 was tried, which tells no range."
    elif sweep.low == sweep.high == 0:
        found = f"Even the smallest {'shares' if is_share else 'strengths'} tried do damage."
    else:
        n = len(sweep.request["prompts"])
        over = f"over {n} prompt{'s' * (n > 1)}" + (", too few to rule it out" if n < FEW_PROMPTS else "")
        found = f"{name} seen from {low} to {high}, {over}."
    return f"{found} {GUARD_SENTENCE}"


def suggested_range_sentence(found: SuggestedRange) -> str:
    """What the calibrating sweep suggests."""
    if found.low == found.high == 0:
        return "Suggested: none. Even the smallest strengths tried do damage."
    ends = [both_units(value, found.deviation) for value in (found.low, found.high)]
    untried = [end for end, met in zip(ends, found.reaches, strict=True) if not met]
    open_end = f" Nothing beyond {' and '.join(untried)} was tried." if untried else ""
    return f"Suggested: {ends[0]} to {ends[1]}, by a sweep over {found.prompts} prompts.{open_end}"


SLIDER_STEPS = 40
"""From 0 to either end."""
START_SD = 1.6
"""Where the first columns begin as long as no range is known: along the demo's style most solutions turn and are
well formed at 1.5, at 2 half of them are not (docs/demo.md)."""


def slider_limit(
    found: SuggestedRange | None, deviation: float, unit: str, operation: str, asked: float = 0.0
) -> float:
    """How far a slider goes: twice the suggested range, or six standard deviations, and to what is asked for, in
    multiples of the unit direction; a share goes to 1."""
    if operation == "remove":
        return 1.0
    furthest = max(abs(found.low), abs(found.high)) if found else 0.0
    limit = max(2 * furthest or 6 * deviation, abs(asked))
    return _round_up(limit / deviation if unit == "sd" else limit)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8, 10 times a power of ten, whose fortieths are round."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * 0.999))


def slider_bounds(
    found: SuggestedRange | None, deviation: float, unit: str, operation: str, asked: float = 0.0
) -> tuple[float, float, float]:
    """The lowest strength of a slider, its highest, and its step."""
    limit = slider_limit(found, deviation, unit, operation, asked)
    return (0.0 if operation == "remove" else -limit), limit, limit / SLIDER_STEPS


def column_strengths(
    found: SuggestedRange | None, deviation: float, unit: str, operation: str, asked: float = 0.0
) -> list[float]:
    """The first strengths of the columns after the baseline: what is asked for, in multiples of the unit
    direction, to four digits, and its opposite; else the ends of the suggested range, or START_SD standard
    deviations; then the half of both, and twice."""
    if operation == "remove":
        return [1.0, 0.5, 0.25, 0.75, 0.1]
    limit = slider_limit(found, deviation, unit, operation, asked)
    scale = deviation if unit == "sd" else 1.0
    if asked:
        first = float(f"{asked / scale:.4g}")
        return [float(np.clip(part * first, -limit, limit)) for part in (1, -1, 0.5, -0.5, 2)]
    high = (found.high if found and found.high else START_SD * deviation) / scale
    low = (found.low if found and found.low else -START_SD * deviation) / scale
    step = limit / SLIDER_STEPS
    wanted = (high, low, high / 2, low / 2, 2 * high)
    return [float(np.clip(round(value / step) * step, -limit, limit)) for value in wanted]


def covered_blocks(run: Run, directions: Directions, blocks: str) -> tuple[int, ...] | None:
    """The blocks written in a field, of those that the run covers; None where it is empty."""
    if not blocks or not blocks.strip():
        return None
    return directions.covered(resolve_blocks(blocks, int(run.manifest["model"]["n_blocks"])))


def live_sentence(status: LiveStatus) -> str:
    """Whether the model is loaded, and who waits."""
    if status.loading:
        return f"The model of run {status.loading[:6]} is being loaded, {status.seconds:.0f} s so far."
    if not status.loaded:
        return "No model is loaded; generating loads it."
    waiting = f"; {status.waiting} waiting" if status.waiting else ""
    return f"The model of run {status.loaded[:6]} is loaded, {'busy' if status.busy else 'idle'}{waiting}."


def stream_sentence(stream: Stream, before: int, status: LiveStatus) -> str:
    """Where a stream stands, with its speed."""
    if stream.state == "waiting":
        return f"Waiting: {before} before you." if before else "Waiting."
    if stream.state == "loading":
        loading = "Stopping, once the model is loaded" if stream.was_stopped else "Loading the model"
        return f"{loading}: {status.seconds:.0f} s so far."
    if stream.state == "failed":
        return f"This could not be done. {stream.message}"
    comparison = stream.comparison
    if comparison is None or not comparison.n_tokens:
        return {
            "stopped": "Stopped before the first token.",
            "done": "Done: no column wrote a token.",
            "assessing": "Written, being measured: no column wrote a token.",
        }.get(stream.state, "Stopping." if stream.was_stopped else "Reading the prompt.")
    ended = {"done": "Done", "stopped": "Stopped", "assessing": "Written, being measured"}.get(
        stream.state, "Running"
    )
    writing = max(comparison.seconds, 1e-9)
    return (
        f"{ended}: {comparison.n_tokens:,} tokens in {comparison.seconds:.1f} s, "
        f"{comparison.n_tokens / writing:,.0f} a second over {len(comparison.responses)} columns; first token "
        f"after {1_000 * comparison.first_token:,.0f} ms."
    )


def with_name(comparison: Comparison, name: str | None) -> Comparison:
    """The comparison under a name, cut to a line."""
    return replace(comparison, name=one_line(name or "", 80))


def sweep_name(sweep: Sweep) -> str:
    """One line that tells a sweep from others."""
    request = sweep.request
    strengths = [point.strength for point in sweep.points]
    unit = "share" if request["operation"] == "remove" else request["unit"]
    return (
        f"direction {request['direction']}, {request['operation']}, {min(strengths):+g} to {max(strengths):+g} "
        f"{unit}, {len(request['prompts'])} prompts, {request['scope']}"
    )


def is_added_everywhere(
    directions: Directions, operation: str, scope: str, blocks: tuple[int, ...] | None
) -> bool:
    """Whether it is the published steering, for which a range is suggested and exports are made."""
    return operation == "add" and scope == "all" and blocks in (None, directions.blocks)


def exportable(directions: Directions, variants: Sequence[Variant]) -> list[Variant]:
    """The variants that every export format can mean: one direction, added everywhere."""
    return [
        variant
        for variant in variants
        for steering in [variant.steering]
        if len(steering.strengths) == 1
        and is_added_everywhere(directions, steering.operation, steering.scope, steering.blocks)
    ]


def export_arguments(workspace: Workspace, run: Run, variant: Variant, kind: str) -> list[str]:
    """The `export` command of a variant, into a folder of the workspace that is named by it."""
    ((direction, strength),) = variant.steering.strengths
    folder = workspace.root.resolve() / "exports" / f"{run.id[:6]}-d{direction}-{strength:+.4g}-{kind}"
    chosen = ["--direction", str(direction), "--strength", f"{strength:.6g}", "--format", kind]
    return ["export", run.id, *chosen, "--out", str(folder)]


# --- evaluations ----------------------------------------------------------------------------------------

MOST_NAMED = 10


def stored_interval(stored: Mapping[str, Any]) -> Interval:
    """An interval as a manifest holds it, with null for what is not a number."""
    value, low, high = (
        float("nan") if stored[name] is None else stored[name] for name in ("value", "low", "high")
    )
    return Interval(value, low, high, stored["n"])


def evaluation_tables(manifest: Mapping[str, Any]) -> list[pd.DataFrame]:
    """Pass@k of each variant of a finished evaluation, and where variants are steered their differences from the
    unsteered model, paired by problem."""
    found = manifest["result"]
    rows = [_variant_row(one) for one in found["variants"]]
    tables = [pd.DataFrame(rows)]
    if found["differences"]:
        tables.append(pd.DataFrame([_difference_row(one) for one in found["differences"]]))
    return tables


def _variant_row(one: Mapping[str, Any]) -> dict[str, str]:
    passed = {f"Pass@{k}": share_text(stored_interval(value)) for k, value in one["pass_at"].items()}
    return {
        "variant": one["variant"],
        **passed,
        "log-prob. a token, all texts": interval_text(stored_interval(one["logprob"]), "{:.3f}"),
        "right texts": interval_text(stored_interval(one["logprob_right"]), "{:.3f}"),
        "tokens": interval_text(stored_interval(one["tokens"]), "{:.0f}"),
    }


def _difference_row(one: Mapping[str, Any]) -> dict[str, str]:
    return {
        "variant": one["variant"],
        "k": str(one["k"]),
        "points": interval_text(stored_interval(one["difference"]), "{:+.1f}", lambda value: 100 * value),
        "p": f"{one['p']:.2g}",
        "problems better": str(one["better"]),
        "worse": str(one["worse"]),
    }


def share_text(interval: Interval) -> str:
    """A share with its interval, such as `31.0% (20.1 to 42.3)`."""
    if np.isnan(interval.value):
        return "none"
    if np.isnan(interval.low):
        return f"{interval.value:.1%} (one problem)"
    return f"{interval.value:.1%} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def evaluation_sentences(manifest: Mapping[str, Any]) -> list[str]:
    """What was asked of how many problems, and what is counted apart."""
    request, found = manifest["request"], manifest["result"]["variants"]
    sampling, problems = request["sampling"], manifest["problems"]
    left_out = manifest["left_out"]
    n = problems["n"] - sum(map(len, left_out.values()))
    lines = [
        f"{n:,} problems of {short_name(problems['path'])}, {request['r']} rollouts each at temperature "
        f"{sampling['temperature']:g}, at most {sampling['max_new_tokens']:,} new tokens, verifier "
        f"{request['verifier']}. Intervals: 95%, over problems; differences are paired by problem."
    ]
    reasons = {
        "unverifiable": "left out: the verifier cannot verify their answers",
        "too_long": "left out: no room for the new tokens in the model's context",
        "not_asked": "left out: the chat template refuses them, or nothing is left of them to ask",
        "refused": "left out: the server refused them, as it does what is too long",
    }
    lines += [
        f"{len(ids):,} problems {reasons[reason]} (rows {_some(ids)})." for reason, ids in left_out.items() if ids
    ]
    if unread := manifest.get("unread"):
        rows = _some(sorted({problem_id for problem_id, _ in unread}))
        lines.append(
            f"{len(unread):,} of the server's texts could not be read and are not counted (rows {rows}); the same "
            "command asks for them again."
        )
        lines += [f"{n:,} of them: {why}." for why, n in manifest.get("unread_reasons", {}).items()][:MOST_NAMED]
    for one in found:
        counts = {
            f"cut at the token limit ({one['cut_right']:,} of them right)": one["cut"],
            "could not be verified in time, and count as not right": one["unverified"],
            **{f"noted: {note}": n for note, n in one.get("notes", {}).items()},
        }
        lines += [
            f"{one['variant']}: {n:,} of {one['rollouts']:,} texts {what}." for what, n in counts.items() if n
        ]
    lines.append(
        "Log-prob. a token: how likely the model found what it wrote, over all texts and over the right ones "
        "alone; the nearer to 0, the surer it was."
    )
    return [*lines, *(f"Note: {note}." for note in (*problems["notes"], *manifest.get("notes", ())))]


def _some(ids: Sequence[int]) -> str:
    """
    >>> _some([3, 4, 8])
    '3, 4, 8'
    """
    return ", ".join(map(str, ids[:MOST_NAMED])) + (", ..." if len(ids) > MOST_NAMED else "")


def evaluation_row(kept: KeptEvaluation, is_running: bool) -> dict[str, Any]:
    """What tells a kept evaluation from others, and what the unsteered model came to. Raises BasiscopeError where
    its manifest is damaged."""
    manifest = kept.manifest
    try:
        request, problems = manifest["request"], manifest["problems"]
        variants = manifest.get("result", {}).get("variants", [])
        first = next((one["pass_at"].get("1") for one in variants if one["variant"] == UNSTEERED), None)
        stopped = "running" if is_running else "interrupted"
        return {
            "evaluation": kept.id,
            "status": "complete" if kept.is_complete else stopped,
            "run": kept.run,
            "model": request["model"]["name"] if "model" in request else request["server"]["model"],
            "problems": problems["path"],
            "n": problems["n"],
            "verifier": request["verifier"],
            "rollouts": request["r"],
            "variants": max(len(request.get("variants", {})), 1),
            "pass_at_1": first,
            "created": manifest["created"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise BasiscopeError(f"Evaluation {kept.id}: its manifest is damaged ({error}).") from error

"""The tables and sentences that say what a run holds, for pages and the command line alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import acos, degrees
from typing import Any

import numpy as np
import pandas as pd

from core.basis import FEW_DIMENSIONS, STABLE_COSINE
from core.jobs import JobProgress
from core.reading import Label, rank_examples
from core.workspace import Run

STABLE_ANGLE = degrees(acos(STABLE_COSINE))
MOST_VALUES = 200


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


def filter_values(column: pd.Series) -> list[Any]:
    """The most frequent values of a column, for a filter."""
    return column.dropna().astype(str).value_counts().index[:MOST_VALUES].tolist()


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
) -> list[tuple[list[Extreme], list[Extreme]]]:
    """For each of several `values` (n,) the `top` examples at the + and the - end, among those `allowed` (n,).
    facts: one row per example, with example_id and n_tokens."""
    rows = np.arange(len(facts)) if allowed is None else np.flatnonzero(allowed)
    ends = [[rows[rank_examples(v[rows], polarity, top)] for polarity in (1, -1)] for v in values]
    shown = np.unique(np.concatenate([end for pair in ends for end in pair]))
    texts = dict(zip(shown.tolist(), run.texts(shown), strict=True))
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


def chosen_examples(run: Run, facts: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """The examples in `rows`: id, short text, length in tokens and their columns."""
    chosen = facts.iloc[rows].copy()
    chosen.insert(1, "text", [one_line(text, 300) for text in run.texts(rows)])
    return chosen.rename(columns={"example_id": "example", "n_tokens": "tokens"})


def estimate_sentences(facts: Mapping[str, Any]) -> list[str]:
    """What a recovery will cost, a line each."""
    return [
        f"{facts['examples']:,} examples of {facts['rows']:,} rows, about {facts['tokens']:,} tokens",
        f"about {duration(facts['seconds'])} on {facts['device']} in {facts['dtype']} ({facts['rate_from']})",
        f"about {size(facts['memory_bytes'])} of memory and {size(facts['disk_bytes'])} of disk "
        f"({size(facts['free_bytes'])} free)",
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
    "stability": ("Resampling the basis", ""),
    "map": ("Drawing the map", ""),
    "labels": ("Labelling the directions", "directions"),
    "tokens": ("Scoring the tokens at the ends", "examples"),
}
"""What each step of a job is doing, and what it counts."""


def progress_sentence(progress: JobProgress) -> str:
    """Where a job stands, its rate and the time left."""
    doing, unit = STEPS.get(progress.step, (progress.step.capitalize(), ""))
    counted = f": {progress.done:,}" + (f" of {progress.total:,}" if progress.total else "")
    parts = [doing + (f"{counted} {unit}".rstrip() if progress.total != 1 and progress.step != "starting" else "")]
    if progress.rate >= 1 and progress.total != 1:
        parts.append(f"{progress.rate:,.0f} a second")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left in this step")
    return ", ".join(parts)

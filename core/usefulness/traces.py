"""Traces with verdicts: which examples of a run are solutions known to be right or wrong, and of which problem."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from core.errors import BasiscopeError
from core.examples import field_value, kept_columns
from core.usefulness.association import with_intercept
from core.workspace import Run

LENGTH = "length"
MOST_LEVELS = 50
LEAST_MIXED = 10
"""Problems with both verdicts from which on traces are compared within problems."""
VERDICTS = {
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "1.0": True,
    "0.0": False,
    "yes": True,
    "no": False,
    "right": True,
    "wrong": False,
    "correct": True,
    "incorrect": False,
}


@dataclass(frozen=True)
class Traces:
    """Examples of a run with a verdict.

    rows: (n,) their row numbers in the run; right: (n,) bool; problem: (n,) codes from 0 in order of appearance
    controls: (n, c) float64 columns that are controlled for, of which `control_names` says the origins
    left_out: why other examples of the run are no traces, and how many
    """

    rows: np.ndarray
    right: np.ndarray
    problem: np.ndarray
    controls: np.ndarray
    control_names: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def problems(self) -> int:
        return len(np.unique(self.problem))

    @property
    def mixed_problems(self) -> int:
        """Problems with right and wrong traces."""
        hits, all_of = np.bincount(self.problem, self.right), np.bincount(self.problem)
        return int(((hits > 0) & (hits < all_of)).sum())

    @property
    def is_within(self) -> bool:
        """Whether there is enough to compare the traces of one problem with each other."""
        return self.mixed_problems >= LEAST_MIXED

    def span_controls(self) -> np.ndarray:
        return with_intercept(self.controls)

    def of_problems(self, most: int, seed: int) -> Traces:
        """Whole problems, chosen at random until there are `most` traces or no more."""
        if self.n <= most:
            return self
        order = np.random.default_rng(seed).permutation(self.problem.max() + 1)
        sizes = np.bincount(self.problem)[order]
        chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes), most, side="right")))]
        return self.taken(np.isin(self.problem, chosen))

    def taken(self, keep: np.ndarray) -> Traces:
        """Those where keep (n,) is true."""
        codes = np.unique(self.problem[keep], return_inverse=True)[1]
        return Traces(
            self.rows[keep], self.right[keep], codes, self.controls[keep], self.control_names, self.left_out
        )


def read_traces(
    run: Run, correct: str | None = None, controls: Sequence[str] = (LENGTH,), problem: str | None = None
) -> Traces:
    """The traces of a run: its examples with a verdict in the column `correct` (dotted paths lead into nested
    ones). Those that share the text in `problem`, by default the prompt, are of one problem.

    Raises BasiscopeError for columns that are not there or cannot be used, where no example has a verdict, and
    where all verdicts are the same.
    """
    correct = correct or _named_verdicts(run)
    values = column_values(run, correct, "--correct")
    verdicts = values.map(_verdict)
    known = verdicts.notna().to_numpy()
    unreadable = int((values.notna().to_numpy() & ~known).sum())
    missing = int(values.isna().sum())
    if not known.any():
        example = next((str(value) for value in values.dropna()), "nothing")
        raise BasiscopeError(
            f"--correct: column {correct!r} holds no verdicts; it must say true or false, 1 or 0, right or wrong "
            f"in each row, and holds for example {example[:60]!r}."
        )
    right = verdicts[known].astype(bool).to_numpy()
    if right.all() or not right.any():
        kind = "right" if right.all() else "wrong"
        raise BasiscopeError(
            f"--correct: all {len(right):,} verdicts in column {correct!r} are {kind}; there is nothing that "
            "scores could go with. Take data with both right and wrong traces."
        )
    rows = np.flatnonzero(known)
    columns = [_control(run, name)[rows] for name in dict.fromkeys(controls)]
    stacked = np.column_stack(columns) if columns else np.zeros((len(rows), 0))
    left_out = {"no verdict": missing, "a verdict that is neither true nor false": unreadable}
    return Traces(
        rows,
        right,
        pd.factorize(_problems(run, problem).to_numpy()[rows])[0],
        stacked,
        tuple(dict.fromkeys(controls)),
        {why: count for why, count in left_out.items() if count},
    )


def column_values(run: Run, name: str, option: str) -> pd.Series:
    """(n,) values of a column of the run's examples. Raises BasiscopeError where there is none of the name."""
    columns = run.columns()
    if name in columns:
        return run.examples([name])[name]
    top = name.split(".")[0]
    kept = next(iter(kept_columns({top: None})))
    if "." in name and kept in columns:
        nested = run.examples([kept])[kept]
        parsed = [json.loads(value) if isinstance(value, str) and value[:1] in "{[" else value for value in nested]
        values = pd.Series([field_value({top: value}, name) for value in parsed], dtype=object)
        if values.notna().any():
            return values
    raise BasiscopeError(
        f"{option}: run {run.id} has no column {name!r}. Its columns: {', '.join(columns)}; nested ones are "
        "written a.b."
    )


def likely_verdicts(run: Run) -> str | None:
    """The column that is called as verdicts usually are."""
    names = ("correct", "is_correct", "right", "is_right", "verdict", "reward")
    return next((name for name in names if name in run.columns()), None)


def _named_verdicts(run: Run) -> str:
    found = likely_verdicts(run)
    if found is None:
        raise BasiscopeError(
            f"Run {run.id} has no column of verdicts that is called like one; name it with --correct. Its "
            f"columns: {', '.join(run.columns())}."
        )
    return found


def _verdict(value: Any) -> bool | None:
    if pd.isna(value):
        return None
    return VERDICTS.get(str(value).strip().lower())


def _problems(run: Run, name: str | None) -> pd.Series:
    """(n,) what tells the run's problems apart; without prompts every example is a problem of its own."""
    if name:
        return column_values(run, name, "--problem").astype(str)
    columns = run.columns()
    if "prompt" in columns:
        asked = run.examples(["prompt", "example_id"])
        return asked["prompt"].fillna("example " + asked["example_id"].astype(str))
    return run.examples(["example_id"])["example_id"]


def _control(run: Run, name: str) -> np.ndarray:
    """(n, c) a column to control for: a number as it is, words as one column for each but the first; the length
    as tokens, their logarithm and their inverse, the form in which a mean over tokens carries it."""
    if name == LENGTH:
        tokens = run.examples(["n_tokens"])["n_tokens"].to_numpy().astype(np.float64)
        some = np.maximum(tokens, 1)
        return np.column_stack([tokens, np.log(some), 1 / some])
    values = column_values(run, name, "--control")
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    if numbers.notna().sum() == values.notna().sum() and numbers.notna().any():
        missing = numbers.isna().to_numpy(dtype=np.float64)
        return np.column_stack([numbers.fillna(numbers.mean()).to_numpy(dtype=np.float64), missing])
    levels = values.astype(str)
    if levels.nunique() > MOST_LEVELS:
        raise BasiscopeError(
            f"--control: column {name!r} has {levels.nunique():,} different values; take one with numbers, or "
            f"with at most {MOST_LEVELS} kinds."
        )
    return pd.get_dummies(levels, drop_first=True).to_numpy(dtype=np.float64)

"""What is selected from, by which rule, within which constraints, and what came of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf, isfinite
from typing import Any

import numpy as np
import pandas as pd

from core.errors import BasiscopeError
from core.workspace import Run

RULES = {
    "along": "along directions",
    "coverage": "coverage (farthest point)",
    "both": "coverage within the useful end",
    "quality": "quality column times diversity",
    "facility": "representative (facility location)",
    "medoids": "representative (medoids of k-means)",
    "random": "random",
    "longest": "longest first",
    "shortest": "shortest first",
    "text": "text diversity",
    "label": "stratified by a column",
    "order": "the order given",
}
BASELINES = ("random", "longest", "shortest", "text", "label", "order")
NESTED = tuple(name for name in RULES if name != "medoids")
MISSING = "(missing)"
SCORE_BINS = 20
USEFUL_END = 0.2


@dataclass(frozen=True)
class Pool:
    """The examples of a run: example_id (n,), scores (n, k), facts: their columns without the texts."""

    run: str
    example_id: np.ndarray
    scores: np.ndarray
    facts: pd.DataFrame

    @property
    def n(self) -> int:
        return len(self.example_id)

    @property
    def k(self) -> int:
        return self.scores.shape[1]

    @cached_property
    def whitened(self) -> np.ndarray:
        """(n, k) float32 scores, each direction divided by its standard deviation."""
        spread = self.scores.std(axis=0, dtype=np.float64)
        return (self.scores / np.where(spread > 0, spread, 1.0)).astype(np.float32)

    @cached_property
    def centred(self) -> np.ndarray:
        """(n, k) float32 whitened scores without their mean."""
        return self.whitened - self.whitened.mean(axis=0)

    @cached_property
    def norms(self) -> np.ndarray:
        """(n,) distance from the mean in whitened scores."""
        return np.linalg.norm(self.centred, axis=1)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) tokens."""
        return self.facts["n_tokens"].to_numpy()

    @cached_property
    def sorted_lengths(self) -> np.ndarray:
        return np.sort(self.lengths)

    @cached_property
    def sorted_norms(self) -> np.ndarray:
        return np.sort(self.norms)

    @cached_property
    def score_edges(self) -> np.ndarray:
        """(SCORE_BINS - 1, k) where SCORE_BINS equally full bins of the centred whitened scores meet."""
        return np.quantile(self.centred, np.linspace(0, 1, SCORE_BINS + 1)[1:-1], axis=0)

    @cached_property
    def row_of(self) -> dict[int, int]:
        return {int(example): row for row, example in enumerate(self.example_id)}

    def rows(self, examples: tuple[int, ...], option: str) -> np.ndarray:
        """Rows of example ids. Raises BasiscopeError for an id that is not in the run."""
        missing = [example for example in examples if example not in self.row_of]
        if missing:
            raise BasiscopeError(f"{option}: run {self.run} has no example {missing[0]}.")
        return np.array([self.row_of[example] for example in examples], dtype=np.int64)

    def column(self, name: str, option: str) -> pd.Series:
        """A column as text, missing values as MISSING. Raises BasiscopeError where it is absent or constant."""
        if name not in self.facts:
            known = ", ".join(str(column) for column in self.facts if column != "example_id")
            raise BasiscopeError(f"{option}: run {self.run} has no column {name!r}. Its columns: {known}.")
        values = self.facts[name].astype("string").fillna(MISSING).astype(str)
        if values.nunique() < 2:
            raise BasiscopeError(
                f"{option}: column {name!r} has the same value everywhere; it sets nothing apart."
            )
        return values


def pool_of(run: Run, scores: pd.DataFrame | None = None, facts: pd.DataFrame | None = None) -> Pool:
    """The pool of a run, from tables that are read already where given. Raises BasiscopeError for scores that are
    not numbers."""
    scores = run.scores() if scores is None else scores
    facts = run.examples(run.facts_columns()) if facts is None else facts
    values = scores[[f"d{j + 1}" for j in range(run.k)]].to_numpy()
    ids = scores["example_id"].to_numpy()
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise BasiscopeError(
            f"Run {run.id}: {bad.sum():,} examples have scores that are not numbers (the first: {ids[bad][0]}); "
            "recover the run again."
        )
    return Pool(run.id, ids, values, facts)


@dataclass(frozen=True)
class Rule:
    """How a selection is made.

    directions: signed, from 1, such as (1, -3) for "1+,3-"; weights: how they share the budget (equally, where
    empty); floor: least polarity * score in standard deviations; useful_end: the share of the pool within which
    `both` covers; column: of `label`, `quality`; trim: share of the pool with the largest norm left out;
    text_model: a sentence-transformers model whose embeddings `text` uses instead of TF-IDF
    """

    name: str
    directions: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    floor: float | None = None
    useful_end: float = USEFUL_END
    column: str | None = None
    trim: float = 0.0
    seed: int = 0
    text_model: str | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise BasiscopeError(f"Rule {self.name!r} is not one of {', '.join(RULES)}.")
        if self.name in ("along", "both") and not self.directions:
            raise BasiscopeError(f"Rule {self.name}: name at least one direction, such as --along 1+,3-.")
        if self.name in ("label", "quality") and not self.column:
            raise BasiscopeError(f"Rule {self.name}: name a column.")
        fine = all(0 < weight < inf for weight in self.weights)
        if self.weights and (len(self.weights) != len(self.directions) or not fine):
            raise BasiscopeError("Weights: one number above 0 for each direction.")
        if self.floor is not None and not isfinite(self.floor):
            raise BasiscopeError(f"Floor {self.floor}: it must be a number.")
        if not 0 <= self.seed < 2**32:
            raise BasiscopeError(f"Seed {self.seed}: it must lie between 0 and {2**32 - 1}.")
        for name, value, low, high in (("Trim", self.trim, 0, 0.9), ("Useful end", self.useful_end, 0.001, 1)):
            if not low <= value <= high:
                raise BasiscopeError(f"{name} {value}: it must lie between {low} and {high}.")

    @property
    def title(self) -> str:
        if self.name == "along":
            return f"along {show_directions(self.directions)}"
        if self.name == "both":
            return f"coverage within the end of {show_directions(self.directions)}"
        if self.name == "text":
            return f"{RULES['text']} ({self.text_model or 'TF-IDF'})"
        return f"{RULES[self.name]}: {self.column}" if self.column else RULES[self.name]


def parse_directions(text: str) -> tuple[int, ...]:
    """Signed directions of a text such as "1+,3-".

    >>> parse_directions("1+, 3-")
    (1, -3)
    """
    found = [re.fullmatch(r"(\d+)([+\-−])", part.strip()) for part in text.split(",")]
    if not all(found):
        raise BasiscopeError(f"Directions {text!r}: write a number and a polarity for each, such as 1+,3-.")
    signed = tuple(int(match[1]) * (1 if match[2] == "+" else -1) for match in found if match)
    if 0 in signed or len(set(signed)) != len(signed):
        raise BasiscopeError(f"Directions {text!r}: they count from 1, and each end is named once.")
    return signed


def show_directions(directions: tuple[int, ...]) -> str:
    """
    >>> show_directions((1, -3))
    '1+,3-'
    """
    return ",".join(f"{abs(j)}{'+' if j > 0 else '-'}" for j in directions)


@dataclass(frozen=True)
class Quota:
    """A share of the budget for each of some values of a column; the other values share the rest."""

    column: str
    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        values = [share for _, share in self.shares]
        if not values or min(values) < 0 or sum(values) > 1 + 1e-9:
            raise BasiscopeError(
                f"Quota on {self.column}: shares lie between 0 and 1, and together they are at most 1."
            )


QUOTA = re.compile(
    r'\s*(?P<column>"(?:[^"]|"")*"|[^=,"][^=,]*?)\s*=\s*(?P<value>"(?:[^"]|"")*"|[^,"][^,]*?)'
    r"\s*:\s*(?P<share>\d+\.?\d*|\.\d+)\s*(?P<percent>%?)\s*(?:,|$)"
)


def parse_quotas(text: str) -> tuple[Quota, ...]:
    """Quotas of a text such as "subject=Algebra:0.5,subject=Geometry:0.2,level=5:0.3"; a name with a comma stands
    in quotes, and a quote in it twice, as in CSV.

    >>> parse_quotas('kind="a, b":0.5')
    (Quota(column='kind', shares=(('a, b', 0.5),)),)
    """
    shares: dict[str, dict[str, float]] = {}
    at = 0
    while at < len(text) or not shares:
        match = QUOTA.match(text, at)
        if not match:
            raise BasiscopeError(
                f"Quota {text[at:]!r}: write column=value:share, such as subject=Algebra:0.5; a value with a "
                'comma in quotes, kind="a, b":0.5.'
            )
        at = match.end()
        column, value = _unquoted(match["column"]), _unquoted(match["value"])
        if value in shares.get(column, {}):
            raise BasiscopeError(f"Quota: {column}={value} has two shares; give it one.")
        share = float(match["share"]) / (100 if match["percent"] else 1)
        shares.setdefault(column, {})[value] = share
    return tuple(Quota(column, tuple(found.items())) for column, found in shares.items())


def show_quotas(quotas: tuple[Quota, ...]) -> str:
    """
    >>> show_quotas(parse_quotas("subject=Algebra:0.5,level=5:20%"))
    'subject=Algebra:0.5,level=5:0.2'
    """
    return ",".join(
        f"{_quoted(quota.column)}={_quoted(value)}:{np.format_float_positional(share, trim='0')}"
        for quota in quotas
        for value, share in quota.shares
    )


def _quoted(name: str) -> str:
    plain = name and name == name.strip() and not re.search(r'[",=\n\r]', name)
    return name if plain else '"' + name.replace('"', '""') + '"'


def _unquoted(name: str) -> str:
    return next(csv.reader([name], strict=True))[0] if name.startswith('"') else name


@dataclass(frozen=True)
class Constraints:
    """What holds whatever the rule: a budget in examples or in tokens, and what may be chosen.

    caps: (column, share) that no value of the column may exceed; must, never: (example id, reason); only: example
    ids to choose from; dedup: none, exact or near; against: held-out files, whose overlaps are flagged and, with
    drop_contaminated, removed; required: columns that must have a value; within_length_strata: the selection has
    the pool's distribution of lengths
    """

    budget: int | None = None
    budget_tokens: int | None = None
    quotas: tuple[Quota, ...] = ()
    caps: tuple[tuple[str, float], ...] = ()
    min_tokens: int | None = None
    max_tokens: int | None = None
    within_length_strata: bool = False
    dedup: str = "none"
    against: tuple[str, ...] = ()
    drop_contaminated: bool = False
    must: tuple[tuple[int, str], ...] = ()
    never: tuple[tuple[int, str], ...] = ()
    only: tuple[int, ...] = ()
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.budget_tokens is None):
            raise BasiscopeError("Give one of --budget and --budget-tokens.")
        for name, value in (("Budget", self.budget), ("Token budget", self.budget_tokens)):
            if value is not None and value < 1:
                raise BasiscopeError(f"{name} {value}: it must be at least 1.")
        for name, value in (("Least tokens", self.min_tokens), ("Most tokens", self.max_tokens)):
            if value is not None and value < 0:
                raise BasiscopeError(f"{name} {value}: it must not be negative.")
        if self.dedup not in ("none", "exact", "near"):
            raise BasiscopeError(f"Duplicates {self.dedup!r} is not one of none, exact, near.")
        both = {example for example, _ in self.must} & {example for example, _ in self.never}
        if both:
            raise BasiscopeError(f"Example {min(both)} is on both the must-have and the never list.")

    @property
    def shapes(self) -> bool:
        """Whether shares of the budget are prescribed."""
        return bool(self.quotas or self.caps or self.within_length_strata)


@dataclass(frozen=True)
class Selection:
    """Chosen examples in order: rows (b,) of the pool, value (b,) what the rule ranked each by, reasons (b,): why
    it is there where not by the rule; dropped: example_id and reason of those that could not be chosen."""

    run: str
    rule: Rule
    constraints: Constraints
    example_id: np.ndarray
    rows: np.ndarray
    value: np.ndarray
    reasons: tuple[str, ...]
    dropped: pd.DataFrame
    notes: tuple[str, ...] = field(default=())

    @property
    def budget(self) -> int:
        return len(self.rows)


def as_json(value: Rule | Constraints) -> dict[str, Any]:
    return asdict(value)


def rule_from(stored: Mapping[str, Any]) -> Rule:
    lists = {name: tuple(stored[name]) for name in ("directions", "weights")}
    return Rule(**{**stored, **lists})


def constraints_from(stored: Mapping[str, Any]) -> Constraints:
    quotas = tuple(Quota(q["column"], tuple((v, s) for v, s in q["shares"])) for q in stored["quotas"])
    pairs = {name: tuple((a, b) for a, b in stored[name]) for name in ("caps", "must", "never")}
    plain = {name: tuple(stored[name]) for name in ("against", "only", "required")}
    return Constraints(**{**stored, "quotas": quotas, **pairs, **plain})

"""What a page needs at once while a person moves the choices: an order up to the largest budget, of which every
budget below is a prefix, with its covering curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from core.errors import BasiscopeError
from core.provenance import Origins, count_sources
from core.selection.choose import choose, fitting, must_note, possible
from core.selection.measures import Curve, curve, summary
from core.selection.pool import NESTED, Constraints, Pool, Rule, Selection
from core.selection.quotas import MOST_CELLS, parts_of
from core.selection.screening import Screening
from core.selection.vectors import Vectors

RANDOM_SEEDS = 5
FIRST_LARGEST, FIRST_BUDGET = 1_000, 200
QUICK_DISTANCES = 60_000_000
"""Distances that take about a fifth of a second; what needs more is a job."""
QUICK_TEXTS = 2_000
MOST_ORDERS = 4
"""What a token budget with shares may need: each order is planned anew."""
QUICK_PARTS = 500
"""Parts of the pool that the integer program of the shares plans over in half a second."""
QUICK_SECONDS, MOST_SECONDS = 1.0, 20.0
"""How long a page makes a ledger without being asked, and at all."""
LEDGER_SECONDS = 2e-7
"""For an example of the pool and a source, on one core."""


@dataclass(frozen=True)
class Prospect:
    """A selection and the curve of its prefixes; the first `budget` of it are asked for."""

    selection: Selection
    curve: Curve
    budget: int

    @property
    def rows(self) -> np.ndarray:
        return self.selection.rows[: self.budget]


def is_prefix_stable(rule: Rule, constraints: Constraints) -> bool:
    """Whether a budget's selection is a prefix of any larger one, so that it need not be chosen again."""
    return rule.name in NESTED and not constraints.shapes


def is_quick(pool: Pool, rule: Rule, constraints: Constraints, has_vectors: bool = False) -> bool:
    """Whether a page may wait for the rule."""
    if rule.name == "medoids" or (rule.name == "text" and not has_vectors):
        return pool.n <= QUICK_TEXTS
    if QUICK_PARTS < parts_of(pool, constraints) <= MOST_CELLS:
        return False
    orders = MOST_ORDERS if constraints.budget_tokens is not None and constraints.shapes else 1
    picks = pool.n if rule.name == "facility" else orders * examples_within(pool, constraints, rule)
    return pool.n * picks <= QUICK_DISTANCES


def ledger_seconds(pool: Pool, rows: np.ndarray, origins: Origins) -> float:
    """About how long the ledger of these rows takes."""
    return LEDGER_SECONDS * pool.n * count_sources(pool, rows, origins)


def examples_within(pool: Pool, constraints: Constraints, rule: Rule) -> int:
    """About how many examples the budget is."""
    if constraints.budget is not None:
        return min(constraints.budget, pool.n)
    tokens = constraints.budget_tokens or 0
    if rule.name == "shortest":
        return int(np.searchsorted(pool.sorted_lengths.cumsum(), tokens, side="right"))
    return min(pool.n, 1 + round(tokens / float(pool.lengths.mean())))


def first_budgets(pool: Pool, unit: str) -> tuple[int, int, int]:
    """(the whole pool, how far a slider reaches at first, where it stands) in `examples` or `tokens`. At first no
    more than half of the pool, so that there is something to leave out, also by hand."""
    reach = min(pool.n, FIRST_LARGEST if pool.n <= 20_000 else FIRST_LARGEST // 2)
    budget = min(max(1, pool.n // 2), FIRST_BUDGET)
    if unit == "examples":
        return pool.n, reach, budget
    mean = float(pool.lengths.mean())
    return int(pool.lengths.sum()), round(reach * mean), round(budget * mean)


def budget_alone(constraints: Constraints) -> Constraints:
    return Constraints(budget=constraints.budget, budget_tokens=constraints.budget_tokens)


def widest(
    pool: Pool, rule: Rule, constraints: Constraints, largest: int, screening: Screening | None
) -> Constraints:
    """The constraints with the budget `largest`, in examples or tokens as theirs is, where a smaller one is then a
    prefix; else as they are."""
    if not is_prefix_stable(rule, constraints):
        return constraints
    if constraints.budget is None:
        return replace(constraints, budget_tokens=max(largest, constraints.budget_tokens or 0))
    most = int(possible(pool, rule, constraints, screening).sum())
    return replace(constraints, budget=max(constraints.budget, min(largest, most)))


def affordable(pool: Pool, rows: np.ndarray, constraints: Constraints) -> np.ndarray:
    """The first of the rows that the budget allows."""
    if constraints.budget_tokens is not None:
        return rows[: fitting(pool, rows, constraints.budget_tokens)]
    return rows[: constraints.budget]


def prospect(
    pool: Pool, rule: Rule, constraints: Constraints, vectors: Vectors, screening: Screening | None = None
) -> Prospect:
    """The selection that `choose` makes, with its curve."""
    found = choose(pool, rule, constraints, vectors, screening)
    return Prospect(found, curve(pool, found.rows), found.budget)


def within(found: Prospect, pool: Pool, constraints: Constraints) -> Prospect:
    """The prospect at the budget of the constraints. Raises BasiscopeError where not even one example fits."""
    chosen = found.selection
    check_first(pool, chosen.rows, constraints)
    budget = len(affordable(pool, chosen.rows, constraints))
    widest_note = must_note(constraints, chosen.budget)
    notes = must_note(constraints, budget) + tuple(note for note in chosen.notes if note not in widest_note)
    return replace(found, selection=replace(chosen, notes=notes), budget=budget)


def check_first(pool: Pool, rows: np.ndarray, constraints: Constraints) -> None:
    """Raises BasiscopeError where the budget does not even allow the first of the rows."""
    if not len(affordable(pool, rows, constraints)):
        raise BasiscopeError(
            f"Token budget {constraints.budget_tokens:,}: the first example alone has "
            f"{pool.lengths[rows[0]]:,} tokens."
        )


@dataclass(frozen=True)
class Baseline:
    """Orders of one baseline, several where chance decides, each with its curve."""

    name: str
    orders: tuple[np.ndarray, ...]
    curves: tuple[Curve, ...]

    def band(self, measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(budgets, least, largest) of a curve's measure, `radius` or `mean`, over the orders."""
        shortest = min(len(one.budgets) for one in self.curves)
        values = np.array([getattr(one, measure)[:shortest] for one in self.curves])
        return self.curves[0].budgets[:shortest], values.min(axis=0), values.max(axis=0)


def baseline(pool: Pool, rule: Rule, budget: Constraints, vectors: Vectors) -> Baseline:
    """What a baseline's rule chooses of the whole pool within a budget."""
    seeds = range(RANDOM_SEEDS if rule.name == "random" else 1)
    orders = tuple(choose(pool, replace(rule, seed=seed), budget, vectors).rows for seed in seeds)
    names = {"random": f"random ({RANDOM_SEEDS} seeds)", "label": f"label: {rule.column}"}
    return Baseline(names.get(rule.name, rule.name), orders, tuple(curve(pool, rows) for rows in orders))


def within_budget(pool: Pool, one: Baseline, constraints: Constraints) -> Baseline:
    """The baseline, where the budget allows an example of each of its orders. Raises BasiscopeError where not."""
    for order in one.orders:
        check_first(pool, order, constraints)
    return one


def all_rows(pool: Pool, one: Baseline, constraints: Constraints) -> np.ndarray:
    """The rows of all the baseline's orders at the budget, whose shares are then the means over the orders."""
    return np.concatenate([affordable(pool, order, constraints) for order in one.orders])


MEASURES = {
    "covering radius": "{:.2f}",
    "mean distance": "{:.2f}",
    "norm percentile": "{:.0%}",
    "bins covered": "{:.0%}",
    "examples": "{:,.0f}",
    "tokens": "{:,.0f}",
    "median length": "{:,.0f}",
    "longer than pool": "{:.2f}",
    "knee": "{:,.0f}",
}
"""What a table of selections shows, and how."""


def readable(measures: Mapping[str, float]) -> dict[str, str]:
    """A selection's measures as a person reads them."""
    return {name: form.format(measures[name]) for name, form in MEASURES.items() if name in measures}


def measures_table(
    pool: Pool, found: Prospect, baselines: Sequence[Baseline], constraints: Constraints
) -> pd.DataFrame:
    """A row each for the selection and the baselines at its budget, from the least to the largest of their
    orders."""
    rows = {"selection": [summary(pool, found.rows, found.curve)]}
    for one in baselines:
        rows[one.name] = [
            summary(pool, affordable(pool, order, constraints), covered)
            for order, covered in zip(one.orders, one.curves, strict=True)
        ]
    return pd.DataFrame(
        {
            name: {
                m: _spread([one[m] for one in several], form) for m, form in MEASURES.items() if m in several[0]
            }
            for name, several in rows.items()
        }
    ).T


def _spread(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def can_compare(pool: Pool, selections: Mapping[str, np.ndarray]) -> bool:
    """Whether a page may wait for the curves of these selections' rows."""
    return pool.n * sum(len(rows) for rows in selections.values()) <= 2 * QUICK_DISTANCES

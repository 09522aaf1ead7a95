"""How far rules cover a run, and how many of its labels, over random parts of it.

Every rule chooses from random parts of the run, SHARE of it each, so that a rule without chance has an interval,
too: the median (the least to the largest) over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from core.selection.choose import choose
from core.selection.measures import Curve, curve, labels_covered, norm_percentile
from core.selection.pool import Constraints, Pool, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE = 0.8
BUDGETS, LABEL_BUDGETS = (30, 150, 500), (15, 30, 60)
RULES = {
    "coverage": Rule("coverage"),
    "coverage, 2% outliers left out": Rule("coverage", trim=0.02),
    "facility location": Rule("facility"),
    "text diversity (TF-IDF)": Rule("text"),
    "random": Rule("random"),
}
COLOURS = ("#3b6fb6", "#2aa1b3", "#d9822b", "#3d9970", "#9aa0a6")


@dataclass(frozen=True)
class Covered:
    """Parts of a pool; for each rule, and each part, the rows that it chooses of it and their curve."""

    parts: Sequence[Pool]
    orders: Mapping[str, Sequence[np.ndarray]]
    curves: Mapping[str, Sequence[Curve]]

    def radius_and_mean(self, rule: str, budget: int) -> np.ndarray:
        """(parts, 2)"""
        return np.array([one.at(budget) for one in self.curves[rule]])

    def percentile(self, rule: str, budget: int) -> list[float]:
        rows = self.orders[rule]
        return [norm_percentile(part, own[:budget]) for part, own in zip(self.parts, rows, strict=True)]

    def labels(self, rule: str, column: str, budget: int) -> list[int]:
        """Values of a column among the chosen of each part."""
        rows = self.orders[rule]
        return [
            labels_covered(part.facts[column], own[:budget])[0] for part, own in zip(self.parts, rows, strict=True)
        ]

    @property
    def knees(self) -> list[int]:
        return [one.knee for one in self.curves["coverage"]]


def cover(pool: Pool, vectors: np.ndarray, parts: int) -> Covered:
    """vectors (n, m): of the texts"""
    rows = [part_of(pool, seed) for seed in range(parts)]
    pools = [subset(pool, own) for own in rows]
    wanted = Constraints(budget=min(BUDGETS[-1], pools[0].n - round(0.02 * pools[0].n) - 1))
    orders = {
        name: [
            choose(part, replace(rule, seed=seed), wanted, lambda own=own: vectors[own]).rows  # type: ignore[misc]
            for seed, (part, own) in enumerate(zip(pools, rows, strict=True))
        ]
        for name, rule in RULES.items()
    }
    curves = {
        name: [curve(part, own) for part, own in zip(pools, found, strict=True)] for name, found in orders.items()
    }
    return Covered(pools, orders, curves)


def part_of(pool: Pool, seed: int) -> np.ndarray:
    """Rows of a random part of the pool, in order."""
    return np.sort(np.random.default_rng(seed).choice(pool.n, round(SHARE * pool.n), replace=False))


def subset(pool: Pool, rows: np.ndarray) -> Pool:
    return Pool(pool.run, pool.example_id[rows], pool.scores[rows], pool.facts.iloc[rows].reset_index(drop=True))


def spread(values: Sequence[float] | np.ndarray, form: str = "{:.2f}") -> str:
    """Median (least to largest)."""
    low, high = form.format(min(values)), form.format(max(values))
    middle = form.format(float(np.median(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def draw(axes: list[Axes], covered: Covered) -> None:
    """Each rule's median with the range over the parts."""
    for place, title, measure in zip(axes, ("covering radius", "mean distance"), ("radius", "mean"), strict=True):
        for (name, several), colour in zip(covered.curves.items(), COLOURS, strict=True):
            values, budgets = np.array([getattr(one, measure) for one in several]), several[0].budgets
            place.plot(budgets, np.median(values, axis=0), color=colour, label=name)
            place.fill_between(budgets, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
        place.set(xlabel="examples", ylabel=title, ylim=(0, None), xscale="log")
    axes[0].legend(frameon=False, fontsize=7)

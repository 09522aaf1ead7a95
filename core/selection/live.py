"""What a page needs at once while a person moves the choices: an order up to the largest budget, of which every
budget below is a prefix, with its covering curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from core.selection.choose import choose
from core.selection.farthest import Order
from core.selection.measures import Curve, curve
from core.selection.pool import NESTED, Constraints, Pool, Rule, Selection
from core.selection.rules import Texts, order_by
from core.selection.screening import Screening

RANDOM_SEEDS = 5
QUICK_DISTANCES = 60_000_000
"""Distances that take about a fifth of a second; what needs more is a job."""


@dataclass(frozen=True)
class Prospect:
    """A selection and the curve of its prefixes; `budget` of it are asked for."""

    selection: Selection
    curve: Curve
    budget: int

    @property
    def rows(self) -> np.ndarray:
        return self.selection.rows[: self.budget]


def is_prefix_stable(rule: Rule, constraints: Constraints) -> bool:
    """Whether a budget's selection is a prefix of any larger one, so that it need not be chosen again."""
    return rule.name in NESTED and not constraints.shapes and constraints.budget is not None


def is_quick(pool: Pool, rule: Rule, budget: int) -> bool:
    """Whether a page may wait for the rule."""
    if rule.name in ("text", "medoids"):
        return pool.n <= 2_000
    distances = pool.n * (pool.n if rule.name == "facility" else budget)
    return distances <= QUICK_DISTANCES


def prospect(
    pool: Pool,
    rule: Rule,
    constraints: Constraints,
    largest: int,
    texts: Texts,
    screening: Screening | None = None,
) -> Prospect:
    """The selection up to `largest` where the rule is nested, else for its budget alone."""
    wider = constraints
    if is_prefix_stable(rule, constraints) and constraints.budget:
        wider = replace(constraints, budget=max(largest, constraints.budget))
    found = choose(pool, rule, wider, texts, screening)
    return Prospect(found, curve(pool, found.rows), constraints.budget or found.budget)


@dataclass(frozen=True)
class Baseline:
    """Orders of one baseline, several where chance decides, and the least and largest of their curves."""

    name: str
    orders: tuple[Order, ...]
    low: Curve
    high: Curve


def baseline(pool: Pool, name: str, largest: int) -> Baseline:
    seeds = range(RANDOM_SEEDS if name == "random" else 1)
    everyone = np.ones(pool.n, dtype=bool)
    most = min(largest, pool.n)
    orders = tuple(order_by(pool, Rule(name, seed=seed), most, everyone, list) for seed in seeds)
    curves = [curve(pool, order.rows) for order in orders]
    low, high = (
        Curve(curves[0].budgets, fold([c.radius for c in curves], axis=0), fold([c.mean for c in curves], axis=0))
        for fold in (np.min, np.max)
    )
    return Baseline(name, orders, low, high)

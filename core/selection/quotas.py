"""Shares of the budget: which cell of the columns concerned each pick is taken from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.errors import BasiscopeError
from core.selection.pool import Constraints, Pool, Quota

LENGTH_STRATA = 10
REST = "(the rest)"
MOST_CELLS = 5_000
"""Combinations of the values of the columns concerned; planning over more takes too long."""


@dataclass(frozen=True)
class Turns:
    """cells (n,): the cell of every row; turns (b,): the cell of every pick."""

    cells: np.ndarray
    turns: np.ndarray


def length_strata(lengths: np.ndarray) -> np.ndarray:
    """(n,) the tenth of the pool's lengths in which each lies; equal lengths stay together."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_STRATA + 1)[1:-1]))
    return np.searchsorted(edges, lengths, side="left")


@dataclass(frozen=True)
class Limit:
    """least and most picks of a value, beside the must-have examples; name: what a person calls it."""

    name: str
    column: str
    value: str
    least: int
    most: int


def plan_turns(
    pool: Pool, constraints: Constraints, allowed: np.ndarray, wanted: np.ndarray, must: np.ndarray, budget: int
) -> Turns:
    """The cells of the picks that follow the rows `must`, `budget` in all: their counts meet every quota and cap,
    to the example, and lie closest (in sum of absolute differences) to those of the rows that the rule alone would
    choose, `wanted` (b,); any prefix keeps the shares to within one example of each cell.

    Raises BasiscopeError, naming the quotas that cannot be met.
    """
    labels, limits = _requirements(pool, constraints, must, budget)
    cells = pd.MultiIndex.from_frame(labels)
    codes, distinct = pd.factorize(cells)
    if len(distinct) > MOST_CELLS:
        raise BasiscopeError(
            f"The quotas and caps divide the pool into {len(distinct):,} parts; more than {MOST_CELLS:,} cannot "
            "be planned for. Take columns with fewer values."
        )
    left = budget - len(must)
    values = pd.DataFrame(list(distinct), columns=labels.columns)
    there = np.bincount(codes[allowed], minlength=len(values))
    target = np.bincount(codes[wanted], minlength=len(values)) * (left / max(len(wanted), 1))
    counts = _closest(values, there, target, limits, left)
    if counts is None:
        raise BasiscopeError(_unmet(values, there, limits, left))
    return Turns(codes, _interleave(counts, there))


def parts_of(pool: Pool, constraints: Constraints) -> int:
    """Into how many parts the quotas, caps and strata divide the pool. Raises BasiscopeError as `plan_turns`."""
    if not constraints.shapes:
        return 1
    labels, _ = _requirements(pool, constraints, np.zeros(0, dtype=np.int64), pool.n)
    return len(labels.drop_duplicates())


def _requirements(
    pool: Pool, constraints: Constraints, must: np.ndarray, budget: int
) -> tuple[pd.DataFrame, list[Limit]]:
    labels: dict[str, np.ndarray] = {}
    limits: list[Limit] = []
    for quota in constraints.quotas:
        column = pool.column(quota.column, "Quota").to_numpy()
        _check_values(quota, column)
        named = [value for value, _ in quota.shares]
        key = f"quota {quota.column}"
        labels[key] = np.where(np.isin(column, named), column, REST)
        for value, share in quota.shares:
            there = int((column[must] == value).sum())
            low, high = _around(share * budget)
            limits.append(Limit(f"{quota.column}={value}:{share:g}", key, value, low - there, high - there))
    for name, share in constraints.caps:
        key = f"cap {name}"
        labels[key] = pool.column(name, "Cap").to_numpy()
        for value in np.unique(labels[key]):
            most = _around(share * budget)[0] - int((labels[key][must] == value).sum())
            limits.append(Limit(f"no {name} above {share:g}", key, value, 0, most))
    if constraints.within_length_strata:
        labels["length"] = length_strata(pool.lengths).astype(str)
        found, counts = np.unique(labels["length"], return_counts=True)
        for value, count in zip(found, counts, strict=True):
            low, high = _around(count / pool.n * (budget - len(must)))
            limits.append(Limit("within length strata", "length", value, low, high))
    return pd.DataFrame(labels), limits


def _around(count: float) -> tuple[int, int]:
    """The whole numbers next to a share of the budget."""
    return int(np.floor(count + 1e-9)), int(np.ceil(count - 1e-9))


def _check_values(quota: Quota, column: np.ndarray) -> None:
    for value, _ in quota.shares:
        if not (column == value).any():
            known = ", ".join(pd.Series(column).value_counts().index[:8])
            raise BasiscopeError(f"Quota: column {quota.column!r} has no value {value!r}; it has {known}.")


def _closest(
    values: pd.DataFrame, there: np.ndarray, target: np.ndarray, limits: list[Limit], budget: int
) -> np.ndarray | None:
    """(cells,) whole counts within `there` that meet the limits, by integer linear programming; None where none
    do."""
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    m = len(values)
    if any(limit.most < 0 for limit in limits):
        return None
    inside = np.array([values[limit.column] == limit.value for limit in limits] + [np.ones(m, dtype=bool)])
    least = [*(limit.least for limit in limits), budget]
    most = [*(limit.most for limit in limits), budget]
    eye, nothing = sparse.eye_array(m), sparse.csr_array(inside.shape)
    found = milp(
        np.repeat([0.0, 1.0], m),
        integrality=np.repeat([1, 0], m),
        bounds=Bounds(0, np.concatenate([there, np.full(m, np.inf)])),
        constraints=[
            LinearConstraint(sparse.hstack([sparse.csr_array(inside).astype(float), nothing]), least, most),
            LinearConstraint(sparse.hstack([eye, -eye]), -np.inf, target),
            LinearConstraint(sparse.hstack([eye, eye]), target, np.inf),
        ],
    )
    return found.x[:m].round().astype(int) if found.status == 0 else None


def _unmet(values: pd.DataFrame, there: np.ndarray, limits: list[Limit], budget: int) -> str:
    for limit in limits:
        has = int(there[(values[limit.column] == limit.value).to_numpy()].sum())
        if limit.least > has:
            return (
                f"{limit.name} cannot be met: {limit.least:,} of {budget:,} examples would be needed, and {has:,} "
                "can be chosen. Lower the share or the budget."
            )
        if limit.most < 0:
            return f"{limit.name} cannot be met: the must-have examples with {limit.value!r} are too many."
    culprits = []
    for name in dict.fromkeys(limit.name for limit in limits):
        others = [limit for limit in limits if limit.name != name]
        if _closest(values, there, np.zeros(len(values)), others, budget) is not None:
            culprits.append(name)
    named = " and ".join(culprits) or ", ".join(dict.fromkeys(limit.name for limit in limits))
    return f"The quotas cannot be met together at {budget:,} examples; what clashes: {named}."


def _interleave(counts: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(b,) cells such that every prefix has each cell's share of `counts` (cells,) to within one example."""
    budget = int(counts.sum())
    share, taken = counts / max(budget, 1), np.zeros(len(counts))
    turns = np.empty(budget, dtype=np.int64)
    for t in range(budget):
        lack = np.where(taken < there, share * (t + 1) - taken, -np.inf)
        turns[t] = np.argmax(lack)
        taken[turns[t]] += 1
    return turns

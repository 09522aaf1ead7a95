"""Shares of the budget: which cell of the columns concerned each pick is taken from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.errors import BasiscopeError
from core.selection.pool import Constraints, Pool, Quota

LENGTH_STRATA = 10
REST = "(the rest)"


@dataclass(frozen=True)
class Turns:
    """cells (n,): the cell of every row; turns (b,): the cell of every pick."""

    cells: np.ndarray
    turns: np.ndarray


def length_strata(lengths: np.ndarray) -> np.ndarray:
    """(n,) the tenth of the pool's lengths in which each lies; equal lengths stay together."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_STRATA + 1)[1:-1]))
    return np.searchsorted(edges, lengths, side="left")


def plan_turns(
    pool: Pool, constraints: Constraints, allowed: np.ndarray, wanted: np.ndarray, budget: int
) -> Turns:
    """The cells whose counts meet every quota and cap and lie closest (in sum of absolute differences) to those of
    the rows that the rule alone would choose, `wanted` (b,); any prefix keeps the shares to within one example.

    Raises BasiscopeError, naming the quotas that cannot be met.
    """
    labels, limits = _requirements(pool, constraints)
    cells = pd.MultiIndex.from_frame(labels)
    codes, distinct = pd.factorize(cells)
    values = pd.DataFrame(list(distinct), columns=labels.columns)
    there = np.bincount(codes[allowed], minlength=len(values))
    target = np.bincount(codes[wanted], minlength=len(values)) * (budget / max(len(wanted), 1))
    counts = _closest(values, there, target, limits, budget)
    if counts is None:
        raise BasiscopeError(_unmet(values, there, limits, budget))
    return Turns(codes, _interleave(counts, there))


Limit = tuple[str, str, str, float]
"""(what a person calls it, column, value, share); a share below 0 is a cap of its size."""


def _requirements(pool: Pool, constraints: Constraints) -> tuple[pd.DataFrame, list[Limit]]:
    labels: dict[str, np.ndarray] = {}
    limits: list[Limit] = []
    for quota in constraints.quotas:
        column = pool.column(quota.column, "Quota").to_numpy()
        _check_values(quota, column)
        named = [value for value, _ in quota.shares]
        key = f"quota {quota.column}"
        labels[key] = np.where(np.isin(column, named), column, REST)
        limits += [(f"{quota.column}={value}:{share:g}", key, value, share) for value, share in quota.shares]
    for name, share in constraints.caps:
        key = f"cap {name}"
        labels[key] = pool.column(name, "Cap").to_numpy()
        limits += [(f"no {name} above {share:g}", key, value, -share) for value in np.unique(labels[key])]
    if constraints.within_length_strata:
        strata = length_strata(pool.lengths).astype(str)
        labels["length"] = strata
        found, counts = np.unique(strata, return_counts=True)
        limits += [
            ("within length strata", "length", value, count / pool.n)
            for value, count in zip(found, counts, strict=True)
        ]
    return pd.DataFrame(labels), limits


def _check_values(quota: Quota, column: np.ndarray) -> None:
    for value, _ in quota.shares:
        if not (column == value).any():
            known = ", ".join(pd.Series(column).value_counts().index[:8])
            raise BasiscopeError(f"Quota: column {quota.column!r} has no value {value!r}; it has {known}.")


def _closest(
    values: pd.DataFrame, there: np.ndarray, target: np.ndarray, limits: list[Limit], budget: int
) -> np.ndarray | None:
    """(cells,) counts within `there` that meet the limits, by linear programming; None where none do."""
    from scipy.optimize import linprog

    m = len(values)
    equal, equals = [np.concatenate([np.ones(m), np.zeros(m)])], [float(budget)]
    below, belows = [], []
    for _, key, value, share in limits:
        row = np.concatenate([(values[key] == value).to_numpy(dtype=float), np.zeros(m)])
        if share >= 0:
            equal.append(row)
            equals.append(share * budget)
        else:
            below.append(row)
            belows.append(max(1.0, np.ceil(-share * budget - 1e-9)))
    eye = np.eye(m)
    below += list(np.hstack([eye, -eye])) + list(np.hstack([-eye, -eye]))
    belows += [*target, *-target]
    found = linprog(
        np.concatenate([np.zeros(m), np.ones(m)]),
        A_ub=np.array(below),
        b_ub=np.array(belows),
        A_eq=np.array(equal),
        b_eq=np.array(equals),
        bounds=[(0, int(size)) for size in there] + [(0, None)] * m,
    )
    return found.x[:m] if found.status == 0 else None


def _unmet(values: pd.DataFrame, there: np.ndarray, limits: list[Limit], budget: int) -> str:
    for name, key, value, share in limits:
        has = int(there[(values[key] == value).to_numpy()].sum())
        if share * budget > has + 1e-6:
            return (
                f"{name} cannot be met: {share * budget:.0f} of {budget:,} examples would be needed, and {has:,} "
                "can be chosen. Lower the share or the budget."
            )
    culprits = []
    for name in dict.fromkeys(limit[0] for limit in limits):
        others = [limit for limit in limits if limit[0] != name]
        if _closest(values, there, np.zeros(len(values)), others, budget) is not None:
            culprits.append(name)
    named = " and ".join(culprits) or ", ".join(dict.fromkeys(limit[0] for limit in limits))
    return f"The quotas cannot be met together at {budget:,} examples; what clashes: {named}."


def _interleave(counts: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(b,) cells such that every prefix has each cell's share of `counts` (cells,) to within one example."""
    budget = round(counts.sum())
    share, taken = counts / budget, np.zeros(len(counts))
    turns = np.empty(budget, dtype=np.int64)
    for t in range(budget):
        lack = np.where(taken < there, share * (t + 1) - taken, -np.inf)
        turns[t] = np.argmax(lack)
        taken[turns[t]] += 1
    return turns

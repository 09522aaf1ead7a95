"""What a selection means: how far it covers the pool, what it is made of, how it differs from the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.selection.farthest import covering_curve, knee
from core.selection.pool import MISSING, SCORE_BINS, Pool
from core.selection.quotas import length_strata
from core.source import as_numbers

MOST_MEASURED = 2_000
"""Picks along which a selection's knee is looked for, and a card's curves are drawn."""
TOP_VALUES = 12


@dataclass(frozen=True)
class Curve:
    """How the first `budgets` (m,) of a selection cover the pool: radius and mean (m,) distance of the pool's
    examples to the nearest chosen one, in whitened scores."""

    budgets: np.ndarray
    radius: np.ndarray
    mean: np.ndarray

    def at(self, budget: int) -> tuple[float, float]:
        """(radius, mean) at the largest budget measured that is not above `budget`."""
        place = max(0, int(np.searchsorted(self.budgets, budget, side="right")) - 1)
        return float(self.radius[place]), float(self.mean[place])

    @property
    def knee(self) -> int:
        return int(self.budgets[knee(self.radius) - 1])


def curve(pool: Pool, rows: np.ndarray) -> Curve:
    """The covering curve of an order of rows (b,), over the whole pool."""
    radius, mean = covering_curve(pool.whitened, rows)
    return Curve(np.arange(1, len(rows) + 1), radius, mean)


def norm_percentile(pool: Pool, rows: np.ndarray) -> float:
    """Mean share of the pool that lies nearer to the mean than a chosen example: 0.5 for a random selection, near
    1 for the outer shell."""
    return float((np.searchsorted(pool.sorted_norms, pool.norms[rows], side="left") / pool.n).mean())


def direction_coverage(pool: Pool, rows: np.ndarray) -> pd.DataFrame:
    """Per direction: share of SCORE_BINS equally full bins of the pool's scores with a chosen example, mean and
    standard deviation of the chosen in those of the pool."""
    chosen = pool.centred[rows]
    return pd.DataFrame(
        {
            "direction": np.arange(1, pool.k + 1),
            "bins covered": bins_covered(pool, rows),
            "mean shift (SD)": chosen.mean(axis=0),
            "spread (SD)": chosen.std(axis=0),
        }
    )


def bins_covered(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """(k,) share of SCORE_BINS equally full bins of each direction's scores that have a chosen example."""
    chosen, edges = pool.centred[rows], pool.score_edges
    return np.array(
        [len(np.unique(np.searchsorted(edges[:, j], chosen[:, j]))) / SCORE_BINS for j in range(pool.k)]
    )


@dataclass(frozen=True)
class LengthShift:
    """Lengths of a selection against the pool's: medians in tokens, and the probability that a chosen example is
    longer than one of the pool (0.5: no shift)."""

    median: float
    pool_median: float
    longer: float


def length_shift(pool: Pool, rows: np.ndarray) -> LengthShift:
    ordered, own = pool.sorted_lengths, pool.lengths[rows]
    below = np.searchsorted(ordered, own, side="left")
    upto = np.searchsorted(ordered, own, side="right")
    longer = float(((below + upto) / 2 / pool.n).mean())
    return LengthShift(float(np.median(own)), float(np.median(ordered)), longer)


def counted(column: pd.Series) -> pd.Categorical:
    """A column as it is counted: its TOP_VALUES most frequent values, text as it is and numbers of many values by
    tenths, in the order shown (numbers by size); none for the other values."""
    values, numbers = _binned(column), _numbers(column)
    names = values.value_counts().index[:TOP_VALUES]
    if numbers is not None:
        names = numbers.groupby(values).min()[names].sort_values().index
    return pd.Categorical(values, categories=names)


def composition(values: pd.Categorical, selections: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Shares of a column's values, as `counted`, in the pool and in the selections' rows."""
    names = values.categories

    def shares(codes: np.ndarray) -> np.ndarray:
        return np.bincount(codes[codes >= 0], minlength=len(names)) / len(codes)

    codes = values.codes
    found = {"pool": shares(codes)} | {name: shares(codes[rows]) for name, rows in selections.items()}
    return pd.DataFrame(found, index=names)


def what_is_shown(column: pd.Series) -> str:
    """What `counted` leaves out of a column, after its name; nothing where it leaves out none."""
    values = column.nunique(dropna=False)
    if values <= TOP_VALUES or _numbers(column) is not None:
        return ""
    return f", its {TOP_VALUES} most frequent values of {values:,}"


def labels_covered(column: pd.Series, rows: np.ndarray) -> tuple[int, int]:
    """(values of the column in the selection, in the pool)."""
    return int(column.iloc[rows].nunique()), int(column.nunique())


def _numbers(column: pd.Series) -> pd.Series | None:
    return column if pd.api.types.is_bool_dtype(column) else as_numbers(column)


def _binned(column: pd.Series) -> pd.Series:
    """Text as it is, numbers of many values by tenths."""
    numbers = _numbers(column)
    if numbers is not None and column.nunique() > TOP_VALUES:
        known = numbers.dropna()
        strata = length_strata(known.to_numpy())
        low = known.groupby(strata).transform("min")
        high = known.groupby(strata).transform("max")
        return (low.map("{:g}".format) + " to " + high.map("{:g}".format)).reindex(column.index).fillna(MISSING)
    return column.astype("string").fillna(MISSING).astype(str)


def overlap(selections: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Jaccard overlap of selections' example ids, a row and a column each."""
    sets = {name: set(ids) for name, ids in selections.items()}
    return pd.DataFrame(
        [[len(a & b) / max(1, len(a | b)) for b in sets.values()] for a in sets.values()],
        index=list(sets),
        columns=list(sets),
    )


def summary(pool: Pool, rows: np.ndarray, covered: Curve | None = None) -> dict[str, float]:
    """The figures that say together what a selection is; read none of them alone."""
    covered = covered or curve(pool, rows)
    radius, mean = covered.at(len(rows))
    lengths = length_shift(pool, rows)
    return {
        "examples": len(rows),
        "tokens": int(pool.lengths[rows].sum()),
        "covering radius": radius,
        "mean distance": mean,
        "norm percentile": norm_percentile(pool, rows),
        "bins covered": float(bins_covered(pool, rows).mean()),
        "median length": lengths.median,
        "longer than pool": lengths.longer,
    }

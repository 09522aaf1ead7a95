"""Which known factors of the world a basis carries: chosen on some examples, measured on others, and held against
shuffled factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from core.usefulness.association import area_under_curve

FOLDS, SHUFFLES, BINS = 5, 200, 5
BINARY = ("style", "check", "plan", "correct")
GROUPED = ("operation", "steps", "difficulty", "source", "length")
UNCHECKED = "correct, unchecked"
"""Whether a solution is right, among those that check nothing: `correct` hangs on `check` by construction, so a
direction that tells the habit tells it, too."""
FACTORS = (*BINARY, UNCHECKED, *GROUPED)


@dataclass(frozen=True)
class Carried:
    """How well one direction tells a factor. `value`: cross-validated, of the direction that is best on the other
    folds: AUC of a factor of two values, else the share of the score's variance between the factor's groups (eta
    squared); `low` and `high`: its 95% interval over the folds. `null`: 95th percentile of the same over shuffled
    factors; `p`: share of them that reach `value`.
    by_direction (k,): over all examples, nothing chosen; beyond (k,): whether it is beyond the 95th percentile of
    the best direction over shuffled factors; direction: the best of these, from 1; sign: the end that has the
    second of a factor's two sorted values. together: the cross-validated AUC of the combination of all directions
    that best tells a factor of two values (Fisher's linear discriminant)."""

    factor: str
    measure: str
    value: float
    low: float
    high: float
    null: float
    p: float
    direction: int
    sign: int
    by_direction: np.ndarray
    beyond: np.ndarray
    together: float | None


def carried(scores: np.ndarray, factors: pd.DataFrame, seed: int = 0) -> list[Carried]:
    """Every one of FACTORS against scores (n, k) of the same examples."""
    alone = ~factors["check"].to_numpy(dtype=bool)
    found = {name: _carried(scores, name, factors[name], seed) for name in (*BINARY, *GROUPED)}
    unchecked = _carried(scores[alone], "correct", factors["correct"][alone], seed)
    found[UNCHECKED] = replace(unchecked, factor=UNCHECKED)
    return [found[name] for name in FACTORS]


def _carried(scores: np.ndarray, name: str, values: pd.Series, seed: int) -> Carried:
    from scipy.stats import t

    rng = np.random.default_rng(seed)
    is_binary = name in BINARY
    codes = codes_of(values)
    folds = rng.permutation(len(codes)) % FOLDS
    measure = partial(_held_out_auc if is_binary else _held_out_eta, _split(scores, folds), folds)
    by_fold = measure(codes)
    value = float(by_fold.mean())
    half = float(t.ppf(0.975, FOLDS - 1) * by_fold.std(ddof=1) / np.sqrt(FOLDS))
    shuffled = np.array([measure(rng.permutation(codes)).mean() for _ in range(SHUFFLES)])
    ranks = _ranks(scores)

    def told(codes: np.ndarray) -> np.ndarray:
        return area_under_curve(ranks, codes == 1) if is_binary else eta_squared(scores, codes)

    by_direction, nothing = told(codes), 0.5 if is_binary else 0.0
    strength = np.abs(by_direction - nothing)
    by_chance = [np.abs(told(rng.permutation(codes)) - nothing).max() for _ in range(SHUFFLES)]
    best = int(strength.argmax())
    return Carried(
        name,
        "AUC" if is_binary else "eta squared",
        value,
        value - half,
        value + half,
        float(np.quantile(shuffled, 0.95)),
        float((1 + (shuffled >= value).sum()) / (1 + SHUFFLES)),
        best + 1,
        1 if not is_binary or by_direction[best] > 0.5 else -1,
        by_direction,
        strength > np.quantile(by_chance, 0.95),
        _told_together(scores, codes, folds) if is_binary else None,
    )


def _told_together(scores: np.ndarray, codes: np.ndarray, folds: np.ndarray) -> float:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    model, split = LinearDiscriminantAnalysis(), PredefinedSplit(folds)
    combined = cross_val_predict(model, scores, codes, cv=split, method="decision_function")
    return float(area_under_curve(_ranks(combined[:, None]), codes == 1)[0])


def codes_of(values: pd.Series) -> np.ndarray:
    """(n,) the number of each value among the sorted ones; numbers of many values in BINS bins of equal count."""
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 2 * BINS:
        return pd.qcut(values, BINS, labels=False, duplicates="drop").to_numpy()
    return pd.factorize(values, sort=True)[0]


Split = list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def _split(scores: np.ndarray, folds: np.ndarray) -> Split:
    """Per fold: scores outside and inside it, and their ranks."""
    parts = [(scores[folds != f], scores[folds == f]) for f in range(FOLDS)]
    return [(outside, inside, _ranks(outside), _ranks(inside)) for outside, inside in parts]


def _ranks(scores: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(scores, axis=0)


def eta_squared(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(k,) share of each column's variance that lies between the groups."""
    centred = scores - scores.mean(axis=0)
    sizes = np.bincount(codes)
    means = np.stack([np.bincount(codes, column) for column in centred.T], axis=1) / sizes[:, None]
    return (sizes[:, None] * means**2).sum(axis=0) / (centred**2).sum(axis=0)


def _held_out_auc(split: Split, folds: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(FOLDS,)"""
    found = []
    for fold, (_, _, outside, inside) in enumerate(split):
        chosen = area_under_curve(outside, codes[folds != fold] == 1) - 0.5
        best = int(np.abs(chosen).argmax())
        area = area_under_curve(inside[:, [best]], codes[folds == fold] == 1)[0]
        found.append(area if chosen[best] > 0 else 1 - area)
    return np.array(found)


def _held_out_eta(split: Split, folds: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(FOLDS,) the share of the inner scores' variance that the groups' outer means predict; below 0 where they
    mislead."""
    found = []
    for fold, (outside, inside, _, _) in enumerate(split):
        known, asked = codes[folds != fold], codes[folds == fold]
        best = int(eta_squared(outside, known).argmax())
        sizes = np.maximum(np.bincount(known, minlength=codes.max() + 1), 1)
        means = np.bincount(known, outside[:, best], minlength=codes.max() + 1) / sizes
        scores = inside[:, best]
        rest = ((scores - means[asked]) ** 2).sum() / ((scores - outside[:, best].mean()) ** 2).sum()
        found.append(1 - rest)
    return np.array(found)

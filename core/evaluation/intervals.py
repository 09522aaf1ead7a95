"""Estimates with their 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4_000
CHUNK = 500


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval over n cases; not a number where there are too few."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean and its t interval; values that are not numbers are left out."""
    from scipy.stats import t

    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2:
        return Interval(float(kept.mean()) if len(kept) else float("nan"), float("nan"), float("nan"), len(kept))
    half = float(t.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / np.sqrt(len(kept)))
    return Interval(float(kept.mean()), float(kept.mean()) - half, float(kept.mean()) + half, len(kept))


def correlation_interval(r: float, n: int) -> Interval:
    """Pearson's correlation of n pairs and its interval by Fisher's transformation."""
    if n < 4:
        return Interval(r, float("nan"), float("nan"), n)
    z, half = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), 1.96 / np.sqrt(n - 3)
    return Interval(r, float(np.tanh(z - half)), float(np.tanh(z + half)), n)


def share_interval(hits: Sequence[bool]) -> Interval:
    """A share and its Wilson score interval."""
    from scipy.stats import binomtest

    if not len(hits):
        return Interval(float("nan"), 0.0, 1.0, 0)
    interval = binomtest(int(sum(hits)), len(hits)).proportion_ci(method="wilson")
    return Interval(sum(hits) / len(hits), float(interval.low), float(interval.high), len(hits))


def mean_share_interval(shares: np.ndarray) -> Interval:
    """The mean of n shares, each from 0 to 1, and Wilson's interval for as many cases as would be as sure of it
    (Korn and Graubard 1998), by Student's t.

    One more case that is all or nothing is counted when their variance is compared with that of all or nothing:
    where few shares differ, their own variance says too little. Where none does, it is Wilson's of the cases.
    """
    from scipy.stats import t

    shares = np.asarray(shares, dtype=np.float64)
    n, mean = len(shares), float(shares.mean()) if len(shares) else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    mean = min(1.0, max(0.0, mean))
    within, whole = float(((shares - mean) ** 2).sum()), n * mean * (1 - mean)
    spread = float(t.ppf(0.975, n - 1)) ** 2 * (within + 1) / (whole + 1) / n
    middle = (mean + spread / 2) / (1 + spread)
    half = np.sqrt(spread * mean * (1 - mean) + spread**2 / 4) / (1 + spread)
    return Interval(mean, float(min(mean, middle - half)), float(max(mean, middle + half)), n)


def difference_interval(differences: np.ndarray) -> Interval:
    """The mean of n differences, each from -1 to 1, and its t interval with two more cases, one up and one down
    (Bonett and Price 2012), which are as large as the differences are, and 1 where there are none."""
    from scipy.stats import t

    differences = np.asarray(differences, dtype=np.float64)
    n, mean = len(differences), float(differences.mean()) if len(differences) else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    size = ((differences**2).sum() + 1) / (np.abs(differences).sum() + 1)
    added = np.append(differences, [size, -size])
    half = t.ppf(0.975, n - 1) * added.std(ddof=1) / np.sqrt(n + 2)
    low, high = np.clip([added.mean() - half, added.mean() + half], -1, 1).tolist()
    return Interval(mean, min(mean, low), max(mean, high), n)


def bootstrap_intervals(
    values: np.ndarray, weights: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """For each column of values (n, m) its sum over n cases by that of the weights (n, m), 1 each without them:
    a mean, or a ratio. The cases are resampled; percentiles are set outward for small n, where plain ones cover
    too little (Hesterberg 2015, the expanded percentile interval)."""
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    n = len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimates = values.sum(axis=0) / weights.sum(axis=0)
        if n < 2:
            return [Interval(float(value), float("nan"), float("nan"), n) for value in estimates]
        drawn = [counts @ values / (counts @ weights) for counts in _resampled(n, resamples, seed)]
    tail = expanded_tail(n)
    low, high = np.nanquantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    ends = zip(estimates.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Interval(value, below, above, n) for value, below, above in ends]


def expanded_tail(n: int) -> float:
    """The share of resamples beyond either end of a 95% interval over n cases: 2.5% for many, less for few."""
    from scipy.stats import norm, t

    return float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1)))


def _resampled(n: int, resamples: int, seed: int) -> list[np.ndarray]:
    """(resamples, n) in chunks: how often each case is drawn."""
    rng = np.random.default_rng(seed)
    sizes = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    return [rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64) for size in sizes]

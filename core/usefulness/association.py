"""How scores go with verdicts: correlation and area under the ROC curve, with intervals that know of problems.

Traces of one problem are not independent. Every interval here is over problems: of a correlation by the
jackknife that leaves one problem out at a time, on Fisher's scale; of an area by the variance of its placements
summed within problems (Obuchowski 1997; with one trace a problem that is DeLong et al. 1988), on the logit scale,
by Student's t with Satterthwaite's degrees of freedom of the right and the wrong, of which either may be few.
docs/statistics.md has what the intervals cover in simulations.
Where right and wrong do not overlap at all, that variance is 0 and says nothing: there an area has Newcombe's
score interval, and within problems Wilson's for the problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from core.evaluation import Interval
from core.evaluation.intervals import mean_share_interval

RANK = 1e-9
LEAST_PROBLEMS = 3
PERMUTED_AT_ONCE = 64


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, and the p-value of none."""

    interval: Interval
    p: float


@dataclass(frozen=True)
class Apart:
    """What is known of an area of 1: its 95% interval's lower end, and the p-value of none. Of 0, mirrored."""

    low: float
    p: float


def none_of(n: int) -> Estimate:
    return Estimate(Interval(math.nan, math.nan, math.nan, n), math.nan)


def within_problem(values: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """Differences of the rows from their problem's mean. values (n,) or (n, c); problem: (n,) codes from 0."""
    if not values.size:
        return values.astype(np.float64)
    columns = values.reshape(len(values), -1).astype(np.float64)
    counts = np.maximum(np.bincount(problem), 1)
    means = np.stack([np.bincount(problem, column) for column in columns.T], axis=1) / counts[:, None]
    return (columns - means[problem]).reshape(values.shape)


def orthonormal(controls: np.ndarray) -> np.ndarray:
    """(n, r) orthonormal columns that span the controls (n, c), without those that the others give."""
    scale = np.linalg.norm(controls, axis=0)
    kept = controls[:, scale > 0] / scale[scale > 0]
    if kept.shape[1] == 0:
        return np.zeros((len(controls), 0))
    left, values, _ = np.linalg.svd(kept, full_matrices=False)
    return np.ascontiguousarray(left[:, values > RANK * values[0]])


def residuals(values: np.ndarray, span: np.ndarray) -> np.ndarray:
    """What orthonormal columns (n, r) leave of values (n, k)."""
    return values - span @ (span.T @ values)


def with_intercept(controls: np.ndarray) -> np.ndarray:
    """(n, c + 1) a constant and the controls."""
    return np.column_stack([np.ones(len(controls)), controls - controls.mean(axis=0)])


def correlations(scores: np.ndarray, right: np.ndarray, span: np.ndarray, problem: np.ndarray) -> list[Estimate]:
    """Partial correlation of each column of scores (n, k) with right (n,), given the orthonormal columns `span`
    (n, r), which hold the constant where there is one. Columns without variance give no number."""
    from scipy.stats import t

    targets = residuals(np.column_stack([scores, right]).astype(np.float64), span)
    squares = (targets**2).sum(axis=0)
    size = (np.column_stack([scores, right]).astype(np.float64) ** 2).sum(axis=0)
    varies = squares > RANK * np.maximum(size, 1e-300)
    targets = targets / np.where(varies, np.sqrt(np.maximum(squares, 1e-300)), 1.0)
    sums = _Sums.of(targets, span, problem)
    whole, parts = sums.correlations(left_out=False)[0], sums.correlations(left_out=True)
    problems = len(parts)
    found = []
    for j, r in enumerate(whole):
        if not (varies[j] and varies[-1]) or problems < LEAST_PROBLEMS:
            found.append(none_of(len(right)))
            continue
        z = math.atanh(float(np.clip(r, -1 + 1e-12, 1 - 1e-12)))
        others = np.arctanh(np.clip(parts[:, j], -1 + 1e-12, 1 - 1e-12))
        squares = (others - others.mean()) ** 2
        error = math.sqrt((problems - 1) / problems * float(squares.sum()))
        freedom = _freedom(squares)
        half = float(t.ppf(0.975, freedom)) * error
        interval = Interval(float(r), math.tanh(z - half), math.tanh(z + half), len(right))
        p = 2 * float(t.sf(abs(z) / error, freedom)) if error > 0 else math.nan
        found.append(Estimate(interval, p))
    return found


def _freedom(squares: np.ndarray) -> float:
    """Degrees of freedom of a sum of n squared deviations by its own variance, as Satterthwaite's: n - 1 at most,
    and few where few of the deviations make up the sum."""
    n, total = len(squares), float(squares.sum())
    spread = float((squares**2).sum()) - total**2 / n
    return float(np.clip(2 * total**2 / spread, 1, n - 1)) if spread > 0 else n - 1.0


@dataclass(frozen=True)
class _Sums:
    """Products of targets (the scores, then the verdict) and controls, summed within each problem."""

    squares: np.ndarray
    crosses: np.ndarray
    outer: np.ndarray
    inner: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray, span: np.ndarray, problem: np.ndarray) -> _Sums:
        order = np.argsort(problem, kind="stable")
        starts = np.flatnonzero(np.diff(problem[order], prepend=-1))
        a, b = targets[order], span[order]

        def summed(products: np.ndarray) -> np.ndarray:
            return np.asarray(np.add.reduceat(products, starts, axis=0))

        return cls(
            summed(a**2),
            summed(a[:, :-1] * a[:, -1:]),
            summed(b[:, :, None] * b[:, None, :]),
            summed(b[:, :, None] * a[:, None, :]),
        )

    def correlations(self, left_out: bool) -> np.ndarray:
        """(problems, k) with one problem left out, or (1, k) of all."""
        squares, crosses, outer, inner = (
            part.sum(axis=0, keepdims=True) - (part if left_out else 0)
            for part in (self.squares, self.crosses, self.outer, self.inner)
        )
        if outer.shape[1]:
            explained = np.linalg.solve(outer + RANK * np.eye(outer.shape[1]), inner)
            squares = squares - (inner * explained).sum(axis=1)
            crosses = crosses - (inner[:, :, :-1] * explained[:, :, -1:]).sum(axis=1)
        scale = np.sqrt(np.maximum(squares[:, :-1] * squares[:, -1:], 1e-300))
        return np.asarray(crosses / scale)


# --- areas under the curve ------------------------------------------------------------------------------


def average_ranks(scores: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """(n, k) ranks from 1, of ties their mean, within each group (n,) of codes where given."""
    from scipy.stats import rankdata

    if group is None:
        return np.asarray(rankdata(scores, axis=0))
    dense = rankdata(scores, method="dense", axis=0)
    keyed = rankdata(group[:, None] * (len(scores) + 1.0) + dense, axis=0)
    counts = np.bincount(group)
    before = np.cumsum(counts) - counts
    return np.asarray(keyed - before[group][:, None])


def area_under_curve(ranks: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(k,) areas under the ROC curve from ranks (n, k), by the rank-sum identity (Hanley and McNeil 1982)."""
    hits, n = int(positive.sum()), len(positive)
    return (ranks[positive].sum(axis=0) - hits * (hits + 1) / 2) / (hits * (n - hits))


def areas(scores: np.ndarray, right: np.ndarray, problem: np.ndarray) -> list[Estimate]:
    """Area under the ROC curve of each column of scores (n, k) against right (n,) bool. Without an interval where
    all the right or all the wrong ones are of one problem, whose spread cannot be known."""
    if len(np.unique(problem)) < LEAST_PROBLEMS:
        return [none_of(len(right))] * scores.shape[1]
    hits, misses = int(right.sum()), int((~right).sum())
    ranks, apart = average_ranks(scores), np.empty(scores.shape)
    for side in (right, ~right):
        apart[side] = average_ranks(scores[side])
    value = area_under_curve(ranks, right)
    share = (ranks - apart) / np.where(right, misses, hits)[:, None]
    placements = np.where(right[:, None], (share - value) / hits, (1 - share - value) / misses)
    of_right, of_wrong = (_by_problem(placements * side[:, None], problem) for side in (right, ~right))
    n_right, n_wrong = len(np.unique(problem[right])), len(np.unique(problem[~right]))
    error, freedom = _two_sample_error(of_right, of_wrong, n_right, n_wrong, len(np.unique(problem)))
    return _area_estimates(value, error, freedom, len(right), apart_across(max(1, n_right), max(1, n_wrong)))


def _by_problem(values: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """(problems, k) sums of values (n, k)."""
    return np.stack([np.bincount(problem, column) for column in values.T], axis=1)


def _two_sample_error(
    of_right: np.ndarray, of_wrong: np.ndarray, n_right: int, n_wrong: int, problems: int
) -> tuple[np.ndarray, np.ndarray]:
    """(k,) standard errors and their degrees of freedom, from the problems' parts (problems, k) in the error that
    the right and the wrong traces make; n_right, n_wrong: how many problems have such. Not a number where one
    problem has them all."""
    if min(n_right, n_wrong) < 2:
        nothing = np.full(of_right.shape[1], np.nan)
        return nothing, nothing
    first = n_right / (n_right - 1) * (of_right**2).sum(axis=0)
    second = n_wrong / (n_wrong - 1) * (of_wrong**2).sum(axis=0)
    shared = problems / (problems - 1) * (of_right * of_wrong).sum(axis=0)
    known = np.maximum(first**2 / (n_right - 1) + second**2 / (n_wrong - 1), 1e-300)
    freedom = np.clip((first + second) ** 2 / known, 1, problems - 1)
    return np.sqrt(first + second + 2 * shared), freedom


def areas_within(scores: np.ndarray, right: np.ndarray, problem: np.ndarray) -> list[Estimate]:
    """The share of (right, wrong) pairs of one problem in which the right one has the higher score, for each
    column of scores (n, k); ties count half."""
    sums, pairs = _won_pairs(average_ranks(scores, problem), right, problem)
    mixed = pairs > 0
    value = sums.sum(axis=0) / pairs.sum()
    influence = (sums - value * pairs[:, None])[mixed] / pairs.sum()
    problems = len(influence)
    if problems < LEAST_PROBLEMS:
        return [none_of(len(right))] * scores.shape[1]
    error = np.sqrt(problems / (problems - 1) * (influence**2).sum(axis=0))
    return _area_estimates(value, error, np.full(len(error), problems - 1.0), len(right), apart_within(problems))


def area_within_values(ranks: np.ndarray, right: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """(k,) the values of `areas_within` alone, from ranks within problems."""
    sums, pairs = _won_pairs(ranks, right, problem)
    return np.asarray(sums.sum(axis=0) / pairs.sum())


def _won_pairs(ranks: np.ndarray, right: np.ndarray, problem: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per problem: (problems, k) pairs that the right ones win, and (problems,) pairs."""
    hits, all_of = np.bincount(problem, right), np.bincount(problem)
    columns = [np.bincount(problem[right], column, minlength=len(all_of)) for column in ranks[right].T]
    return np.stack(columns, axis=1) - (hits * (hits + 1) / 2)[:, None], hits * (all_of - hits)


def apart_across(with_right: int, with_wrong: int) -> Apart:
    """The bound below an area of 1, by Newcombe (2006, his method 5): the smallest area from which 1 is no further
    than 1.96 of the standard errors that Hanley and McNeil (1982) give it. p: of chance separating all.
    Counted are problems, not traces: how alike the traces of one are cannot be seen where all are separated."""
    from scipy.optimize import brentq
    from scipy.special import binom

    middle = (with_right + with_wrong) / 2 - 1

    def beyond(area: float) -> float:
        """How far 1 is from the area, less 1.96 standard errors of it."""
        shape = 1 + middle * (1 - area) / (2 - area) + middle * area / (1 + area)
        return (1 - area) - 1.96 * math.sqrt(area * (1 - area) * shape / (with_right * with_wrong))

    low = float(brentq(beyond, 0.0, 1 - 1e-12))
    return Apart(low, min(1.0, 2 / float(binom(with_right + with_wrong, with_right))))


def apart_within(problems: int) -> Apart:
    """The same where every pair of each of so many problems is in order: Wilson's bound, and p by signs."""
    return Apart(mean_share_interval(np.ones(problems)).low, min(1.0, 2 * 0.5**problems))


def _area_estimates(
    value: np.ndarray, errors: np.ndarray, freedom: np.ndarray, n: int, apart: Apart
) -> list[Estimate]:
    """Estimates from each area's standard error and its degrees of freedom; `apart` for areas of 1 and 0. Without
    an error there is no estimate."""
    from scipy.stats import t

    found = []
    for area, error, degrees in zip(value.tolist(), errors.tolist(), freedom.tolist(), strict=True):
        if area in (0, 1):
            low, high = (apart.low, 1.0) if area >= 1 else (0.0, 1 - apart.low)
            found.append(Estimate(Interval(area, low, high, n), apart.p))
            continue
        if not error > 0:
            found.append(Estimate(Interval(area, math.nan, math.nan, n), math.nan))
            continue
        logit = math.log(area / (1 - area))
        half = float(t.ppf(0.975, degrees)) * error / (area * (1 - area))
        low, high = (1 / (1 + math.exp(-(logit + side * half))) for side in (-1, 1))
        p = 2 * float(t.sf(abs(area - 0.5) / error, degrees))
        found.append(Estimate(Interval(area, low, high, n), p))
    return found


def shuffled(right: np.ndarray, problem: np.ndarray, times: int, seed: int) -> Iterator[np.ndarray]:
    """(m, n) verdicts shuffled within their problems, a few shuffles at a time, `times` in all."""
    rng = np.random.default_rng(seed)
    order = np.argsort(problem, kind="stable")
    done = 0
    while done < times:
        m = min(PERMUTED_AT_ONCE, times - done)
        keys = problem + rng.random((m, len(problem)))
        found = np.empty((m, len(right)), dtype=bool)
        found[:, order] = right[np.argsort(keys, axis=1)]
        yield found
        done += m

"""Pass@k with intervals, and what a variant changes, problem by problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.evaluation.intervals import Interval, bootstrap_intervals, difference_interval, mean_share_interval
from core.evaluation.rollouts import UNSTEERED, Rollout

FLIPS = 10_000
EXACT_FLIPS = 12
"""Up to so many problems that differ, every way of flipping their signs is counted."""


def pass_at_k(right: np.ndarray, n: np.ndarray | int, k: int) -> np.ndarray:
    """The unbiased estimate of Pass@k for each problem, 1 - C(n - right, k) / C(n, k) (Chen et al. 2021), not a
    number where n < k.

    >>> pass_at_k(np.array([0, 1, 4]), 4, 2).tolist()
    [0.0, 0.5, 1.0]
    """
    right, n = np.broadcast_arrays(np.asarray(right, dtype=np.float64), np.asarray(n, dtype=np.float64))
    wrong, steps = n - right, np.arange(k)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (wrong[..., None] - steps) / (n[..., None] - steps)
    found = 1 - np.clip(shares, 0, None).prod(axis=-1)
    return np.where(n < k, np.nan, found)


def usual_k(r: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to r, and r itself.

    >>> usual_k(6)
    (1, 2, 4, 6)
    """
    return tuple(sorted({*(2**i for i in range(r.bit_length()) if 2**i <= r), r}))


@dataclass(frozen=True)
class Tally:
    """How many of a variant's rollouts were right: problem_ids, right and n, all (problems,), by problem id."""

    problem_ids: np.ndarray
    right: np.ndarray
    n: np.ndarray

    @classmethod
    def of(cls, rollouts: Iterable[Rollout]) -> Tally:
        """A rollout that could not be verified is not right."""
        counts: dict[int, list[int]] = {}
        for rollout in rollouts:
            count = counts.setdefault(rollout.problem_id, [0, 0])
            count[0] += rollout.right is True
            count[1] += 1
        ids = np.array(sorted(counts), dtype=np.int64)
        both = np.array([counts[i] for i in ids.tolist()], dtype=np.int64).reshape(-1, 2)
        return cls(ids, both[:, 0], both[:, 1])

    def pass_at(self, k: int) -> np.ndarray:
        """(problems,) Pass@k of each problem."""
        return pass_at_k(self.right, self.n, k)

    @property
    def least(self) -> int:
        """The rollouts that every problem has at least."""
        return int(self.n.min()) if len(self.n) else 0


@dataclass(frozen=True)
class VariantResult:
    """What one variant did. Intervals are over problems: Wilson's for Pass@k, else by bootstrap.

    pass_at: k -> Pass@k
    logprob, logprob_right: mean log-probability per token of all texts, and of the right ones
    cut, unverified: how many rollouts reached the token limit, could not be verified
    notes: what is wrong with texts, in words -> how many have it
    """

    variant: str
    pass_at: dict[int, Interval]
    logprob: Interval
    logprob_right: Interval
    tokens: Interval
    rollouts: int
    right: int
    cut: int
    cut_right: int
    unverified: int
    notes: dict[str, int]


def variant_result(variant: str, rollouts: Sequence[Rollout], seed: int = 0) -> VariantResult:
    """The estimates over one variant's rollouts, k up to what every problem has."""
    tally = Tally.of(rollouts)
    every = usual_k(tally.least) if tally.least else ()
    known = [(one, one.logprob) for one in rollouts if one.logprob is not None]
    return VariantResult(
        variant,
        pass_at_intervals(tally, every),
        _mean_by_problem([(one.problem_id, logprob) for one, logprob in known], seed),
        _mean_by_problem([(one.problem_id, logprob) for one, logprob in known if one.right], seed),
        _mean_by_problem([(one.problem_id, one.n_tokens) for one in rollouts if one.n_tokens is not None], seed),
        rollouts=len(rollouts),
        right=sum(one.right is True for one in rollouts),
        cut=sum(one.cut for one in rollouts),
        cut_right=sum(one.cut and one.right is True for one in rollouts),
        unverified=sum(one.right is None for one in rollouts),
        notes=dict(Counter(one.note for one in rollouts if one.note).most_common()),
    )


def pass_at_intervals(tally: Tally, every_k: Sequence[int]) -> dict[int, Interval]:
    """k -> Pass@k with its interval over problems."""
    return {k: mean_share_interval(tally.pass_at(k)) for k in every_k if len(tally.n)}


def _mean_by_problem(pairs: Sequence[tuple[int, float]], seed: int) -> Interval:
    """The mean over rollouts, resampled by problem."""
    if not pairs:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    ids, places = np.unique([problem_id for problem_id, _ in pairs], return_inverse=True)
    sums = np.bincount(places, weights=[value for _, value in pairs], minlength=len(ids))
    (found,) = bootstrap_intervals(sums[:, None], np.bincount(places, minlength=len(ids))[:, None], seed=seed)
    return found


@dataclass(frozen=True)
class Difference:
    """A variant's Pass@k less the baseline's, paired by problem. p: by flipping the signs of the problems'
    differences; better, worse: how many problems have more, or fewer, right rollouts."""

    variant: str
    baseline: str
    k: int
    difference: Interval
    p: float
    better: int
    worse: int


def paired_difference(
    variant: str, rollouts: Sequence[Rollout], baseline: Sequence[Rollout], k: int, seed: int = 0
) -> Difference:
    """Over the problems that have at least k rollouts on both sides."""
    name = baseline[0].variant if baseline else UNSTEERED
    differences = problem_differences(Tally.of(rollouts), Tally.of(baseline), k)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Difference(
        variant, name, k, difference_interval(differences), sign_flip_p(differences, seed), better, worse
    )


def problem_differences(a: Tally, b: Tally, k: int) -> np.ndarray:
    """(problems,) Pass@k of a less that of b, for the problems that both have k rollouts of."""
    _, of_a, of_b = np.intersect1d(a.problem_ids, b.problem_ids, return_indices=True)
    found = a.pass_at(k)[of_a] - b.pass_at(k)[of_b]
    return found[np.isfinite(found)]


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of the mean under flips of the problems' signs: exact for up to EXACT_FLIPS problems
    that differ, else by FLIPS random ones."""
    moved = np.asarray(differences, dtype=np.float64)
    moved = moved[moved != 0]
    if not len(moved):
        return 1.0
    limit = abs(moved.sum()) - 1e-9
    if len(moved) <= EXACT_FLIPS:
        signs = 1 - 2 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1)
        return float((np.abs(signs @ moved) >= limit).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(FLIPS, len(moved)))
    return float((1 + (np.abs(signs @ moved) >= limit).sum()) / (1 + FLIPS))


@dataclass(frozen=True)
class Result:
    """All variants of an evaluation, the unsteered first, and the others' differences from it at each k."""

    variants: tuple[VariantResult, ...]
    differences: tuple[Difference, ...]

    @classmethod
    def of(cls, rollouts: Iterable[Rollout], seed: int = 0) -> Result:
        """From the rollouts of one evaluation, complete or under way."""
        by_variant: dict[str, list[Rollout]] = {}
        for rollout in rollouts:
            by_variant.setdefault(rollout.variant, []).append(rollout)
        names = sorted(by_variant, key=lambda name: name != UNSTEERED)
        found = [variant_result(name, by_variant[name], seed) for name in names]
        baseline = by_variant.get(UNSTEERED, [])
        differences = [
            paired_difference(one.variant, by_variant[one.variant], baseline, k, seed)
            for one in found
            if baseline and one.variant != UNSTEERED
            for k in one.pass_at
        ]
        return cls(tuple(found), tuple(differences))

    def as_dict(self) -> dict[str, Any]:
        return {
            "variants": [_named(one) for one in self.variants],
            "differences": [_named(one) for one in self.differences],
        }


def _named(one: VariantResult | Difference) -> dict[str, Any]:
    """As JSON holds it: text as keys, nothing for what is not a number."""
    return {str(key): _plain(value) for key, value in asdict(one).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value

"""Coverage order against the NumPy loop of the published notebook and fpsample, and rank selection of ten million
scores. The points are made up: Student's t with four degrees of freedom, heavy-tailed as whitened scores are.

The rivals run to RIVAL_BUDGET picks, as each of their picks costs the same, and are multiplied up; the indices of
these are compared one by one. fpsample works in float32 and starts where it is told to.
"""

from __future__ import annotations

import gc
import time

import numpy as np

from bench.measure import machine, private_peak, show, spread
from core.selection.farthest import farthest_points

K, BUDGET, RIVAL_BUDGET, SCORES = 25, 1_000, 50, 10_000_000


def main(quick: bool) -> None:
    """Print the figures; quick: small sets once."""
    sizes, rounds = ((5_000,), 1) if quick else ((100_000, 1_000_000), 3)
    farthest_points(points_of(600), 20)  # compiled before anything is timed
    print(f"selection: farthest points of n x {K} float32 to {BUDGET:,}; {rounds} rounds, median (min to max)")
    print(f"  {machine()}", flush=True)
    rows = []
    for n in sizes:
        rows += measure(n, rounds)
    show(["", "seconds", "times ours", "same indices", "peak private MB"], rows)
    rank(SCORES // 100 if quick else SCORES, rounds)


def points_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, (n, K)).astype(np.float32)


def measure(n: int, rounds: int) -> list[list[str]]:
    import fpsample

    points = points_of(n)
    contenders = {
        "ours": (lambda: farthest_points(points, BUDGET).rows, 1.0),
        "NumPy loop": (lambda: numpy_loop(points, RIVAL_BUDGET), BUDGET / RIVAL_BUDGET),
        "fpsample": (
            lambda: fpsample.fps_sampling(points, RIVAL_BUDGET, start_idx=first(points)),
            BUDGET / RIVAL_BUDGET,
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    memory: dict[str, list[float]] = {name: [] for name in contenders}
    chosen: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for name, (run, factor) in contenders.items():
            gc.collect()
            with private_peak(memory[name]):
                start = time.perf_counter()
                chosen[name] = np.asarray(run(), dtype=np.int64)
                seconds[name].append(factor * (time.perf_counter() - start))
    own = np.array(seconds["ours"])
    rows = []
    for name, times in seconds.items():
        shared = min(len(chosen[name]), len(chosen["ours"]))
        same = int((chosen[name][:shared] == chosen["ours"][:shared]).sum())
        row = [f"{name}, n = {n:,}", spread(times), spread(np.array(times) / own, 1)]
        rows.append([*row, f"{same} of {shared}", f"{max(memory[name]):,.0f}"])
    return rows


def first(points: np.ndarray) -> int:
    return int(np.argmax(((points - points.mean(axis=0, dtype=np.float64)) ** 2).sum(axis=1)))


def numpy_loop(points: np.ndarray, budget: int) -> list[int]:
    """As published: one NumPy pass per pick, in the precision of the points."""
    chosen = [first(points)]
    nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < budget:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def rank(n: int, rounds: int) -> None:
    from core.reading import rank_examples

    scores = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    seconds, memory = [], []
    for _ in range(rounds):
        with private_peak(memory):
            start = time.perf_counter()
            rank_examples(scores, -1, BUDGET)
            seconds.append(time.perf_counter() - start)
    print(f"rank selection of {n:,} scores: {spread(seconds)} s, peak private memory {max(memory):,.0f} MB")

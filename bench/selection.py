"""Coverage order against the NumPy loop of the published notebook and fpsample, and rank selection of ten million
scores. The points are made up: Student's t with four degrees of freedom, heavy-tailed as whitened scores are.

The rivals run to RIVAL_BUDGET picks, as each of their picks costs the same, and are multiplied up; the indices of
these are compared one by one. fpsample works in float32 and starts where it is told to. Memory is what a process
of its own needs beyond the points.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable

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


def contenders(points: np.ndarray) -> dict[str, tuple[Callable[[int], object], int]]:
    """Name -> what takes a budget, and the budget that it is run to."""
    import fpsample

    return {
        "ours": (lambda budget: farthest_points(points, budget).rows, BUDGET),
        "NumPy loop": (lambda budget: numpy_loop(points, budget), RIVAL_BUDGET),
        "fpsample": (lambda budget: fpsample.fps_sampling(points, budget, start_idx=first(points)), RIVAL_BUDGET),
    }


def measure(n: int, rounds: int) -> list[list[str]]:
    running = contenders(points_of(n))
    seconds: dict[str, list[float]] = {name: [] for name in running}
    chosen: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for name, (run, budget) in running.items():
            gc.collect()
            start = time.perf_counter()
            chosen[name] = np.asarray(run(budget), dtype=np.int64)
            seconds[name].append(BUDGET / budget * (time.perf_counter() - start))
    own = np.array(seconds["ours"])
    rows = []
    for name, times in seconds.items():
        shared = min(len(chosen[name]), len(chosen["ours"]))
        same = int((chosen[name][:shared] == chosen["ours"][:shared]).sum())
        row = [f"{name}, n = {n:,}", spread(times), spread(np.array(times) / own, 1)]
        rows.append([*row, f"{same} of {shared}", f"{peak_alone(name, n, running[name][1]):,.0f}"])
    few = f"{peak_alone('ours', n, BUDGET // 10):,.0f}"
    return [*rows, [f"ours to {BUDGET // 10:,}, n = {n:,}", "", "", "", few]]


def peak_alone(name: str, n: int, budget: int) -> float:
    """By how many MB the private memory of a process of its own rises at most while the contender runs."""
    command = [sys.executable, "-m", "bench.selection", name, str(n), str(budget)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(name: str, n: int, budget: int) -> float:
    farthest_points(points_of(600), 20)
    run = contenders(points_of(n))[name][0]
    found: list[float] = []
    gc.collect()
    with private_peak(found):
        run(budget)
    return float(found[0])


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


if __name__ == "__main__":
    print(peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

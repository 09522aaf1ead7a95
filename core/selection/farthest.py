"""Farthest-point sampling as an order of the examples, and what a budget of it covers."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from core.activations import Progress, silent

PICKS = 200
"""Picks between two reports of progress."""
CHUNK = 8_192
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """Rows (b,), the best first; reach (b,): each one's distance to those before it (the first: infinite), which
    is the covering radius of those before it where nothing but distance decided."""

    rows: np.ndarray
    reach: np.ndarray


def farthest_points(
    points: np.ndarray,
    budget: int,
    *,
    allowed: np.ndarray | None = None,
    first: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    turns: np.ndarray | None = None,
    progress: Progress = silent,
) -> Order:
    """`budget` rows of points (n, k) float32 by farthest-point sampling (Gonzalez 1985), exact in float64, ties to
    the lower row: from the one farthest from the mean, then always the one farthest from all before it.

    allowed (n,): which may be chosen; first: rows that are chosen already and lead the order; weight (n,):
    multiplies the distances; groups (n,) and turns (budget,): the group that each pick is taken from. Shorter
    than `budget` where rows run out.
    """
    from core.selection.kernels import BLOCK, take_farthest

    n = len(points)
    allowed = np.ones(n, dtype=bool) if allowed is None else allowed
    seeds = np.zeros(0, dtype=np.int64) if first is None else np.asarray(first, dtype=np.int64)
    centre = points[allowed].mean(axis=0, dtype=np.float64) if allowed.any() else np.zeros(points.shape[1])
    norms = ((points - centre) ** 2).sum(axis=1)
    codes = np.zeros(n, dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    turn = np.full(budget, -1) if turns is None else np.asarray(turns, dtype=np.int64)
    squared = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64) ** 2
    if not len(seeds):
        able = allowed & ((codes == turn[0]) | (turn[0] < 0)) if budget else allowed
        if not able.any():
            return Order(seeds[:0], np.zeros(0))
        seeds = np.array([int(np.argmax(np.where(able, norms * squared, -1.0)))])
    order = np.lexsort((np.arange(n), -norms, codes))
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    starts, blocks = _blocks(codes[order], BLOCK)
    nearest = np.where(allowed[order], np.inf, -1.0)
    nearest[place[seeds]] = -1.0
    chosen, reach = np.full(max(budget, len(seeds)), -1), np.full(max(budget, len(seeds)), np.inf)
    chosen[: len(seeds)] = place[seeds]
    state = np.zeros((3, len(blocks)))
    state[0], state[1] = np.inf, -1
    columns = np.ascontiguousarray(points[order].T, dtype=np.float32)
    done = len(seeds)
    while done < budget:
        progress("coverage", done, budget)
        stop = min(budget, done + PICKS)
        reached = take_farthest(
            columns, order, squared[order], starts, blocks, turn, nearest, state, chosen, reach, done, stop
        )
        done = reached
        if reached < stop:
            break
    progress("coverage", budget, budget)
    return Order(order[chosen[:done]], np.sqrt(reach[:done]))


def compile_ahead(progress: Progress = silent) -> None:
    """Have numba compile, once on a machine, what a page would otherwise wait for some ten seconds."""
    from core.selection.kernels import gains

    progress("kernels", 0, 1)
    points = np.arange(12, dtype=np.float32).reshape(6, 2)
    farthest_points(points, 3)
    covering_curve(points, np.arange(2))
    nearest_by_group(points, points[:2], np.zeros(2), 1)
    gains(_columns(points), points[:2], np.zeros(6, dtype=np.float32), np.float32(4))
    progress("kernels", 1, 1)


def _blocks(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First rows of blocks of at most `size` rows of one group each, with the end; and each one's group."""
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    starts = [s for a, b in pairwise(edges) for s in range(a, b, size)]
    return np.array([*starts, len(codes)]), codes[starts]


def covering_curve(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(radius, mean), each (b,): the largest and the mean distance of points (n, k) to the nearest of
    rows[: t + 1]."""
    from core.selection.kernels import covering_sums

    columns, centres = _columns(points), np.ascontiguousarray(points[rows], dtype=np.float32)
    parts = _in_threads(len(points), lambda a, b: covering_sums(columns, a, b, centres))
    largest, sums = zip(*parts, strict=True)
    return np.max(largest, axis=0), np.sum(sums, axis=0) / len(points)


def nearest_by_group(points: np.ndarray, centres: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """(n, groups) squared distance of points (n, k) to the nearest of the centres (b, k) of each group (b,),
    infinite where a group has none."""
    from core.selection import kernels

    columns, centres = _columns(points), np.ascontiguousarray(centres, dtype=np.float32)
    found = np.full((len(points), groups), np.inf, dtype=np.float32)
    codes = np.asarray(group, dtype=np.int64)
    _in_threads(len(points), lambda a, b: kernels.nearest_by_group(columns, a, b, centres, codes, found))
    return found


def _columns(points: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(points.T, dtype=np.float32)


def _in_threads(n: int, work: Callable[[int, int], T]) -> list[T]:
    """work(first, last) over CHUNK rows at a time: the parts do not depend on the number of threads, so neither
    does their sum."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda start: work(start, min(start + CHUNK, n)), range(0, n, CHUNK)))


def knee(curve: np.ndarray) -> int:
    """The budget at which a falling curve (b,) bends most: where it lies farthest below the line from its first to
    its last point (Satopaa et al. 2011, "Kneedle")."""
    if len(curve) < 3 or curve[0] == curve[-1]:
        return len(curve)
    x = np.linspace(0, 1, len(curve))
    y = (curve - curve[-1]) / (curve[0] - curve[-1])
    return int(np.argmax(1 - x - y)) + 1

"""The loops over all examples, compiled by numba: farthest points, covering curves, nearest chosen.

Points come as (k, n) float32, a dimension a row, so that one instruction works on several examples. Squared
distances are compared in float64, and no result depends on how the rows are split among threads. Import this
module inside functions: numba takes a second.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK = 256
DOUBT = 1.0 + 1e-4
"""Above the relative error of a squared distance in float32 for any k below a thousand."""
FAST = {"reassoc", "contract", "nsz"}


@njit(cache=True, fastmath=FAST)
def _exact(points, i, centre):  # type: ignore[no-untyped-def]
    total = 0.0
    for dim in range(len(points)):
        difference = np.float64(points[dim, i]) - np.float64(centre[dim])
        total += difference * difference
    return total


@njit(cache=True, fastmath=FAST)
def _any_below(found, limits):  # type: ignore[no-untyped-def]
    below = 0
    for i in range(len(limits)):
        below += found[i] < limits[i]
    return below > 0


@njit(cache=True, fastmath=FAST)
def _distances(points, start, stop, centre, found):  # type: ignore[no-untyped-def]
    """found[: stop - start] = squared float32 distances of these points to `centre` (k,)."""
    found[:] = np.float32(0.0)
    for dim in range(len(points)):
        row, value = points[dim, start:stop], centre[dim]
        for i in range(stop - start):
            difference = row[i] - value
            found[i] += difference * difference


@njit(cache=True)
def _catch_up(points, first, last, nearest, limits, centres, since, until, found):  # type: ignore[no-untyped-def]
    """Bring nearest[first:last] from the picks before `since` to those before `until`: float32 finds the blocks
    with rows that may have come nearer, float64 decides."""
    for t in range(since, until):
        _distances(points, first, last, centres[t], found)
        if _any_below(found, limits[first:last]):
            for i in range(first, last):
                if found[i - first] < limits[i]:
                    distance = _exact(points, i, centres[t])
                    if distance < nearest[i]:
                        nearest[i] = distance
                        limits[i] = distance * DOUBT


@njit(cache=True)
def _best(first, last, weight, nearest, ids):  # type: ignore[no-untyped-def]
    """(value, row) of the largest weight * nearest, -1 where none is left; the lowest id wins a tie."""
    value, row = -1.0, -1
    for i in range(first, last):
        own = nearest[i] * weight[i]
        if nearest[i] >= 0.0 and (own > value or (own == value and ids[i] < ids[row])):
            value, row = own, i
    return value, row


@njit(cache=True, nogil=True)
def take_farthest(points, ids, weight, starts, groups, turns, nearest, state, chosen, reach, start, stop):  # type: ignore[no-untyped-def]
    """Fill chosen[start:stop], each the row whose weight * squared distance to all chosen before it is largest
    among the blocks of the group whose turn it is (-1: any); the lowest id wins a tie. Returns where it stopped:
    at `stop`, or where a group has no row left.

    Distances to the chosen only fall, so what a block's best was is a bound of what it is. A block is brought
    up to date, for all picks since its last time at once, only when its bound reaches the best found so far:
    exact, and in the order of the rows by their distance from the mean most blocks sleep for long.
    points (k, n); ids (n,); weight (n,); starts (blocks + 1,) first row of each block, of at most BLOCK rows;
    groups (blocks,); turns (stop,); nearest (n,): squared distance to the chosen, negative for what is chosen or
    never to be; state (3, blocks): each block's bound, its row, and the picks it knows of, kept between calls;
    reach (stop,): the squared distance of each to those before it.
    """
    blocks = len(groups)
    bounds, best, known = state[0], state[1], state[2]
    limits = (nearest * DOUBT).astype(np.float32)
    found = np.empty(BLOCK, np.float32)
    centres = np.empty((stop, len(points)), np.float32)
    for t in range(start):
        centres[t] = points[:, chosen[t]]
    for t in range(start, stop):
        turn = turns[t]
        top = -1
        for block in range(blocks):
            if (turn < 0 or groups[block] == turn) and (top < 0 or bounds[block] > bounds[top]):
                top = block
        value, row = -1.0, -1
        for place in range(-1, blocks):
            block = top if place < 0 else place
            if (turn >= 0 and groups[block] != turn) or bounds[block] < value or bounds[block] < 0:
                continue
            if known[block] < t:
                first, last = starts[block], starts[block + 1]
                _catch_up(points, first, last, nearest, limits, centres, int(known[block]), t, found)
                bounds[block], best[block] = _best(first, last, weight, nearest, ids)
                known[block] = t
            own = int(best[block])
            if own >= 0 and (bounds[block] > value or (bounds[block] == value and ids[own] < ids[row])):
                value, row = bounds[block], own
        chosen[t] = row
        if row < 0:
            return t
        centres[t] = points[:, row]
        reach[t] = nearest[row]
        nearest[row] = -1.0
        limits[row] = -1.0
    return stop


@njit(cache=True, nogil=True)
def covering_sums(points, first, last, centres):  # type: ignore[no-untyped-def]
    """(largest, sum) of the distances of points[:, first:last] to the nearest of centres[: t + 1], for every t.
    centres (b, k)."""
    b = len(centres)
    largest, sums = np.zeros(b), np.zeros(b)
    near, found = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        near[:] = np.float32(np.inf)
        for t in range(b):
            _distances(points, start, stop, centres[t], found)
            high, total = _shrink(near, found, stop - start)
            largest[t] = max(largest[t], high)
            sums[t] += total
    return largest, sums


@njit(cache=True, fastmath=FAST)
def _shrink(near, found, size):  # type: ignore[no-untyped-def]
    """Lower near[:size] to found; the largest and the sum of their roots."""
    high, total = np.float32(0.0), 0.0
    for i in range(size):
        near[i] = min(near[i], found[i])
        root = np.sqrt(near[i])
        high = max(high, root)
        total += np.float64(root)
    return high, total


@njit(cache=True, nogil=True)
def nearest_by_group(points, first, last, centres, group, nearest):  # type: ignore[no-untyped-def]
    """Lower nearest (n, groups)[first:last] to the squared distance of each point to the nearest of the centres
    (b, k) of each group (b,)."""
    found = np.empty(BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for t in range(len(centres)):
            _distances(points, start, stop, centres[t], found)
            for i in range(start, stop):
                nearest[i, group[t]] = min(nearest[i, group[t]], found[i - start])


@njit(cache=True, nogil=True)
def gains(points, centres, best, scale):  # type: ignore[no-untyped-def]
    """(m,) by how much each of the centres (m, k) would raise the summed similarity
    1 / (1 + squared distance / scale) of the points to their best so far (n,)."""
    n = points.shape[1]
    raised = np.zeros(len(centres))
    found = np.empty(BLOCK, np.float32)
    for c in range(len(centres)):
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            _distances(points, start, stop, centres[c], found)
            raised[c] += _gain(found, best[start:stop], scale)
    return raised


@njit(cache=True, fastmath=FAST)
def _gain(found, best, scale):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(len(best)):
        total += max(np.float32(0.0), np.float32(1.0) / (np.float32(1.0) + found[i] / scale) - best[i])
    return total

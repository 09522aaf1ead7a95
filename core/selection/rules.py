"""Each rule as an order of the examples it may choose from. All but `medoids` are nested: where no shares are
to be kept, a smaller budget is a prefix of a larger one."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval, correlation_interval
from core.reading import rank_examples
from core.selection.farthest import Order, farthest_points
from core.selection.pool import Pool, Rule
from core.selection.quotas import Turns
from core.selection.vectors import Vectors


def order_by(
    pool: Pool,
    rule: Rule,
    budget: int,
    allowed: np.ndarray,
    vectors: Vectors,
    first: np.ndarray | None = None,
    turns: Turns | None = None,
    progress: Progress = silent,
) -> Order:
    """At most `budget` rows by the rule, with what it ranked them by. allowed (n,): which may be chosen; first:
    rows that lead the order; turns: the cell that each later pick is taken from."""
    check_rule(pool, rule)
    seeds = np.zeros(0, dtype=np.int64) if first is None else first
    if len(seeds) >= budget:
        return Order(seeds[:budget], np.full(budget, np.nan))
    open_ = trimmed(pool, rule, allowed)
    if rule.name in ("coverage", "both", "quality", "text"):
        return _farthest(pool, rule, budget, open_, vectors, seeds, turns, progress)
    open_[seeds] = False
    if rule.name == "facility":
        order = facility(pool.whitened, budget - len(seeds), np.flatnonzero(open_), seeds, turns, progress)
    elif turns is None:
        order = _ranked(pool, rule, budget - len(seeds), open_)
    else:
        order = _by_turns(partial(_ranked, pool, rule), turns, open_)
    return Order(
        np.concatenate([seeds, order.rows])[:budget],
        np.concatenate([np.full(len(seeds), np.nan), order.reach])[:budget],
    )


def check_rule(pool: Pool, rule: Rule) -> None:
    for j in rule.directions:
        if abs(j) > pool.k:
            raise BasiscopeError(f"Direction {abs(j)}: run {pool.run} has directions 1 to {pool.k}.")
    if rule.name == "label":
        pool.column(rule.column or "", "Rule label")
    if rule.name == "quality":
        quality(pool, rule.column or "")


def left_out(pool: Pool, rule: Rule) -> list[tuple[np.ndarray, str]]:
    """(mask (n,), reason) for each of the rule's own limits: its share of outliers, its useful end, its floor."""
    found = []
    if rule.trim:
        limit = np.quantile(pool.norms, 1 - rule.trim)
        found.append((pool.norms > limit, f"outlier: among the {rule.trim:.1%} farthest from the mean"))
    polar = [polar_scores(pool, j) for j in rule.directions]
    if rule.name == "both":
        ends = [values >= np.quantile(values, 1 - rule.useful_end) for values in polar]
        found.append((~np.any(ends, axis=0), "outside the useful end"))
    if rule.floor is not None:
        low = np.all([values < rule.floor for values in polar], axis=0)
        found.append((low, f"below the floor of {rule.floor:g} SD"))
    return found


def trimmed(pool: Pool, rule: Rule, allowed: np.ndarray) -> np.ndarray:
    """(n,) those allowed that the rule's own limits leave."""
    open_ = allowed.copy()
    for mask, _ in left_out(pool, rule):
        open_ &= ~mask
    return open_


def polar_scores(pool: Pool, direction: int) -> np.ndarray:
    """(n,) scores on a signed direction, in standard deviations, high at the wanted end."""
    return np.sign(direction) * pool.whitened[:, abs(direction) - 1]


def quality(pool: Pool, column: str) -> np.ndarray:
    """(n,) a numeric column as its rank between 0 and 1. Raises BasiscopeError where it is none."""
    import pandas as pd

    pool.column(column, "Rule quality")
    values = pd.to_numeric(pool.facts[column], errors="coerce")
    if values.isna().any():
        raise BasiscopeError(
            f"Rule quality: column {column!r} is not a number in {int(values.isna().sum()):,} examples."
        )
    return values.rank(pct=True).to_numpy()


def _farthest(
    pool: Pool,
    rule: Rule,
    budget: int,
    allowed: np.ndarray,
    vectors: Vectors,
    seeds: np.ndarray,
    turns: Turns | None,
    progress: Progress,
) -> Order:
    points = vectors() if rule.name == "text" else pool.whitened
    weight = quality(pool, rule.column or "") if rule.name == "quality" else None
    cells = None if turns is None else turns.cells
    plan = None if turns is None else np.concatenate([np.full(len(seeds), -1), turns.turns])
    return farthest_points(
        points,
        budget,
        allowed=allowed,
        first=seeds,
        weight=weight,
        groups=cells,
        turns=plan,
        progress=progress,
    )


def _by_turns(rank: Callable[[int, np.ndarray], Order], turns: Turns, allowed: np.ndarray) -> Order:
    """The rule's order within every cell, interleaved as the turns say: for rules by which what one cell has
    taken changes nothing in another."""
    rows, reach = np.full(len(turns.turns), -1), np.full(len(turns.turns), np.nan)
    for cell in np.unique(turns.turns):
        places = np.flatnonzero(turns.turns == cell)
        order = rank(len(places), allowed & (turns.cells == cell))
        rows[places[: len(order.rows)]] = order.rows
        reach[places[: len(order.rows)]] = order.reach
    there = rows >= 0
    return Order(rows[there], reach[there])


def _ranked(pool: Pool, rule: Rule, budget: int, allowed: np.ndarray) -> Order:
    rows = np.flatnonzero(allowed)
    if rule.name == "along":
        return along(pool, rule, budget, allowed)
    if rule.name == "medoids":
        return medoids(pool.whitened, budget, rows, rule.seed)
    values = {"longest": pool.lengths, "shortest": -pool.lengths}.get(rule.name)
    if values is not None:
        order = rows[rank_examples(values[rows], 1, budget)]
        return Order(order, pool.lengths[order].astype(float))
    if rule.name == "order":
        return Order(rows[:budget], rows[:budget].astype(float))
    chance = np.random.default_rng(rule.seed).permutation(pool.n)  # one permutation, whatever is allowed
    shuffled = chance[allowed[chance]]
    if rule.name == "label":
        shuffled = _in_turn(shuffled, pool.column(rule.column or "", "Rule label").to_numpy())
    return Order(shuffled[:budget], np.full(min(budget, len(shuffled)), np.nan))


def _in_turn(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows such that every value of the label comes equally often as long as it has any left."""
    import pandas as pd

    place = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
    return rows[np.lexsort((np.arange(len(rows)), place))]


def along(pool: Pool, rule: Rule, budget: int, allowed: np.ndarray) -> Order:
    """The ends of the rule's directions, each taking its turn by weight; what one has taken, the others pass over.
    reach: the polar score, in standard deviations, for which an example was taken."""
    polar = [polar_scores(pool, j) for j in rule.directions]
    rows = np.flatnonzero(allowed)
    ends = [rows[rank_examples(values[rows], 1, budget)] for values in polar]
    if rule.floor is not None:
        ends = [end[values[end] >= rule.floor] for end, values in zip(ends, polar, strict=True)]
    weights = np.array(rule.weights or [1.0] * len(ends))
    share, credit, at = weights / weights.sum(), np.zeros(len(ends)), np.zeros(len(ends), dtype=np.int64)
    taken = np.zeros(pool.n, dtype=bool)
    chosen: list[int] = []
    reach: list[float] = []
    while len(chosen) < budget:
        for j, end in enumerate(ends):
            while at[j] < len(end) and taken[end[at[j]]]:
                at[j] += 1
        able = np.array([at[j] < len(end) for j, end in enumerate(ends)])
        if not able.any():
            break
        credit += share
        j = int(np.argmax(np.where(able, credit, -np.inf)))
        credit[j] -= 1.0
        row = int(ends[j][at[j]])
        taken[row] = True
        chosen.append(row)
        reach.append(float(polar[j][row]))
    return Order(np.array(chosen, dtype=np.int64), np.array(reach))


def similarity_scale(points: np.ndarray) -> float:
    """The squared distance at which two examples count as half similar: twice the number of directions, the mean
    squared distance between two whitened examples."""
    return 2.0 * points.shape[1]


def facility(
    points: np.ndarray,
    budget: int,
    rows: np.ndarray,
    covered: np.ndarray,
    turns: Turns | None = None,
    progress: Progress = silent,
) -> Order:
    """Greedy facility location: always the row, of the cell whose turn it is, that raises most the mean over all
    points of the similarity 1 / (1 + d^2 / 2k) to the best chosen of any cell, lazily evaluated (Minoux 1978),
    exact; ties to the lower row. covered: rows that are chosen already; reach: the gain of each."""
    from core.selection.farthest import nearest_by_group
    from core.selection.kernels import gains

    columns, scale = np.ascontiguousarray(points.T), np.float32(similarity_scale(points))
    best = np.zeros(len(points), dtype=np.float32)
    if len(covered):
        near = nearest_by_group(points, points[covered], np.zeros(len(covered)), 1)[:, 0]
        best = (1 / (1 + near / scale)).astype(np.float32)
    raised = np.empty(len(rows))
    for start in range(0, len(rows), 512):
        progress("facility", start, len(rows))
        raised[start : start + 512] = gains(columns, points[rows[start : start + 512]], best, scale)
    cells = np.zeros(len(points), dtype=np.int64) if turns is None else turns.cells
    heaps: dict[int, list[tuple[float, int, int]]] = defaultdict(list)
    for gain, row in zip(raised.tolist(), rows.tolist(), strict=True):
        heaps[int(cells[row])].append((-gain, row, 0))
    for heap in heaps.values():
        heapq.heapify(heap)
    chosen: list[int] = []
    reach: list[float] = []
    for cell in [0] * budget if turns is None else turns.turns[:budget].tolist():
        heap = heaps[cell]
        while heap and heap[0][2] < len(chosen):
            _, row, _ = heapq.heappop(heap)
            fresh = float(gains(columns, points[row : row + 1], best, scale)[0])
            heapq.heappush(heap, (-fresh, row, len(chosen)))
        if not heap:
            continue
        gain, row, _ = heapq.heappop(heap)
        chosen.append(row)
        reach.append(-gain / len(points))
        near = ((points - points[row]) ** 2).sum(axis=1)
        best = np.maximum(best, 1 / (1 + near / scale)).astype(np.float32)
    return Order(np.array(chosen, dtype=np.int64), np.array(reach))


def medoids(points: np.ndarray, budget: int, rows: np.ndarray, seed: int) -> Order:
    """The rows nearest to the centres of `budget` clusters (k-means), those of the largest clusters first. Not
    nested. reach: how many rows each stands for."""
    from sklearn.cluster import MiniBatchKMeans

    wanted = min(budget, len(rows))
    if wanted == 0:
        return Order(np.zeros(0, dtype=np.int64), np.zeros(0))
    own = points[rows]
    fitted = MiniBatchKMeans(wanted, random_state=seed, n_init=1, batch_size=4_096).fit(own)
    near = ((own - fitted.cluster_centers_[fitted.labels_]) ** 2).sum(axis=1)
    order = np.lexsort((np.arange(len(rows)), near, fitted.labels_))
    clusters, firsts, sizes = np.unique(fitted.labels_[order], return_index=True, return_counts=True)
    by_size = np.lexsort((clusters, -sizes))
    chosen = rows[order[firsts[by_size]]]
    if len(chosen) < wanted:  # fewer distinct points than clusters
        left = rows[~np.isin(rows, chosen)][: wanted - len(chosen)]
        chosen, sizes = np.concatenate([chosen, left]), np.concatenate([sizes[by_size], np.zeros(len(left))])
        return Order(chosen, sizes.astype(float))
    return Order(chosen, sizes[by_size].astype(float))


def utilities(pool: Pool, directions: tuple[int, ...], column: str) -> tuple[Interval, ...]:
    """The correlation of each polar score with a numeric or true/false column, such as verified correctness, with
    its interval by Fisher's transformation. Raises BasiscopeError for a column without numbers."""
    import pandas as pd

    if not directions:
        raise BasiscopeError("Weights by utility: name the directions to weigh, with --along.")
    pool.column(column, "Weights by utility")
    values = pd.to_numeric(pool.facts[column], errors="coerce").astype(float).to_numpy()
    known = np.isfinite(values)
    if known.sum() < 3:
        raise BasiscopeError(f"Weights by utility: column {column!r} holds no numbers.")
    found = [float(np.corrcoef(polar_scores(pool, j)[known], values[known])[0, 1]) for j in directions]
    return tuple(correlation_interval(value, int(known.sum())) for value in found)


def utility_weights(pool: Pool, directions: tuple[int, ...], column: str) -> tuple[float, ...]:
    """The utility of each signed direction, none below zero. Raises BasiscopeError where none is above it."""
    return positive([one.value for one in utilities(pool, directions, column)], f"a higher {column!r}")


def positive(found: Sequence[float], what: str) -> tuple[float, ...]:
    """Utilities as weights, none of them below zero. Raises BasiscopeError where none is above it."""
    if not max(found) > 0:
        raise BasiscopeError(f"Weights by utility: none of these ends goes with {what}.")
    return tuple(max(value, 1e-9) for value in found)

"""The figures of docs/selection.md: how far rules cover runs, and how many of their labels.

    python -m bench.coverage WORKSPACE RUN:COLUMN ... --plot docs/selection_covering.svg

Every rule chooses from SEEDS random parts of the run, SHARE of it each, so that a rule without chance has an
interval, too: the median (the least to the largest) over them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.measure import machine, show
from core.selection import plots
from core.selection.choose import choose
from core.selection.measures import Curve, curve, labels_covered, norm_percentile
from core.selection.pool import Constraints, Pool, Rule, pool_of
from core.selection.step import vectors_of
from core.workspace import Workspace

SEEDS, SHARE = 20, 0.8
BUDGETS, LABEL_BUDGETS = (30, 150, 500), (15, 30, 60)
RULES = {
    "coverage": Rule("coverage"),
    "coverage, 2% outliers left out": Rule("coverage", trim=0.02),
    "facility location": Rule("facility"),
    "text diversity (TF-IDF)": Rule("text"),
    "random": Rule("random"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("runs", nargs="+", help="RUN:COLUMN of labels")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    print(f"{SEEDS} random parts of {SHARE:.0%} each: median (least to largest). {machine()}")
    space = Workspace(asked.workspace)
    for i, (name, _, column) in enumerate(text.partition(":") for text in asked.runs):
        run = space.run(name)
        pool, vectors = pool_of(run), vectors_of(run, space)
        parts = [part_of(pool, seed) for seed in range(SEEDS)]
        orders = {
            title: [order(pool, rows, rule, vectors, seed) for seed, rows in enumerate(parts)]
            for title, rule in RULES.items()
        }
        subsets = [subset(pool, rows) for rows in parts]
        curves = {
            title: [curve(part, rows) for part, rows in zip(subsets, found, strict=True)]
            for title, found in orders.items()
        }
        print(f"\n{run.manifest['data']['path']}: {pool.n:,} examples, {column}")
        covering(subsets, orders, curves)
        labels(subsets, orders, column)
        knees = [one.knee for one in curves["coverage"]]
        print(f"knee of coverage among the first {BUDGETS[-1]}: {spread(knees, '{:.0f}')}")
        if asked.plot and not i:
            plots.write_plot(asked.plot, lambda axes, drawn=curves: draw(axes, drawn), 2)  # type: ignore[misc]


def part_of(pool: Pool, seed: int) -> np.ndarray:
    """Rows of a random part of the pool, in order."""
    return np.sort(np.random.default_rng(seed).choice(pool.n, round(SHARE * pool.n), replace=False))


def subset(pool: Pool, rows: np.ndarray) -> Pool:
    return Pool(pool.run, pool.example_id[rows], pool.scores[rows], pool.facts.iloc[rows].reset_index(drop=True))


def order(pool: Pool, rows: np.ndarray, rule: Rule, vectors: np.ndarray, seed: int) -> np.ndarray:
    from dataclasses import replace

    budget = Constraints(budget=BUDGETS[-1])
    return choose(subset(pool, rows), replace(rule, seed=seed), budget, lambda: vectors[rows]).rows


def covering(parts: Sequence[Pool], orders: dict[str, list[np.ndarray]], curves: dict[str, list[Curve]]) -> None:
    table = []
    for budget in BUDGETS:
        for title, several in curves.items():
            ends = np.array([one.at(budget) for one in several])
            out = [norm_percentile(p, rows[:budget]) for p, rows in zip(parts, orders[title], strict=True)]
            table.append([f"{budget}", title, *(spread(ends[:, j]) for j in (0, 1)), spread(out, "{:.0%}")])
    show(["budget", "rule", "radius", "mean", "percentile"], table)


def labels(parts: Sequence[Pool], orders: dict[str, list[np.ndarray]], column: str) -> None:
    table = []
    for budget in LABEL_BUDGETS:
        for title, found in orders.items():
            counts = [
                labels_covered(part.facts[column], rows[:budget]) for part, rows in zip(parts, found, strict=True)
            ]
            there = max(all_ for _, all_ in counts)
            table.append([f"{budget}", title, f"{spread([n for n, _ in counts], '{:.3g}')} of {there}"])
    show(["budget", "rule", f"values of {column}"], table)


def spread(values: Sequence[float] | np.ndarray, form: str = "{:.2f}") -> str:
    """Median (least to largest)."""
    low, high = form.format(min(values)), form.format(max(values))
    middle = form.format(float(np.median(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def draw(axes: list, curves: dict[str, list[Curve]]) -> None:  # type: ignore[type-arg]
    """Each rule's median with the range over the parts."""
    colours = ("#3b6fb6", "#2aa1b3", "#d9822b", "#3d9970", "#9aa0a6")
    for place, title, measure in zip(axes, ("covering radius", "mean distance"), ("radius", "mean"), strict=True):
        for (name, several), colour in zip(curves.items(), colours, strict=True):
            values = np.array([getattr(one, measure) for one in several])
            place.plot(several[0].budgets, np.median(values, axis=0), color=colour, label=name)
            place.fill_between(
                several[0].budgets, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0
            )
        place.set(xlabel="examples", ylabel=title, ylim=(0, None), xscale="log")
    axes[0].legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    main()

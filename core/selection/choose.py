"""Rule, constraints and pool to a Selection."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import pandas as pd

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.selection.farthest import Order
from core.selection.pool import NESTED, RULES, Constraints, Pool, Rule, Selection
from core.selection.quotas import Turns, plan_turns
from core.selection.rules import Texts, check_rule, order_by, polar_scores, trimmed
from core.selection.screening import Screening


def choose(
    pool: Pool,
    rule: Rule,
    constraints: Constraints,
    texts: Texts,
    screening: Screening | None = None,
    progress: Progress = silent,
) -> Selection:
    """The selection that a rule makes of a pool within its constraints; the same inputs give the same.

    screening: duplicates and overlaps with held-out files, where the constraints ask for them. Raises
    BasiscopeError where the budget is above what can be chosen, or quotas cannot be met.
    """
    check_rule(pool, rule)
    dropped, allowed, able, must = _allowed(pool, rule, constraints, screening)
    budget = _budget(pool, rule, constraints, able, dropped)
    must = must[:budget]
    order = _order(pool, rule, constraints, allowed, must, budget, texts, progress)
    if not len(order.rows):
        raise BasiscopeError(_too_few(rule, 0, budget, dropped))
    if constraints.budget_tokens is not None:
        spent = np.cumsum(pool.lengths[order.rows])
        order_rows = order.rows[spent <= constraints.budget_tokens]
        if not len(order_rows):
            raise BasiscopeError(
                f"Token budget {constraints.budget_tokens:,}: the first example alone has {spent[0]:,} tokens."
            )
    elif len(order.rows) < budget:
        raise BasiscopeError(_too_few(rule, len(order.rows), budget, dropped))
    else:
        order_rows = order.rows
    reasons = dict(constraints.must)
    ids = pool.example_id[order_rows]
    return Selection(
        pool.run,
        rule,
        constraints,
        ids,
        order_rows,
        order.reach[: len(order_rows)],
        tuple(f"must-have: {reasons[i]}" if i in reasons else "" for i in ids.tolist()),
        pd.DataFrame(
            {
                "example_id": np.array(list(dropped), dtype=np.int64),
                "reason": pd.Series(list(dropped.values()), dtype="str"),
            }
        ),
        _notes(rule, constraints, len(order_rows)) + (screening.problems if screening else ()),
    )


def possible(pool: Pool, rule: Rule, constraints: Constraints, screening: Screening | None = None) -> int:
    """How many examples can be chosen at all."""
    check_rule(pool, rule)
    able = _allowed(pool, rule, constraints, screening)[2]
    if rule.name == "along" and rule.floor is not None:
        able = able & np.any([polar_scores(pool, j) >= rule.floor for j in rule.directions], axis=0)
    return int(able.sum())


def _allowed(
    pool: Pool, rule: Rule, constraints: Constraints, screening: Screening | None
) -> tuple[dict[int, str], np.ndarray, np.ndarray, np.ndarray]:
    """(dropped, allowed (n,), able (n,): those allowed that the rule would take, must-have rows)."""
    dropped = _dropped(pool, constraints, screening)
    allowed = np.ones(pool.n, dtype=bool)
    allowed[pool.rows(tuple(dropped), "Dropped")] = False
    must = pool.rows(tuple(dict(constraints.must)), "--must")
    allowed[must] = True
    able = trimmed(pool, rule, allowed).copy()
    able[must] = True
    return dropped, allowed, able, must


def _dropped(pool: Pool, constraints: Constraints, screening: Screening | None) -> dict[int, str]:
    """Example id -> why it cannot be chosen; the first reason counts."""
    kept = {example for example, _ in constraints.must}
    found = {example: f"never: {reason}" for example, reason in constraints.never}
    pool.rows(tuple(found), "--never")
    masks: list[tuple[np.ndarray, str]] = []
    if constraints.only:
        inside = np.zeros(pool.n, dtype=bool)
        inside[pool.rows(constraints.only, "Set")] = True
        masks.append((~inside, "outside the set"))
    if constraints.min_tokens is not None:
        masks.append((pool.lengths < constraints.min_tokens, f"shorter than {constraints.min_tokens} tokens"))
    if constraints.max_tokens is not None:
        masks.append((pool.lengths > constraints.max_tokens, f"longer than {constraints.max_tokens} tokens"))
    for name in constraints.required:
        if name not in pool.facts:
            raise BasiscopeError(f"--require {name}: run {pool.run} has no such column.")
        values = pool.facts[name].astype("string").str.strip()
        masks.append(((values.isna() | (values == "")).to_numpy(dtype=bool), f"no {name}"))
    for mask, reason in masks:
        for example in pool.example_id[mask].tolist():
            found.setdefault(example, reason)
    if screening and constraints.drop_contaminated:
        for overlap in screening.overlaps:
            found.setdefault(overlap.example_id, f"overlaps {overlap.file}, row {overlap.row}")
    if screening and constraints.dedup != "none":
        duplicates = screening.duplicates(constraints.dedup)
        for example, other in _repeats(duplicates, kept, found.keys() - kept).items():
            found.setdefault(example, f"{constraints.dedup} duplicate of example {other}")
    return {example: reason for example, reason in found.items() if example not in kept}


def _repeats(duplicates: Mapping[int, int], must: Set[int], gone: Set[int]) -> dict[int, int]:
    """Example id -> the example it repeats, which is chosen from instead: of all that repeat the same one, the
    first must-have, or else the first that is not gone."""
    clusters: dict[int, list[int]] = {}
    for example in sorted(duplicates.keys() | set(duplicates.values())):
        first = example
        while first in duplicates:
            first = duplicates[first]
        clusters.setdefault(first, []).append(example)
    found: dict[int, int] = {}
    for members in clusters.values():
        stays = next((m for m in members if m in must), next((m for m in members if m not in gone), None))
        if stays is not None:
            found |= {member: stays for member in members if member != stays}
    return found


def _budget(pool: Pool, rule: Rule, constraints: Constraints, able: np.ndarray, dropped: Mapping[int, str]) -> int:
    there = int(able.sum())
    if constraints.budget is not None:
        if constraints.budget > there:
            raise BasiscopeError(_too_few(rule, there, constraints.budget, dropped))
        return constraints.budget
    assert constraints.budget_tokens is not None
    fewest = np.cumsum(np.sort(pool.lengths[able]))
    return max(1, int(np.searchsorted(fewest, constraints.budget_tokens, side="right")))


def _too_few(rule: Rule, there: int, budget: int, dropped: Mapping[int, str]) -> str:
    lost = f", {len(dropped):,} are dropped by the constraints" if dropped else ""
    return (
        f"Budget {budget:,}: only {there:,} examples can be chosen {RULES[rule.name]}{lost}. "
        "Lower --budget or loosen the constraints."
    )


def _order(
    pool: Pool,
    rule: Rule,
    constraints: Constraints,
    allowed: np.ndarray,
    must: np.ndarray,
    budget: int,
    texts: Texts,
    progress: Progress,
) -> Order:
    turns: Turns | None = None
    if constraints.shapes:
        wanted = order_by(pool, rule, budget, allowed, texts, must).rows
        left = trimmed(pool, rule, allowed).copy()
        left[must] = False
        turns = plan_turns(pool, constraints, left, wanted, must, budget)
    return order_by(pool, rule, budget, allowed, texts, must, turns, progress)


def _notes(rule: Rule, constraints: Constraints, budget: int) -> tuple[str, ...]:
    notes = []
    if rule.name not in NESTED:
        notes.append("This rule is not nested: another budget gives another selection, not a prefix.")
    if (must := len(dict(constraints.must))) > budget:
        notes.append(f"Only the first {budget:,} of {must:,} must-have examples fit.")
    if constraints.caps or len(constraints.quotas) + constraints.within_length_strata > 1:
        notes.append("Shares are planned for this budget: another budget may choose otherwise.")
    return tuple(notes)

"""Rule, constraints and pool to a Selection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import numpy as np
import pandas as pd

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.selection.farthest import Order
from core.selection.pool import NESTED, RULES, Constraints, Pool, Rule, Selection
from core.selection.quotas import Turns, plan_turns
from core.selection.rules import check_rule, left_out, order_by, trimmed
from core.selection.screening import Screening
from core.selection.vectors import Vectors


def choose(
    pool: Pool,
    rule: Rule,
    constraints: Constraints,
    vectors: Vectors,
    screening: Screening | None = None,
    progress: Progress = silent,
) -> Selection:
    """The selection that a rule makes of a pool within its constraints; the same inputs give the same.

    vectors: of the texts, called by the rule `text` alone; screening: duplicates and overlaps with held-out files,
    where the constraints ask for them. Raises BasiscopeError where the budget is above what can be chosen, or
    quotas cannot be met.
    """
    check_rule(pool, rule)
    dropped, allowed, able, must = _allowed(pool, rule, constraints, screening)

    def order_of(budget: int) -> Order:
        return _order(pool, rule, constraints, allowed, must[:budget], budget, vectors, progress)

    notes: tuple[str, ...] = ()
    if constraints.budget is not None:
        if int(able.sum()) < constraints.budget:
            raise BasiscopeError(_too_few(rule, int(able.sum()), constraints.budget, dropped))
        order = order_of(constraints.budget)
        if len(order.rows) < constraints.budget:
            raise BasiscopeError(_too_few(rule, len(order.rows), constraints.budget, dropped))
    elif not able.any():
        raise BasiscopeError(_too_few(rule, 0, 1, dropped))
    else:
        planned = bool(constraints.shapes) or rule.name not in NESTED
        order, notes = _fill_tokens(order_of, pool, constraints.budget_tokens or 0, able, len(must), planned)
    reasons = dict(constraints.must)
    ids = pool.example_id[order.rows]
    return Selection(
        pool.run,
        rule,
        constraints,
        ids,
        order.rows,
        order.reach,
        tuple(f"must-have: {reasons[i]}" if i in reasons else "" for i in ids.tolist()),
        pd.DataFrame(
            {
                "example_id": np.array(list(dropped), dtype=np.int64),
                "reason": pd.Series(list(dropped.values()), dtype="str"),
            }
        ),
        _notes(rule, constraints, len(order.rows)) + notes + (screening.problems if screening else ()),
    )


def _fill_tokens(
    order_of: Callable[[int], Order], pool: Pool, tokens: int, able: np.ndarray, least: int, planned: bool
) -> tuple[Order, tuple[str, ...]]:
    """The first of an order that fit into `tokens`, and what is to be said of them. Orders grow until they do not
    fit; one that is planned for its budget is then planned again for as many as fit.

    Raises BasiscopeError where the first example does not fit, or no plan can be made of half as many, or of the
    `least` that must be had."""
    lengths = pool.lengths[able]
    most = max(1, int(np.searchsorted(np.cumsum(np.sort(lengths)), tokens, side="right")))
    budget = min(most, max(1, round(1.1 * tokens / float(lengths.mean()))))
    first, best, grows = budget, None, True
    unmet: BasiscopeError | None = None
    while True:
        try:
            order = order_of(budget)
        except BasiscopeError as error:
            if best is None and budget <= max(least, first // 2):
                raise
            unmet, grows = error, False
            if best is not None:
                break
            budget = budget * 9 // 10
            continue
        fits = fitting(pool, order.rows, tokens)
        if not fits and len(order.rows):
            alone = pool.lengths[order.rows[0]]
            raise BasiscopeError(f"Token budget {tokens:,}: the first example alone has {alone:,} tokens.")
        if fits == len(order.rows):
            best = order
            if not grows or fits < budget or budget == most:
                break
            budget = min(most, budget * 3 // 2 + 1)
        elif not planned:
            return Order(order.rows[:fits], order.reach[:fits]), ()
        elif best is not None and fits <= len(best.rows):
            break
        else:
            unmet, grows, budget = None, False, fits
    return best, (f"These shares cannot be kept beyond {len(best.rows):,} examples. {unmet}",) if unmet else ()


def fitting(pool: Pool, rows: np.ndarray, tokens: int) -> int:
    """How many of the rows, from the first, have together at most `tokens`."""
    return int(np.searchsorted(np.cumsum(pool.lengths[rows]), tokens, side="right"))


def possible(pool: Pool, rule: Rule, constraints: Constraints, screening: Screening | None = None) -> np.ndarray:
    """(n,) which examples can be chosen at all."""
    check_rule(pool, rule)
    return _allowed(pool, rule, constraints, screening)[2]


def _allowed(
    pool: Pool, rule: Rule, constraints: Constraints, screening: Screening | None
) -> tuple[dict[int, str], np.ndarray, np.ndarray, np.ndarray]:
    """(dropped, allowed (n,), able (n,): those allowed that the rule would take, must-have rows)."""
    dropped = _dropped(pool, constraints, screening)
    allowed = np.ones(pool.n, dtype=bool)
    allowed[pool.rows(tuple(dropped), "Dropped")] = False
    must = pool.rows(tuple(dict(constraints.must)), "--must")
    allowed[must] = True
    able = allowed.copy()
    for mask, reason in left_out(pool, rule):
        mask[must] = False
        dropped |= dict.fromkeys(pool.example_id[able & mask].tolist(), reason)
        able &= ~mask
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


def _too_few(rule: Rule, there: int, budget: int, dropped: Mapping[int, str]) -> str:
    lost = f"; rule and constraints drop {len(dropped):,}" if dropped else ""
    return (
        f"Budget {budget:,}: only {there:,} examples can be chosen (rule: {RULES[rule.name]}{lost}). "
        "Lower --budget or loosen the constraints."
    )


def _order(
    pool: Pool,
    rule: Rule,
    constraints: Constraints,
    allowed: np.ndarray,
    must: np.ndarray,
    budget: int,
    vectors: Vectors,
    progress: Progress,
) -> Order:
    turns: Turns | None = None
    if constraints.shapes:
        wanted = order_by(pool, rule, budget, allowed, vectors, must).rows
        left = trimmed(pool, rule, allowed)
        left[must] = False
        turns = plan_turns(pool, constraints, left, wanted, must, budget)
    return order_by(pool, rule, budget, allowed, vectors, must, turns, progress)


def must_note(constraints: Constraints, budget: int) -> tuple[str, ...]:
    """What to say where the budget holds fewer examples than must be in; nothing where it does not."""
    must = len(dict(constraints.must))
    return (f"Only the first {budget:,} of {must:,} must-have examples fit.",) if must > budget else ()


def _notes(rule: Rule, constraints: Constraints, budget: int) -> tuple[str, ...]:
    notes: list[str] = []
    if rule.name not in NESTED:
        notes.append("This rule is not nested: another budget gives another selection, not a prefix.")
    notes += must_note(constraints, budget)
    if constraints.shapes:
        notes.append("Shares are planned for this budget: a smaller one is not always a prefix.")
    if constraints.shapes and constraints.budget_tokens is not None:
        notes.append("Shares are shares of the examples, not of their tokens.")
    if constraints.shapes and rule.name == "medoids":
        notes.append("Medoids are those of each part that the shares make of the pool, not of the whole.")
    return tuple(notes)

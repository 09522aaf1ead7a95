"""Tables of evidence for pages and the command line alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from core.evaluation import Interval, correlation_interval
from core.usefulness.evidence import BOTH, Effect, Evidence
from core.usefulness.recommend import find

if TYPE_CHECKING:
    from core.evaluation.changes import Change


ALONG = {
    "utility": "right answers go with",
    "gain": "the loss on right solutions would fall along",
    "contrast": "right solutions would gain on wrong ones along",
}
"""What was measured, by measure or proxy, where nothing was done that could help or harm."""


def number(value: float, unit: str) -> str:
    """Shares of Pass@k in points."""
    if math.isnan(value):
        return "none"
    return f"{100 * value:+.1f}" if unit.startswith("Pass@") else f"{value:.3g}"


def interval_words(interval: Interval, unit: str) -> str:
    """
    >>> interval_words(Interval(0.5, 0.25, 0.75, 9), "AUC")
    '0.5 (0.25 to 0.75)'
    """
    if math.isnan(interval.value):
        return "none"
    if math.isnan(interval.low):
        return number(interval.value, unit)
    low, high = (number(end, unit) for end in (interval.low, interval.high))
    return f"{number(interval.value, unit)} ({low} to {high})"


def evidence_table(evidence: Evidence) -> pd.DataFrame:
    """A row for each direction and polarity, a column for each measure with its 95% interval, p-values of the
    primary one, and whether it beats all controls; where an effect has parts by block, the leading one."""
    rows, blocks = [], evidence.facts.get("blocks", ())
    for effect in evidence.by(evidence.primary):
        row = {"direction": effect.name if effect.polarity != BOTH else str(effect.direction)}
        for measure in evidence.measures:
            same = [one for one in evidence.by(measure.name) if one.name == effect.name]
            row[measure.name] = interval_words(same[0].effect, measure.unit) if same else ""
        if effect.blocks and blocks:
            row["leading block"] = _leading(effect, blocks)
        row |= {"p": _p(effect.p), "adjusted": _p(effect.adjusted), "beats controls": _beats(effect)}
        rows.append(row)
    return pd.DataFrame(rows)


def _leading(effect: Effect, blocks: Sequence[int]) -> str:
    """The block whose part of an effect is the largest towards where the whole points, and that part."""
    sign = 1 if effect.effect.value >= 0 else -1
    place = max(range(len(effect.blocks)), key=lambda i: sign * effect.blocks[i])
    return f"{blocks[place]} ({effect.blocks[place]:.3g})"


def block_parts(evidence: Evidence, measure: str) -> list[tuple[str, tuple[float, ...]]]:
    """(direction, its parts by block) of a measure, where it has such parts."""
    return [(str(effect.direction), effect.blocks) for effect in evidence.by(measure) if effect.blocks]


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _beats(effect: Effect) -> str:
    return ("yes" if effect.is_evidence else "no") + (f"; {effect.note}" if effect.note else "")


def control_table(evidence: Evidence) -> pd.DataFrame:
    """A row for each control."""
    unit = {measure.name: measure.unit for measure in evidence.measures}
    return pd.DataFrame(
        {
            "control": control.name,
            "measure": control.measure,
            "reaches": interval_words(control.level, unit[control.measure]),
            "what it is": control.detail,
        }
        for control in evidence.controls
    )


def conclusion(evidence: Evidence) -> str:
    """What one proxy says by itself."""
    found = find(evidence)
    if not found:
        return f"By {evidence.proxy} no direction beats all controls."
    if along := ALONG.get(evidence.primary, ALONG.get(evidence.proxy)):
        said = f"{along} {', '.join(one.name for one in found)}"
    else:
        said = ", ".join(f"{one.name} {'helps' if one.helps else 'harms'}" for one in found)
    return f"By {evidence.proxy}, beyond all controls: {said}."


def evidence_notes(evidence: Evidence) -> list[str]:
    """What the measures mean, what the evidence rests on, what it cost, and what it says."""
    legend = [f"{one.name}: {one.title}, in {one.unit}" for one in evidence.measures]
    return [*legend, "", *evidence.notes, f"It took {_cost(evidence)}.", conclusion(evidence)]


def all_proxies(k: int, evidence: Sequence[Evidence]) -> pd.DataFrame:
    """A row for each direction and polarity, the primary measure of each proxy; then the furthest that a control
    of it reaches, and what it cost."""
    rows = []
    for j in range(1, k + 1):
        for polarity in "+-":
            row = {"direction": f"{j}{polarity}"}
            for one in evidence:
                effects = [e for e in one.by(one.primary) if e.direction == j and e.polarity in (polarity, BOTH)]
                row[one.proxy] = _cell(effects[0], one, polarity) if effects else ""
            rows.append(row)
    rows.append({"direction": "controls reach"} | {one.proxy: _reach(one) for one in evidence})
    rows.append({"direction": "cost"} | {one.proxy: _cost(one) for one in evidence})
    return pd.DataFrame(rows)


def _reach(evidence: Evidence) -> str:
    measure = evidence.measure(evidence.primary)
    controls = [one for one in evidence.controls if one.measure == measure.name and math.isfinite(one.level.value)]
    if not controls:
        return ""
    best = max(controls, key=lambda one: abs(one.level.value - measure.null))
    return f"{number(best.level.value, measure.unit)} by {best.name}"


def _cost(evidence: Evidence) -> str:
    return f"{evidence.cost.seconds:,.1f} s, {evidence.cost.tokens:,} tokens"


def evidence_name(evidence: Evidence) -> str:
    """One line that tells a measurement from its neighbours."""
    source = evidence.request.get("path") or evidence.request.get("correct") or ""
    if isinstance(problems := evidence.request.get("problems"), dict):
        source = problems.get("path") or ""
    return " · ".join(part for part in (evidence.proxy, str(source).rsplit("/", 1)[-1], evidence.created) if part)


def change_name(change: Change) -> str:
    became = "became right" if change.became_right else "became wrong"
    return f"{became}: problem {change.before.problem_id}, rollout {change.before.rollout + 1}"


def towards(evidence: Evidence) -> dict[str, Interval]:
    """End such as `1+` -> how far the primary measure lies from nothing towards help; what speaks of both ends is
    mirrored for the other."""
    null = evidence.measure(evidence.primary).null
    found = {}
    for effect in evidence.by(evidence.primary):
        value, low, high = (end - null for end in (effect.effect.value, effect.effect.low, effect.effect.high))
        polarity = "+" if effect.polarity == BOTH else effect.polarity
        found[f"{effect.direction}{polarity}"] = Interval(value, low, high, effect.effect.n)
        if effect.polarity == BOTH:
            found[f"{effect.direction}-"] = Interval(-value, -high, -low, effect.effect.n)
    return {name: interval for name, interval in found.items() if not math.isnan(interval.value)}


def agreement(one: Evidence, other: Evidence) -> Interval:
    """Rank correlation (Spearman) of two proxies over the directions that both know, the + end less the - end,
    with its interval by Fisher's transformation."""
    return agreement_of(towards(one), towards(other))


def agreement_of(one: Mapping[str, Interval], other: Mapping[str, Interval]) -> Interval:
    """The same of effects by end, such as `1+`."""
    from scipy.stats import spearmanr

    sides = [_by_direction(ends) for ends in (one, other)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if len(shared) < 3:
        return Interval(math.nan, math.nan, math.nan, len(shared))
    r = spearmanr([sides[0][j] for j in shared], [sides[1][j] for j in shared]).statistic
    return correlation_interval(float(r), len(shared))


def _by_direction(ends: Mapping[str, Interval]) -> dict[int, float]:
    both = {int(name[:-1]) for name in ends if f"{name[:-1]}+" in ends and f"{name[:-1]}-" in ends}
    return {j: ends[f"{j}+"].value - ends[f"{j}-"].value for j in both}


def agreement_sentence(one: Evidence, other: Evidence) -> str:
    found = agreement(one, other)
    if math.isnan(found.value):
        return f"{one.proxy} and {other.proxy} share too few directions, or do not tell them apart."
    doubt = "too few for an interval"
    if not math.isnan(found.low):
        doubt = f"95% interval {found.low:+.2f} to {found.high:+.2f}"
    said = f"Rank correlation of {one.proxy} and {other.proxy} over {found.n} directions"
    return f"{said}: {found.value:+.2f} ({doubt})."


def _cell(effect: Effect, evidence: Evidence, polarity: str) -> str:
    measure = evidence.measure(evidence.primary)
    turned = effect.effect
    if effect.polarity == BOTH and polarity == "-":
        low, high = (2 * measure.null - end for end in (turned.high, turned.low))
        turned = Interval(2 * measure.null - turned.value, low, high, turned.n)
    told = (" * helps" if turned.value > measure.null else " * harms") if effect.is_evidence else ""
    return interval_words(turned, measure.unit) + told

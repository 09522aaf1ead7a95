"""Tables of evidence for pages and the command line alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from core.evaluation import Interval
from core.usefulness.evidence import BOTH, Effect, Evidence
from core.usefulness.recommend import find


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
    primary one, and whether it beats all controls."""
    rows = []
    for effect in evidence.by(evidence.primary):
        row = {"direction": effect.name if effect.polarity != BOTH else str(effect.direction)}
        for measure in evidence.measures:
            same = [one for one in evidence.by(measure.name) if one.name == effect.name]
            row[measure.name] = interval_words(same[0].effect, measure.unit) if same else ""
        row |= {"p": _p(effect.p), "adjusted": _p(effect.adjusted), "beats controls": _beats(effect)}
        rows.append(row)
    return pd.DataFrame(rows)


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _beats(effect: Effect) -> str:
    return effect.note or ("yes" if effect.is_evidence else "no")


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
    names = ", ".join(f"{one.name} {'helps' if one.helps else 'harms'}" for one in found)
    return f"By {evidence.proxy}, beyond all controls: {names}."


def evidence_notes(evidence: Evidence) -> list[str]:
    """What the measures mean, what the evidence rests on, what it cost, and what it says."""
    legend = [f"{one.name}: {one.title}, in {one.unit}" for one in evidence.measures]
    cost = f"It took {evidence.cost.seconds:,.1f} s and {evidence.cost.tokens:,} tokens."
    return [*legend, "", *evidence.notes, cost, conclusion(evidence)]


def all_proxies(k: int, evidence: Sequence[Evidence]) -> pd.DataFrame:
    """A row for each direction and polarity, the primary measure of each proxy beside the best of its controls."""
    rows = []
    for j in range(1, k + 1):
        for polarity in "+-":
            row = {"direction": f"{j}{polarity}"}
            for one in evidence:
                effects = [e for e in one.by(one.primary) if e.direction == j and e.polarity in (polarity, BOTH)]
                row[one.proxy] = _cell(effects[0], one, polarity) if effects else ""
            rows.append(row)
    return pd.DataFrame(rows)


def _cell(effect: Effect, evidence: Evidence, polarity: str) -> str:
    measure = evidence.measure(evidence.primary)
    turned = effect.effect
    if effect.polarity == BOTH and polarity == "-":
        low, high = (2 * measure.null - end for end in (turned.high, turned.low))
        turned = Interval(2 * measure.null - turned.value, low, high, turned.n)
    return interval_words(turned, measure.unit) + (" *" if effect.is_evidence else "")

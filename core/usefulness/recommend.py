"""The recommendation: all that is known of a run's directions, in plain words with its evidence.

Each proxy answers for itself: an effect counts where it beats every control of its proxy and its p-value,
corrected for all directions and against the best of as many random ones, holds when it is multiplied by the number
of proxies asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from core.errors import BasiscopeError
from core.evaluation import Interval
from core.usefulness import PROXIES, SIGNIFICANCE
from core.usefulness.development import NO_BETTER
from core.usefulness.evidence import BOTH, Effect, Evidence, without_nan
from core.workspace import now

TOLD = ("sft", "steering", "first-order", "utility")
"""Proxies by how close they are to what is asked: those that act on the model before those that only look."""
ACTING = {"sft", "steering"}


@dataclass(frozen=True)
class Finding:
    """One direction and polarity by one proxy: the effect that decided, `helps` or `harms`."""

    direction: int
    polarity: str
    proxy: str
    measure: str
    helps: bool
    effect: Interval
    adjusted: float

    @property
    def name(self) -> str:
        return f"{self.direction}{self.polarity}"

    def contradicts(self, other: Finding) -> bool:
        """Whether one end helps and harms, or by two proxies either end helps."""
        if self.direction != other.direction:
            return False
        if self.polarity == other.polarity:
            return self.helps != other.helps
        return self.proxy != other.proxy and self.helps and other.helps


@dataclass(frozen=True)
class Recommendation:
    """What to do with a run's directions. findings: those that beat all controls, the most telling proxy first;
    sentences: in plain words; evidence: proxy -> id of the evidence that it rests on."""

    run: str
    k: int
    findings: tuple[Finding, ...]
    sentences: tuple[str, ...]
    evidence: dict[str, str]
    created: str = field(default_factory=now)

    @property
    def helpful(self) -> tuple[str, ...]:
        """Names such as `1+` of what helps and no proxy contradicts, for a selection along directions."""
        return tuple(
            dict.fromkeys(
                one.name for one in self.findings if one.helps and not any(map(one.contradicts, self.findings))
            )
        )

    def as_dict(self) -> dict[str, Any]:
        stored: dict[str, Any] = without_nan(asdict(self))
        return {**stored, "helpful": list(self.helpful)}


def recommend(run_id: str, k: int, kept: Mapping[str, Evidence]) -> Recommendation:
    """From a run's evidence (id -> evidence, newest first); of each proxy the newest counts.

    Raises BasiscopeError where there is none.
    """
    newest: dict[str, tuple[str, Evidence]] = {}
    for evidence_id, evidence in kept.items():
        newest.setdefault(evidence.proxy, (evidence_id, evidence))
    if not newest:
        raise BasiscopeError(
            f"Run {run_id} has no evidence yet; start `basiscope utility` or `basiscope proxies` on it first."
        )
    findings = [one for proxy in TOLD if proxy in newest for one in find(newest[proxy][1], len(newest))]
    return Recommendation(
        run_id,
        k,
        tuple(findings),
        tuple(_sentences(k, findings, {proxy: one for proxy, (_, one) in newest.items()})),
        {proxy: newest[proxy][0] for proxy in PROXIES if proxy in newest},
    )


def find(evidence: Evidence, proxies: int = 1) -> list[Finding]:
    """The effects of a proxy that beat its controls when `proxies` of them are asked, strongest first."""
    null = evidence.measure(evidence.primary).null
    found = []
    for effect in evidence.by(evidence.primary):
        corrected = effect.adjusted * proxies
        if effect.is_evidence and corrected < SIGNIFICANCE:
            found += _both_ends(evidence.proxy, effect, null, corrected)
    return sorted(found, key=lambda one: -abs(one.effect.value))


def _both_ends(proxy: str, effect: Effect, null: float, corrected: float) -> list[Finding]:
    """An effect above its null helps; one number for both ends speaks of the end that helps."""
    value, low, high = (end - null for end in _ends(effect.effect))
    away = Interval(value, low, high, effect.effect.n)
    if effect.polarity != BOTH:
        helps = away.value > 0
        return [Finding(effect.direction, effect.polarity, proxy, effect.measure, helps, away, corrected)]
    polarity = "+" if away.value > 0 else "-"
    turned = away if away.value > 0 else Interval(-away.value, -away.high, -away.low, away.n)
    return [Finding(effect.direction, polarity, proxy, effect.measure, True, turned, corrected)]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


# --- in words -------------------------------------------------------------------------------------------

SAYS = {
    "utility": "goes with right answers",
    "first-order": "would lower the loss on right solutions",
    "steering": "helps",
    "sft": "helps as training data",
}
SAYS_MEASURE = {"contrast": "favours right solutions over wrong ones"}
SAYS_HARM = {"steering": "is a failure mode", "sft": "harms as training data"}


def _sentences(k: int, findings: Sequence[Finding], evidence: Mapping[str, Evidence]) -> list[str]:
    lapsed = _lapsed(findings, evidence)
    told = {one.direction for one in (*findings, *lapsed)}
    fates = _fates([j for j in range(1, k + 1) if j not in told], evidence.values())
    tried = fates.pop(TRIED)
    gaps = [f"{_directions(some)} {fate}" for fate, some in fates.items() if some]
    more = [*_lapsed_sentences(lapsed, len(evidence)), *_silent([*findings, *lapsed], evidence)]
    if not findings:
        many = f"none of {k}" if len(tried) + len(told) == k else f"none of the {len(tried) + len(told)} tried"
        said = f"No direction can be recommended: {many} beats the controls of {' and '.join(evidence)}"
        if lapsed:
            return ["; ".join([f"{said} when corrected for {len(evidence)} proxies", *gaps]) + ".", *more]
        chance = "What they show, a control shows as well: random directions, words or chance."
        return ["; ".join([said, *gaps]) + f". {chance}", *_untried(evidence)]
    parts = [_clause(one, evidence[one.proxy]) for one in findings]
    if tried:
        others = f"the other{'s' if len(tried) > 1 else ''} ({_numbers(tried)})"
        parts.append(f"{others} cannot be told from a random direction")
    return ["; ".join([*parts, *gaps]) + ".", *_doubts(findings, evidence), *_disagreements(findings), *more]


def _doubts(findings: Sequence[Finding], evidence: Mapping[str, Evidence]) -> list[str]:
    """What takes the worth of a finding away, and stands in its proxy's notes."""
    proxies = dict.fromkeys(one.proxy for one in findings)
    notes = [(proxy, note) for proxy in proxies for note in evidence[proxy].notes if NO_BETTER in note]
    return [f"Do not build on {proxy}: {note}." for proxy, note in notes]


def _lapsed(findings: Sequence[Finding], evidence: Mapping[str, Evidence]) -> list[Finding]:
    """What beats the controls of its proxy, but not when corrected for all proxies."""
    kept = {(one.proxy, one.name) for one in findings}
    alone = [one for proxy in TOLD if proxy in evidence for one in find(evidence[proxy])]
    return [one for one in alone if (one.proxy, one.name) not in kept]


def _lapsed_sentences(lapsed: Sequence[Finding], proxies: int) -> list[str]:
    names: dict[str, list[str]] = {}
    for one in lapsed:
        names.setdefault(one.proxy, []).append(one.name)
    return [
        f"By {proxy} {' and '.join(some)} beat{'s' if len(some) == 1 else ''} the controls, but no longer when "
        f"corrected for {proxies} proxies."
        for proxy, some in names.items()
    ]


def _silent(findings: Sequence[Finding], evidence: Mapping[str, Evidence]) -> list[str]:
    """What the findings do not rest on: proxies that found nothing, and any that acts on the model."""
    silent = [proxy for proxy in evidence if proxy not in {one.proxy for one in findings}]
    said = [f"By {' and '.join(silent)} no direction beats the controls."] if silent else []
    return [*said, *_untried(evidence)]


def _untried(evidence: Mapping[str, Evidence]) -> list[str]:
    if evidence.keys() & ACTING:
        return []
    return ["Nothing has been tried on the model yet: basiscope proxies --kind steering, or sft, does that."]


TRIED, DROPPED = "tried", "dropped early, before there was enough evidence"
SAME, UNTRIED = "the same on all examples", "not tried"


def _fates(rest: Sequence[int], evidence: Iterable[Evidence]) -> dict[str, list[int]]:
    """What became of directions without a finding -> which: tried to the end by any proxy, else dropped early,
    else without a score that varies, else not tried."""
    effects = [effect for one in evidence for effect in one.by(one.primary)]
    known = [effect for effect in effects if math.isfinite(effect.effect.value)]
    fate = {effect.direction: SAME for effect in effects if effect.is_constant}
    fate |= {effect.direction: DROPPED for effect in known}
    fate |= {effect.direction: TRIED for effect in known if not effect.was_dropped}
    return {one: [j for j in rest if fate.get(j, UNTRIED) == one] for one in (TRIED, DROPPED, SAME, UNTRIED)}


def _numbers(directions: Sequence[int]) -> str:
    return ", ".join(map(str, directions))


def _directions(directions: Sequence[int]) -> str:
    """
    >>> _directions([2, 5])
    'directions 2, 5 were'
    """
    many = len(directions) > 1
    return f"direction{'s' if many else ''} {_numbers(directions)} {'were' if many else 'was'}"


def _disagreements(findings: Sequence[Finding]) -> list[str]:
    """A sentence for each direction on which proxies contradict each other."""
    found = []
    for j in dict.fromkeys(one.direction for one in findings):
        mine = [one for one in findings if one.direction == j]
        at_odds = [one for one in mine if any(map(one.contradicts, mine))]
        if at_odds:
            proxies = " and ".join(dict.fromkeys(one.proxy for one in at_odds))
            names = list(dict.fromkeys(one.name for one in at_odds if one.helps))
            are = "are" if len(names) > 1 else "is"
            found.append(f"On direction {j} {proxies} disagree: {' and '.join(names)} {are} not recommended.")
    return found


def _clause(one: Finding, evidence: Evidence) -> str:
    helps = SAYS_MEASURE.get(one.measure, SAYS[one.proxy])
    says = helps if one.helps else SAYS_HARM.get(one.proxy, "harms")
    return f"{one.name} {says} ({effect_text(one.effect, evidence.measure(one.measure).unit)})"


def effect_text(away: Interval, unit: str) -> str:
    """A difference from nothing with its interval, shares in points.

    >>> effect_text(Interval(0.062, 0.021, 0.104, 40), "Pass@1")
    '+6.2 points of Pass@1, 95% interval 2.1 to 10.4'
    """
    if unit.startswith("Pass@"):
        value, low, high = (100 * part for part in _ends(away))
        return f"{value:+.1f} points of {unit}, 95% interval {low:.1f} to {high:.1f}"
    value, low, high = _ends(away)
    what = f"{unit} {value:+.3g} from chance" if unit == "AUC" else f"{value:+.3g} {unit}"
    return f"{what}, 95% interval {low:.3g} to {high:.3g}"

"""The recommendation: all that is known of a run's directions, in plain words with its evidence.

Each proxy answers for itself: an effect counts where it beats every control of its proxy and its p-value,
corrected for all directions and against the best of as many random ones, holds when it is multiplied by the number
of proxies asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from core.errors import BasiscopeError
from core.evaluation import Interval
from core.usefulness import PROXIES, SIGNIFICANCE
from core.usefulness.evidence import BOTH, Effect, Evidence
from core.workspace import now

TOLD = ("sft", "steering", "first-order", "utility")
"""Proxies by how close they are to what is asked: those that act on the model before those that only look."""


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
        """Names such as `1+` of what helps and by no proxy harms, for a selection along directions."""
        harmful = {one.name for one in self.findings if not one.helps}
        return tuple(dict.fromkeys(one.name for one in self.findings if one.helps and one.name not in harmful))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "helpful": list(self.helpful)}


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
SAYS_HARM = {"steering": "is a failure mode", "sft": "harms as training data"}


def _sentences(k: int, findings: Sequence[Finding], evidence: Mapping[str, Evidence]) -> list[str]:
    parts = [_clause(one, evidence[one.proxy]) for one in findings]
    told = {one.direction for one in findings}
    rest = [str(j) for j in range(1, k + 1) if j not in told]
    named = " and ".join(evidence)
    if not parts:
        return [
            f"No direction can be recommended: none of {k} beats the controls of {named}. What they show "
            "can be had from random directions, words or chance."
        ]
    others = f"the other{'s' if len(rest) > 1 else ''} ({', '.join(rest)}) cannot be told from a random direction"
    return ["; ".join([*parts, others] if rest else parts) + "."]


def _clause(one: Finding, evidence: Evidence) -> str:
    says = SAYS[one.proxy] if one.helps else SAYS_HARM.get(one.proxy, "harms")
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

"""What a proxy found: effects of all directions beside their controls, as it is kept in the workspace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from core.errors import BasiscopeError
from core.evaluation import Interval
from core.usefulness import PROXIES, SIGNIFICANCE
from core.workspace import now

BOTH = "±"
CONSTANT = "its score is the same on all traces"
"""The note on a direction that tells no two examples apart."""


@dataclass(frozen=True)
class Measure:
    """What an effect is counted in; `null` is its value where there is no effect."""

    name: str
    title: str
    unit: str
    null: float = 0.0


@dataclass(frozen=True)
class Effect:
    """One direction (from 1) and polarity by one measure.

    polarity: `+` or `-`, or BOTH where one number speaks of both ends: above the null the + end helps, below it
    the - end
    p: of no effect; adjusted: corrected for all directions, and against the best of as many random directions; not
    a number where there is no p, and then nothing is evidence
    gap: how much further than every control the effect is from the null, beyond the doubt in controls that are
    one estimate; below 0 where it is not
    blocks: its parts by block, where they add up to it; note: why there is no number, where there is none
    strength: signed, in multiples of the unit direction, of what steered; not a number where nothing did
    """

    direction: int
    polarity: str
    measure: str
    effect: Interval
    p: float = math.nan
    adjusted: float = math.nan
    gap: float = math.nan
    blocks: tuple[float, ...] = ()
    note: str = ""
    strength: float = math.nan

    @property
    def is_evidence(self) -> bool:
        """Whether it beats every control."""
        return self.adjusted < SIGNIFICANCE and self.gap > 0

    @property
    def was_dropped(self) -> bool:
        """Whether its proxy gave it up before the end."""
        return "dropped after round" in self.note

    @property
    def is_constant(self) -> bool:
        """Whether its direction tells no two examples apart."""
        return self.note == CONSTANT

    @property
    def name(self) -> str:
        return f"{self.direction}{self.polarity}"


@dataclass(frozen=True)
class Control:
    """What the same measure gives where nothing was learnt: the level that an effect has to exceed, on the side of
    the null that helps. detail: what was done, in words."""

    name: str
    measure: str
    level: Interval
    detail: str


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock and tokens run through the model, forward and generated alike."""

    seconds: float
    tokens: int


@dataclass(frozen=True)
class Evidence:
    """One proxy over a run's directions. `primary` names the measure that the recommendation rests on; `facts` are
    seeds, fingerprints, versions and counts; `parts` say where single outcomes lie (name -> id in the workspace).
    """

    proxy: str
    run: str
    primary: str
    measures: tuple[Measure, ...]
    effects: tuple[Effect, ...]
    controls: tuple[Control, ...]
    request: dict[str, Any]
    cost: Cost
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=now)

    def measure(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def by(self, measure: str) -> list[Effect]:
        return [effect for effect in self.effects if effect.measure == measure]

    def as_dict(self) -> dict[str, Any]:
        stored: dict[str, Any] = without_nan(asdict(self))
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Evidence:
        """Raises BasiscopeError where it is damaged."""
        try:
            made = {
                "measures": tuple(Measure(**one) for one in stored["measures"]),
                "effects": tuple(_effect(one) for one in stored["effects"]),
                "controls": tuple(
                    Control(**{**one, "level": _interval(one["level"])}) for one in stored["controls"]
                ),
                "cost": Cost(**stored["cost"]),
                "notes": tuple(stored["notes"]),
            }
            found = cls(**{**stored, **made})
            if found.proxy not in PROXIES or not any(one.name == found.primary for one in found.measures):
                raise ValueError("it does not say what was measured")
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasiscopeError(f"Kept evidence is damaged: {error}.") from error


def _effect(stored: Mapping[str, Any]) -> Effect:
    numbers = {name: _number(stored[name]) for name in ("p", "adjusted", "gap")}
    numbers["strength"] = _number(stored.get("strength"))
    return Effect(
        **{**stored, **numbers, "effect": _interval(stored["effect"]), "blocks": tuple(stored["blocks"])}
    )


def _interval(stored: Mapping[str, Any]) -> Interval:
    low, value, high = (_number(stored[name]) for name in ("low", "value", "high"))
    return Interval(value, low, high, int(stored["n"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def without_nan(value: Any) -> Any:
    """The same for JSON, which has no numbers that are none."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


# --- many directions ------------------------------------------------------------------------------------


def false_discovery(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """(k,) p-values by Benjamini and Hochberg (1995); what is no number stays none."""
    from scipy.stats import false_discovery_control

    values = np.asarray(p, dtype=np.float64)
    known = np.isfinite(values)
    found = np.full(len(values), np.nan)
    if known.any():
        found[known] = false_discovery_control(np.clip(values[known], 0, 1))
    return found


def p_against_best(values: np.ndarray, draws: np.ndarray, k: int) -> np.ndarray:
    """How often the best of `k` random directions reaches each value, from single draws (m,) of them: the
    max-statistic, so that the best of the directions may be picked out."""
    sorted_draws = np.sort(draws[np.isfinite(draws)])
    reached = 1 + len(sorted_draws) - np.searchsorted(sorted_draws, values, side="left")
    found = 1 - (1 - reached / (1 + len(sorted_draws))) ** k
    return np.where(np.isfinite(values), found, np.nan)


def level_of_best(draws: np.ndarray, k: int) -> float:
    """The 95th percentile of the best of `k` random directions."""
    kept = draws[np.isfinite(draws)]
    return float(np.quantile(kept, (1 - SIGNIFICANCE) ** (1 / k))) if len(kept) else math.nan


def p_outlier(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Two-sided p-values of each value being one more draw from the normal distribution that null (m,) were drawn
    from, whose mean and spread are only known from these; not numbers where they do not vary."""
    from scipy.stats import t

    spread = float(null.std(ddof=1)) * math.sqrt(1 + 1 / len(null))
    if not spread > 0:
        return np.full(len(values), np.nan)
    return np.asarray(2 * t.sf(np.abs(values - null.mean()) / spread, len(null) - 1))
